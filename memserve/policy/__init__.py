"""Pure decisions: where a request goes and how its prompt is put together.

No I/O, no clock, no randomness.
"""
