"""Brings points that a teacher gave by hand into the table and the page of a grading."""
