"""Converts between `memserve.v1` messages and domain values. Requests are checked here.

A refusal names the field and the rule.
"""
