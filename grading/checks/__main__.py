"""`python -m grading.checks`"""

from .run import main

if __name__ == "__main__":
    main()
