"""Write `_sync` from `_async`: `python memserve/client/generate.py`, or `--check` to fail when it is out of
date.

The blocking client is the asynchronous one with `async` and `await` left out and a few names replaced. What
needs more than that is in `_io.py`, which both halves have by hand. Source: httpcore's unasync.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SOURCE, TARGET = ROOT / "_async", ROOT / "_sync"
WRITTEN_BY_HAND = ("__init__.py", "_io.py")
HEAD = "# Generated from ../_async/{name} by `make client`; do not edit.\n"
# The text inside parentheses, which may have parentheses in it, up to three deep.
_INSIDE = r"[^()]*"
for _ in range(3):
    _INSIDE = rf"(?:[^()]|\({_INSIDE}\))*"
WORDS = (
    (rf"\(await ({_INSIDE})\)\.", r"\1."),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsyncGenerator\[(.+), None\]", r"Generator[\1, None, None]"),
    (r"\bAsync([A-Z]\w+)", r"\1"),
    (r"\basync_(\w+)", r"\1"),
    (r"\b__a(enter|exit)__", r"__\1__"),
    (r"\baclosing\b", "closing"),
    (r"\bgrpc\.aio\b", "grpc"),
    (r"\b_async\b", "_sync"),
)
PHRASES = (
    (
        """A client for asyncio. Cancelling a task cancels its call, down to the engine.

    It may be made anywhere, before there is an event loop too, and used in one loop after another: each has a
    channel of its own.
""",
        """A client that blocks, for any number of threads.
""",
    ),
    ("Calls under way in this event loop are cancelled.", "Calls under way are cancelled."),
)


def synchronous(name: str, text: str) -> str:
    """The blocking twin of a file of `_async`."""
    for phrase, twin in PHRASES:
        text = text.replace(phrase, twin)
    for pattern, replacement in WORDS:
        text = re.sub(pattern, replacement, text)
    text = HEAD.format(name=name) + text
    # ruff sorts the imports, whose names have changed, and joins lines that are now short enough.
    for arguments in (["check", "--quiet", "--select", "I", "--fix"], ["format", "--quiet"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(TARGET / name), "-"]
        text = subprocess.run(
            command, input=text, capture_output=True, text=True, encoding="utf-8", check=True
        ).stdout
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when _sync is not what _async gives"
    )
    check = parser.parse_args().check
    names = sorted(path.name for path in SOURCE.glob("*.py") if path.name not in WRITTEN_BY_HAND)
    sources = {name: (SOURCE / name).read_text(encoding="utf-8") for name in names}
    for phrase, _ in PHRASES:
        if not any(phrase in text for text in sources.values()):
            raise SystemExit(f"generate.py replaces a phrase that _async no longer has: {phrase.strip()!r}")
    expected = {name: synchronous(name, text) for name, text in sources.items()}
    if not check:
        for name, text in expected.items():
            (TARGET / name).write_text(text, encoding="utf-8")
        return 0
    present = {
        path.name: path.read_text(encoding="utf-8")
        for path in TARGET.glob("*.py")
        if path.name not in WRITTEN_BY_HAND
    }
    stale = sorted(name for name in expected | present if expected.get(name) != present.get(name))
    if stale:
        print(f"memserve/client/_sync is out of date, run `make client`: {', '.join(stale)}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
