"""`python -m memserve` is the `memserve` command."""

from memserve.cli.app import main

main()
