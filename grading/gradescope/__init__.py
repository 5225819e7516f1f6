"""Packs the grader for Gradescope."""
