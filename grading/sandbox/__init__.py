"""Runs what nobody trusts where it can do no harm, and our own programs beside it."""
