"""`python -m grading.points`"""

from .merge import main

if __name__ == "__main__":
    main()
