"""Modules made out of modules, in Ray tasks of their own."""
