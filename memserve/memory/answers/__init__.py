"""Kept answers: what each used, in the registry Redis for a while, so that any gateway can tell it later."""
