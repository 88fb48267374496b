"""Erases memories with everything that was made of them, on all workers, and goes on after a failure."""
