"""Where the `memserve` command begins, before anything slow is loaded."""

from __future__ import annotations

import sys

from memserve.processes.init import go_on_in_a_child


def main() -> None:
    go_on_in_a_child()
    if sys.argv[1:2] == ["health"]:
        # Asked every few seconds by whoever watches a container: the other commands stay unloaded.
        from memserve.cli.health import main as health_main

        health_main(sys.argv[2:])
    else:
        from memserve.cli.app import main as app_main

        app_main()
