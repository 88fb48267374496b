"""The services of `memserve.v1`: authenticate, convert, call, convert back."""
