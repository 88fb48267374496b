"""The client's half of the wire: messages from and to domain values."""
