"""The contest: how many seconds a recipe of training flags needs until the ControlNet's discs fit their conditions."""
