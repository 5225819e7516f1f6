"""Grades hand-ins: finds them, checks, trains and draws in the sandbox, and writes the results."""
