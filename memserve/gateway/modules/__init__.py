"""What is done with module versions on workers: tried, gated, promoted, loaded, composed, watched,
deleted.
"""
