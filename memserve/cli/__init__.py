"""The `memserve` command: `app.py` gathers the commands. Every other file has the commands of one noun."""
