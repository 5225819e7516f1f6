"""`python -m grading.gradescope`"""

from .pack import main

if __name__ == "__main__":
    main()
