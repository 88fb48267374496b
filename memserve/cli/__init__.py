"""The `memserve` command: `app.py` gathers the commands, and each other file has those of one noun."""
