"""`python -m grading.contest`"""

from .run import main

if __name__ == "__main__":
    main()
