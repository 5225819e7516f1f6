"""Writes what students are given."""
