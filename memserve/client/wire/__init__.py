"""The client's half of the wire: messages of `memserve.v1` from and to values. One file for each service."""
