"""Recalled passages put into the prompt in several ways, and how often a small model answers right."""
