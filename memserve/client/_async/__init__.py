"""The client for asyncio. It is written here; `memserve/client/generate.py` makes `_sync` from it."""
