"""Activation memory: load or recompute, and what a cached chunk is worth."""
