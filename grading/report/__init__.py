"""Typesets the student's report."""
