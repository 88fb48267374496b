"""`python -m memserve` is the `memserve` command."""

from memserve.cli.entry import main

main()
