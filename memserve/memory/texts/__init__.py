"""Text memories: journaled, embedded, kept in Milvus, found again by meaning and by word."""
