"""Between `memserve.v1` messages and domain values. What comes in is checked here: the field is named, and
the rule.
"""
