"""deploy/docker, done without Docker: the Dockerfile's own steps in clean Debian roots. What comes out is run
as container runtimes run it, alone and as compose.yaml says.

Each RUN is done in a chroot that has nothing of this machine but its network. Debian's packages come from
Debian, Python's from wheels that this machine's pip fetches once. A container has its own process ids,
mounts, /dev/shm and host; process 1 is the image's command, as user 10001 without capabilities, and the root
file system is read-only. Redis is Debian's redis-server in the place of the official image. Docker itself,
its layers and its cache are not tried, and neither is worker-cuda, whose wheels need a GPU to say anything.

Needs root, debootstrap and iproute2. --quick leaves the worker out; what was built before is used again with
--keep.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from loadtests.cluster.hosts import HostsError, network
from loadtests.cluster.images.building import MIB, Builder, Image, ImagesError
from loadtests.cluster.images.checks import Alone, Check, alone, contents, gateway_alone
from loadtests.cluster.images.composed import Composed, served, tail
from loadtests.cluster.images.dockerfile import ImageConfig
from loadtests.harness.figures import Bar, finish, parser, print_table, report

CACHE = Path(__file__).resolve().parents[3] / ".cache" / "images"
NETWORK, NUMBER = "im", 87
GATEWAY, WORKER = "gateway", "worker-cpu"
COMPILES = "import torch; print(torch.compile(lambda x: x * 2 + 1)(torch.ones(1)).tolist())"
REDIS = ImageConfig(environment={"PATH": "/usr/local/bin:/usr/bin:/bin"}, folder="/data")


def images_of(builder: Builder, targets: Sequence[str]) -> dict[str, Image]:
    images = {target: builder.build(target) for target in targets}
    redis = builder.debian_with("redis", "redis-server", REDIS)
    (redis.root / "data").mkdir(exist_ok=True)
    shutil.chown(redis.root / "data", 999, 999)
    return {**images, "": redis}


def checked(images: dict[str, Image], folder: Path) -> Iterator[Check]:
    with network(NETWORK, NUMBER) as hosts:
        host = hosts.host("alone")
        for name, image in images.items():
            if name:
                of = Alone(image, host, folder)
                yield from contents(name, image)
                yield from alone(name, of)
        yield from gateway_alone(Alone(images[GATEWAY], host, folder))
        if WORKER in images:
            of = Alone(images[WORKER], host, folder)
            status, said, seconds = of.program("import vllm, ray, torch; print(vllm.__version__)", "vllm")
            yield Check(f"{WORKER}: imports vllm, ray and torch", status == 0, f"{said} ({seconds:.1f} s)")
            status, said, seconds = of.program(COMPILES, "compiles")
            yield Check(f"{WORKER}: torch compiles a kernel", said == "[3.0]", f"{said} ({seconds:.1f} s)")
        composed = Composed(hosts, images, folder)
        try:
            yield from served(composed)
        except Exception:
            report(tail(composed))
            raise


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("images", __doc__)
    options.add_argument("--folder", type=Path, default=CACHE, help="where images are built")
    options.add_argument("--keep", action="store_true", help="use the images that were built before")
    chosen = options.parse_args(arguments)
    targets = [GATEWAY] if chosen.quick else [GATEWAY, WORKER]
    began_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="images-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        builder = Builder(chosen.folder, keep=chosen.keep)
        images = images_of(builder, targets)
        checks = []
        for check in checked(images, folder):
            report(f"{'ok  ' if check.holds else 'MISS'} {check.what}: {check.seen}")
            checks.append(check)
    except (HostsError, ImagesError) as error:
        report(str(error))
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sizes = {name: image.bytes / MIB for name, image in images.items() if name}
    print_table(
        ("image", "MiB", "seconds to build"),
        [(name, f"{size:.0f}", f"{builder.seconds.get(name, 0):.0f}") for name, size in sizes.items()],
    )
    print()
    print_table(("check", "holds"), [(check.what, "yes" if check.holds else "NO") for check in checks])
    for check in checks:
        if not check.holds:
            print(f"{check.what}: {check.seen}")
    bars = [Bar("checks that do not hold", sum(not check.holds for check in checks), at_most=0)]
    figures: dict[str, object] = {
        "seconds": time.monotonic() - began_s,
        "mib": sizes,
        "build_s": builder.seconds,
        "checks": {check.what: check.seen for check in checks},
    }
    return finish(bars, figures, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
