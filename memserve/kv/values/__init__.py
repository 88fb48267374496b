"""The stored value: its envelope (header and checks), and the codecs: raw, lossless and int8."""
