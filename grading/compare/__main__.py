"""`python -m grading.compare`"""

from .run import main

if __name__ == "__main__":
    main()
