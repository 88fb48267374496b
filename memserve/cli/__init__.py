"""The `memserve` command: `app.py` starts memserve's processes and gathers the sub-commands, one file for
each noun.
"""
