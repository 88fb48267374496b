"""Generate `memserve/pb` from the .proto files: `python protos/generate.py`, or `--check` to fail when it is
out of date.
"""

from __future__ import annotations

import argparse
import filecmp
import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
TARGET = ROOT.parent / "memserve" / "pb"


def generate(target: Path) -> None:
    """Write the generated modules below `target`: `v1/` for memserve.v1 and `worker/v1/` for
    memserve.worker.v1.
    """
    protos = sorted(ROOT.glob("memserve/**/*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = ["protoc", f"-I{ROOT}", f"-I{files('grpc_tools') / '_proto'}"]
        arguments += [f"--{kind}_out={scratch}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(arguments + [str(proto) for proto in protos]) != 0:
            raise SystemExit("protoc failed; see above")
        for made in sorted(Path(scratch).rglob("*.py*")):
            # protoc names Python modules after the proto package, which is this package's own name.
            text = re.sub(
                r"^from memserve\.", "from memserve.pb.", made.read_text(encoding="utf-8"), flags=re.MULTILINE
            )
            kept = target / made.relative_to(Path(scratch) / "memserve")
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(text, encoding="utf-8")
    for folder in {path.parent for path in target.rglob("*_pb2.py")} | {target, target / "worker"}:
        (folder / "__init__.py").write_text(
            '"""Generated from protos/ by protos/generate.py; do not edit."""\n', encoding="utf-8"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 when memserve/pb is not what the protos give",
    )
    if not parser.parse_args().check:
        generate(TARGET)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        generate(fresh)
        names = {path.relative_to(fresh) for path in fresh.rglob("*.py*")}
        kept = {path.relative_to(TARGET) for path in TARGET.rglob("*.py*") if "__pycache__" not in path.parts}
        stale = sorted(str(n) for n in names ^ kept) + sorted(
            str(n) for n in names & kept if not filecmp.cmp(fresh / n, TARGET / n, shallow=False)
        )
    if stale:
        print(
            f"memserve/pb is out of date, run `python protos/generate.py`: {', '.join(stale)}",
            file=sys.stderr,
        )
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
