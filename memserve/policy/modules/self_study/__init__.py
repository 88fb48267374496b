"""Self-study: statements become questions with answers, in phrasings to train on and in others to ask.

`readings.py` reads a sentence, `study.py` draws lessons, `asking.py` draws probes. Pure and seeded.
"""
