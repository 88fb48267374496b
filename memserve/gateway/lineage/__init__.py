"""Reads what was made of what from the stores of all three memories, for `policy/lineage` to join."""
