"""memserve on several hosts: network namespaces of this machine, with real wires between them."""
