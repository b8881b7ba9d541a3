"""Data only: the miniature study's causal base checkpoint, with the recipe and the log of its training."""
