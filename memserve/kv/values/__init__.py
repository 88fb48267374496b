"""The stored value: its header, its codecs."""
