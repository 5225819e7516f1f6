"""What students were given: the lines around their TODO places, and all code as it was then."""
