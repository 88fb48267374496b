"""The services of `memserve.v1`. Each RPC authenticates, converts, calls, and converts back."""
