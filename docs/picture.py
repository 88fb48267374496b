"""Make the README's picture, `docs/demo.svg`, of a real run's figures.

`memserve demo --json > figures.json`, then `python docs/picture.py figures.json`. Nothing is written when a
bar of the demo is missed.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

from memserve.cli.demo_handbook import ACTS, act_text, closing
from memserve.cli.terminal import PlainConsole

TARGET = Path(__file__).with_name("demo.svg")
WIDTH = 150


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path, help="what `memserve demo --json` has printed")
    figures = json.loads(parser.parse_args().figures.read_text(encoding="utf-8"))
    if not figures["ok"]:
        print("\n".join(figures["failed"]), file=sys.stderr)
        return 1
    console = PlainConsole(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for act in ACTS:
        console.print(act_text(act, figures[act]))
    console.print(closing(figures))
    console.save_svg(str(TARGET), title="memserve demo", unique_id="demo")
    TARGET.chmod(0o644)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
