"""Erasures in the registry Redis: what was asked for, what was done, what is left. No text of a memory."""
