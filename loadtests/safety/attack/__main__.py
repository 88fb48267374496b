"""Attack a running memserve as 0.1.0 was attacked, item by item, and say what held.

A whole memserve with one worker and default settings but for API keys. Every attack is on its public face or
on the machine: sockets by process against the settings, every RPC without a key, with a wrong one and with
one of each role, the workers' port, files and secrets, floods, odd values, hostile text. Items that need
kills, full disks or a minute's load have benchmarks of their own (`durability`, `supervision`, `neighbours`);
a full run runs their quick forms and shows them as lines.

Exits 0 when everything held.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import psutil

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.safety.attack import callers, calls, files, network
from loadtests.safety.attack.world import Attack, World, attacked_world

OWN_BENCHMARKS = (
    ("6, 7, 8", "durability", "lost flushes, damage, full disks, kills, power cuts"),
    ("9", "supervision", "parts killed in pairs, memserve up killed"),
    ("11", "neighbours", "one tenant does its worst beside another"),
)
BENCHMARK_S = 600.0


def run_attacks(world: World, attacks: list[Attack]) -> list[tuple[str, str, str, bool]]:
    rows = []
    for attack in attacks:
        began_s = time.monotonic()
        try:
            happened, held = attack.run(world)
        except Exception as error:
            happened, held = f"the attack itself failed: {type(error).__name__}: {str(error)[:200]}", False
        report(
            f"  {attack.item:>3}  {'held' if held else 'NOT HELD'}  {attack.tried} "
            f"({time.monotonic() - began_s:.1f} s)"
        )
        rows.append((attack.item, attack.tried, happened, held))
    return rows


def embedded_in_a_program(bystander: subprocess.Popen[bytes]) -> tuple[str, str, str, bool]:
    """After `Stack.stop()`: this program's own child lives, nothing of memserve's does, and the environment
    is as it was.
    """
    left = [child for child in psutil.Process().children(recursive=True) if child.pid != bystander.pid]
    marked = [name for name in os.environ if name.startswith("_MEMSERVE")]
    held = bystander.poll() is None and not marked and not left
    child = "lives" if bystander.poll() is None else "was killed"
    happened = f"the program's own child {child}; {len(left)} processes left; marks: {marked or 'none'}"
    return "14", "stop a Stack embedded in a program with children", happened, held


def own_benchmark(item: str, name: str, tried: str) -> tuple[str, str, str, bool]:
    report(f"  {item:>3}  python -m loadtests.{name} --quick")
    try:
        result = subprocess.run(
            [sys.executable, "-m", f"loadtests.{name}", "--quick"],
            stdout=subprocess.PIPE,
            timeout=BENCHMARK_S,
            check=False,
            text=True,
            encoding="utf-8",
        )
        lines = [line for line in result.stdout.splitlines() if line.strip()] or ["it said nothing"]
        return item, tried, f"loadtests.{name} --quick: {lines[-1]}", result.returncode == 0
    except subprocess.TimeoutExpired:
        return item, tried, f"loadtests.{name} --quick: not done after {BENCHMARK_S:.0f} s", False


def main() -> int:
    options = parser("attack", __doc__)
    options.add_argument("--only", default="", help="items to try, separated by commas")
    arguments = options.parse_args()
    only = set(filter(None, arguments.only.split(",")))
    attacks = [
        attack
        for attack in (*network.ATTACKS, *callers.ATTACKS, *files.ATTACKS, *calls.ATTACKS)
        if (not only or attack.item in only) and not (arguments.quick and attack.slow)
    ]
    bystander = subprocess.Popen(["sleep", "3600"])
    try:
        with attacked_world() as world:
            sockets = network.sockets_by_process(world)
            rows = run_attacks(world, attacks)
        rows.append(embedded_in_a_program(bystander))
    finally:
        bystander.kill()
        bystander.wait()
    if not arguments.quick and not only:
        rows += [own_benchmark(*benchmark) for benchmark in OWN_BENCHMARKS]
    print_table(("process", "pid", "listens on", "setting"), sockets)
    print()
    for item, tried, happened, held in sorted(
        rows, key=lambda row: [int(part) for part in row[0].split(", ")]
    ):
        print(f"{item:>7}  {'held    ' if held else 'NOT HELD'}  {tried}\n{'':19}{happened}")
    print()
    failed = [row for row in rows if not row[3]]
    figures = {
        "attacks": [
            {"item": item, "tried": tried, "happened": happened, "held": held}
            for item, tried, happened, held in rows
        ],
        "sockets": [
            {"process": name, "pid": pid, "listens_on": where, "setting": setting}
            for name, pid, where, setting in sockets
        ],
    }
    return finish(
        [Bar(f"attacks of {len(rows)} that were not held", len(failed), at_most=0)],
        json.loads(json.dumps(figures)),
        arguments.json,
    )


if __name__ == "__main__":
    sys.exit(main())
