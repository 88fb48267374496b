"""The local index of the text memory: rows in SQLite, words in tantivy, vectors in memory.

`index.py` has `LocalIndex`, the store of records. The other files are its parts."""
