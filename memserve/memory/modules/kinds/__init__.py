"""The kinds of modules: one table, and the check of each kind."""
