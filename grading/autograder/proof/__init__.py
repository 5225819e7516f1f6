"""Proof instead of run: a hand-in whose training must end where the right solution's ended need not be trained."""
