"""The blocking client. All but `_io.py` is generated from `_async` by `make client`."""
