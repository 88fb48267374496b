"""A newcomer's first session, in an environment like a container's: README's quick start, word for word, and
what it prints.

A clone of the committed tree; a user without a name, a home or a locale; 64 MiB of /dev/shm; proxies set that
do not answer. Every command of the README's blocks of the quick start is run as it stands there, but `make
test`, which is CI's. Needs root, for the mount and the user.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, report

ROOT = Path(__file__).resolve().parents[2]
# An id without an entry in passwd.
USER = 43210
SHM = "64m"
DEAD_PROXY = "http://127.0.0.1:9"
# A set-up needs its index: https goes its own way until everything is installed.
PROXIES = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ftp_proxy"), DEAD_PROXY)
PROXIES_AFTER = dict.fromkeys(("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"), DEAD_PROXY)
LEFT_OUT = ("make test", "grpcurl")
UP = ".venv/bin/memserve up"
TIMEOUT_S = 1200
# What pip says of each package.
PIP_LINE = re.compile(
    "Looking in|Collecting|Downloading|Using cached|Processing|Requirement "
    "already|Installing|Preparing|Building|Created wheel|Stored in|━"
)
LINES_SHOWN = 80


def quick_start() -> tuple[list[str], str]:
    """The commands of README's quick start in their order, and its Python program."""
    section = (
        (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Quick start\n")[1].split("\n## ")[0]
    )
    commands = [
        line.removeprefix("$ ").split("  #")[0].strip()
        for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL)
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    (program,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return [command for command in commands if not command.startswith(LEFT_OUT)], program


def session(folder: Path) -> str:
    """The shell script of the session. It ends with the status of the first command that failed."""
    commands, program = quick_start()
    (folder / "program.py").write_text(program, encoding="utf-8")
    # With job control a command in the background heeds Ctrl-C.
    lines = [
        "set -um",
        "failed=0",
        'run() { echo "\\$ $1"; eval "$1" 2>&1 || { echo "(exit status $?)"; failed=1; }; }',
    ]
    for command in commands:
        if command == UP:
            lines += [
                f"export {' '.join(f'{name}={value}' for name, value in PROXIES_AFTER.items())}",
                f"echo '$ {UP}'",
                f"{UP} >up.log 2>&1 & up=$!",
                "for _ in $(seq 240); do grep -q '^ready' up.log && break; kill -0 $up 2>/dev/null "
                "|| break; sleep 1; done",
                "cat up.log",
            ]
        else:
            lines.append(f"run '{command}'")
    lines += [
        "echo '$ .venv/bin/python program.py'",
        ".venv/bin/python program.py 2>&1 || failed=1",
        "echo '(Ctrl-C)'",
        "before=$(wc -l <up.log)",
        "kill -INT $up; wait $up; status=$?",
        "tail -n +$((before + 1)) up.log",
        'echo "(memserve up ended with $status)"',
        "test $status = 0 || failed=1",
        "exit $failed",
    ]
    return "\n".join(lines) + "\n"


def python_for_all() -> str:
    """Commands that let everyone in this mount namespace use the Python that runs, where it is in a home that
    only its owner may enter.
    """
    base = Path(sys.base_prefix)
    closed = next((folder for folder in reversed(base.parents) if not folder.stat().st_mode & 0o001), None)
    if closed is None:
        return ""
    steps = (
        f"mount --bind {base} $aside",
        f"mount -t tmpfs -o mode=755 tmpfs {closed}",
        f"mkdir -p {base}",
        f"mount --bind $aside {base}",
    )
    return f"aside=$(mktemp -d) && {' && '.join(steps)} &&"


def shown(output: str) -> str:
    """Without what pip says of each package; what is still long, cut to its beginning and end."""
    kept: list[str] = []
    for block in re.split(r"(?m)^(?=\$ )", output):
        lines = [line.rstrip()[:200] for line in block.splitlines() if not PIP_LINE.match(line.lstrip())]
        if len(lines) > LINES_SHOWN:
            half = LINES_SHOWN // 2
            lines = [*lines[:half], f"… {len(lines) - LINES_SHOWN} lines …", *lines[-half:]]
        kept += lines
    return "\n".join(kept)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("newcomer", __doc__)
    options.add_argument("--write", type=Path, metavar="FILE", help="keep the session as a page of Markdown")
    chosen = options.parse_args(arguments)
    if os.geteuid() != 0:
        report("it needs root: for a /dev/shm of its own and for another user")
        return 2
    # Under a folder that another user may enter.
    folder = Path(tempfile.mkdtemp(prefix="newcomer-", dir="/var/tmp"))
    folder.chmod(0o755)
    project = folder / "memserve"
    try:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
        (folder / "session.sh").write_text(session(project), encoding="utf-8")
        subprocess.run(["chown", "-R", f"{USER}:{USER}", str(folder)], check=True)
        kept = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("PIP_", "SSL_", "REQUESTS_"))
        }
        path = f"{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin"
        environment = [f"{name}={value}" for name, value in {"PATH": path, **kept, **PROXIES}.items()]
        inner = [
            f"mount -t tmpfs -o size={SHM} tmpfs /dev/shm && {python_for_all()} cd {project} && "
            "umask 077 && ",
            f'exec setpriv --reuid={USER} --regid={USER} --clear-groups --inh-caps=-all env -i "$@" '
            f"bash {folder}/session.sh",
        ]
        began_s = time.monotonic()
        report(f"as user {USER}, in {project}: a set-up from nothing, the demo, the quick start")
        ended = subprocess.run(
            ["unshare", "--mount", "bash", "-c", "".join(inner), "session", *environment],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )
        said = shown(ended.stdout.decode(errors="replace").replace(str(project), "~/memserve"))
        seconds = time.monotonic() - began_s
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(said)
    if chosen.write:
        conditions = (
            f"user id {USER} without a passwd entry, no HOME, no LANG, umask 077, /dev/shm of {SHM}iB, "
            "dead proxies"
        )
        page = (
            "# A newcomer's session\n\n`python -m loadtests.newcomer --write` ran the README's quick start "
            f"word for word, as\n{conditions}.\n"
        )
        chosen.write.write_text(f"{page}\n```console\n{said}\n```\n", encoding="utf-8")
    bars = [
        Bar("commands that failed, or 0", ended.returncode, at_most=0),
        Bar("tracebacks", said.count("Traceback"), at_most=0),
    ]
    return finish(bars, {"seconds": seconds}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
