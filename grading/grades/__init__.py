"""What a hand-in is worth, in numbers that a teacher may change, and how that is shown."""
