"""Make the README's picture, `docs/demo.svg`, of a real run: `python docs/picture.py` tells the demo's story.

It takes as long as `memserve demo`, about three minutes. Nothing is written when a bar of the demo is missed.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from memserve.cli.terminal import PlainConsole
from memserve.embedded.story import print_story, tell_story
from memserve.private_files import private_umask

TARGET = Path(__file__).with_name("demo.svg")
WIDTH = 120


def main() -> int:
    private_umask()
    figures = tell_story(lambda line: print(line, file=sys.stderr, flush=True), workers=2, keep=False)
    console = PlainConsole(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    print_story(figures, console)
    if not figures["ok"]:
        print("\n".join(figures["failed"]), file=sys.stderr)
        return 1
    console.save_svg(str(TARGET), title="memserve demo", unique_id="demo")
    TARGET.chmod(0o644)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
