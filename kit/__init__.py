"""The commands of the README, on any system: `python -m kit demo` does what `make demo` does.

It runs before the environment is there: it needs nothing but Python 3.8 or later.
"""
