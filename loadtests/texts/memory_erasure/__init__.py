"""Memories are remembered, corrected and erased, and everything is searched for what was erased."""
