"""A grid of runs, trained and measured with several seeds, and what they show when compared."""
