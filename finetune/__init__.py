"""What the training programs of this repository share."""

__version__ = "1.0"
