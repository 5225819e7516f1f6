"""What the five TODO places do, and what of it is wrong. The sandbox has no judges: nothing is imported here."""
