"""`python -m grading.autograder`"""

from .run import main

if __name__ == "__main__":
    main()
