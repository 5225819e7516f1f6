"""`python -m grading.handed_out`"""

from .record import main

if __name__ == "__main__":
    main()
