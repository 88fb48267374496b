"""Answers without memory, with recalled passages and with a module of the same facts, end to end."""
