"""MemCubes, measured: one real gateway (Redis, Milvus Lite, the bundled embedder; fake workers) with tenants.

The source's namespaces, with histories, and its modules, with probes and aliases, are exported, and brought
in by the target: all of it must be equal, and a second import must change nothing. Then bits of the cube are
flipped in each region of the file, and each must be found. Cubes that are unsigned, signed by another key,
cut off, for another base model or of a newer format must be refused. An import is killed with `kill -9` among
the memories and among the modules, and goes on.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.modules.memcube.damage import REGIONS, Damage, flipped, refusals
from loadtests.modules.memcube.moving import Moved, Size, move
from memserve.demo import MODEL_DIR

QUICK = Size(memories=240, modules=3, versions=2)
FULL = Size(memories=2000, modules=10, versions=3)
QUICK_FLIPS, FLIPS = 12, 60


def main() -> int:
    options = parser("memcube", __doc__)
    options.add_argument("--seed", type=int, default=20)
    arguments = options.parse_args()
    size = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory(prefix="memcube-") as name:
        folder = Path(name)
        moved = asyncio.run(move(folder, MODEL_DIR, size, arguments.seed))
        report("flipping bits")
        flips = QUICK_FLIPS if arguments.quick else FLIPS
        damage = flipped(moved.small, folder / "flipped.cube", flips, arguments.seed)
        refused = {**moved.refused, **refusals(moved.small, folder)}
    show(size, moved, damage, refused)
    bars = [
        Bar("differences after the round trip", len(moved.differences), at_most=0),
        Bar("changes by a second import", moved.changed_again, at_most=0),
        Bar("flipped bits that were not found", len(damage.missed), at_most=0),
        Bar("imports killed in the middle", moved.kills, at_least=2),
        Bar("differences after the killed imports", len(moved.differences_after_kills), at_most=0),
        Bar(
            "cubes that were taken and should be refused", sum(not why for why in refused.values()), at_most=0
        ),
    ]
    figures: dict[str, object] = {
        "memories": size.memories,
        "versions": size.modules * size.versions,
        "cube_bytes": moved.cube_bytes,
        "export_s": moved.export_s,
        "show_s": moved.show_s,
        "import_s": moved.import_s,
        "import_again_s": moved.again_s,
        "flips": damage.flips,
        "flips_that_named_their_entry": damage.named,
        "kills": moved.kills,
    }
    return finish(bars, figures, arguments.json)


def show(size: Size, moved: Moved, damage: Damage, refused: dict[str, str]) -> None:
    print_table(
        ("step", "seconds"),
        [
            ("export", f"{moved.export_s:.1f}"),
            ("show: read to the end", f"{moved.show_s:.2f}"),
            ("import", f"{moved.import_s:.1f}"),
            ("import again", f"{moved.again_s:.1f}"),
        ],
    )
    print(
        f"{size.memories} memories with histories and {size.modules * size.versions} versions: "
        f"{moved.cube_bytes / 1e6:.2f} MB, of which the modules' files {moved.module_bytes / 1e6:.2f} MB"
    )
    print_table(
        ("region", "flips", "found", "names its entry"),
        [(region, *damage.of(region)) for region in REGIONS],
    )
    for what, why in refused.items():
        print(f"{what}: {why or 'TAKEN'}")
    for difference in (*moved.differences, *moved.differences_after_kills, *damage.missed)[:20]:
        print(f"  {difference}")


if __name__ == "__main__":
    sys.exit(main())
