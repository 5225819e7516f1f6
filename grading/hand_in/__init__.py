"""Checks what a student hands in, and packs it."""
