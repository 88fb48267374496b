"""Cartridges in a real memserve: transformers' tokens under pressure and restarts, and what they cost."""
