"""Child processes: how they are tied to their parent, marked, restarted, swept, and how their ports are
kept.
"""
