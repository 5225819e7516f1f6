"""Hands out the assignment and grades it. Imports no code of the tasks: that runs in other processes."""
