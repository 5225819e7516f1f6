"""What the files of a hand-in are, read without trusting them."""
