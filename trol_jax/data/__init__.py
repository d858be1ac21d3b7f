"""Tokenisers, prompts and loss masks, picture preprocessing, readers, and the grain pipeline."""
