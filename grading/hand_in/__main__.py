"""`python -m grading.hand_in`"""

from .pack import main

if __name__ == "__main__":
    main()
