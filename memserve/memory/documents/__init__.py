"""Documents: the bytes of a text, Markdown, HTML or PDF file become passages, each of which can be read
alone. Nothing is stored here.
"""
