"""The client for asyncio, written by hand. `memserve/client/generate.py` makes `_sync` from it."""
