"""`python -m grading.report`"""

from .typeset import main

if __name__ == "__main__":
    main()
