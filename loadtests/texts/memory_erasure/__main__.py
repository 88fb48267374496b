"""Show 1: a memory's life told by its history, and after an erase nothing is left of it.

A gateway and a registry run as processes, with other memories in the store. A memory is remembered, updated,
contradicted, restored, forgotten and restored; its history must say so. Then memories, a document and a
namespace are erased, also right before a kill -9. After each, everything is searched for the texts, their
UTF-16 and their distinctive words: all files of the data directory (parquet files unpacked, indexes of words
by their terms), all values of Redis and its files, logs, an export. What is found fails, unless the report of
the erasure said so.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.texts.memory_erasure.lab import Lab
from loadtests.texts.memory_erasure.scanning import Scan
from loadtests.texts.memory_erasure.secrets import Secret, draw_secret
from loadtests.texts.memory_erasure.story import NAMESPACE, Checks, remember, tell
from memserve.client import CallFailed, Client, ErasedPlace
from memserve.domain import NewDocument, NewMemory
from memserve.memory.texts.local.words import FRESH_MAX
from tests.memory.texts.milvus_server import running_server

OTHERS, QUICK_OTHERS = 2400, 200
DOOMED = "doomed"
DOCUMENT = "handbook"
PASSAGES = 3


class Run:
    """One lab from its first memory to its last scan."""

    def __init__(self, folder: Path, lab: Lab, seed: int, remote_folder: Path | None) -> None:
        self.lab = lab
        self.checks = Checks()
        self.scans: list[tuple[str, Scan, float, str]] = []
        self._folder = folder
        self._draw = random.Random(seed)
        self._remote_folder = remote_folder

    def secret(self) -> Secret:
        return draw_secret(self._draw)

    def fill(self, client: Client, first: int, behind: int) -> None:
        """Other memories, so that the files have both."""
        news = [
            NewMemory(
                NAMESPACE, f"Pump {number} stands by gate {number * 7} of the town.", memory_id=f"o{number}"
            )
            for number in range(first, behind)
        ]  # fmt: skip
        stored = sum(result.remembered is not None for result in client.remember_many(news))
        self.checks.holds(f"{behind - first} others are stored: {stored}", stored == behind - first)

    def scanned(self, secrets: Sequence[Secret]) -> Scan:
        """All that is the gateway's: its folders, its registry, and what it gives."""
        needles = {name: needle for secret in secrets for name, needle in secret.needles.items()}
        words = [word for secret in secrets for word in secret.words]
        scan = Scan(needles)
        scan.folder(self.lab.data, words)
        scan.folder(self.lab.log.parent)
        scan.folder(self.lab.registry_folder)
        scan.server("registry", self.lab.registry.client)
        scan.redis_files("registry", self.lab.registry_folder)
        with contextlib.suppress(CallFailed), self.lab.client() as client:
            scan.look("an export", "\n".join(client.export_memories()).encode())
        return scan

    def is_seen(self, secret: Secret, others: int) -> None:
        """Before an erasure: a search of everything that finds nothing would prove nothing."""
        scan = self.scanned([secret])
        places = " ".join(scan.found)
        report(f"before: found in {len(scan.found)} places, such as {scan.found[:9]}")
        self.checks.holds(f"the registry has it before: {places}", "registry" in places)
        self.checks.holds(f"an export has it before: {places}", "an export" in places)
        if self._remote_folder is None:
            self.checks.holds(f"the index of rows has it before: {places}", "rows" in places)
            if others > 2 * FRESH_MAX:
                self.checks.holds(f"the index of words has it before: {places}", "is a term" in places)

    def erased(
        self, what: str, secrets: Sequence[Secret], places: Sequence[ErasedPlace], took_s: float
    ) -> None:
        """Search everything, and hold the report to it."""
        told = " ".join(f"{place.place}: {place.detail}." for place in places)
        scan = self.scanned(secrets)
        if self._remote_folder is not None:
            remote = Scan(scan.needles)
            remote.folder(self._remote_folder)
            admitted = "when it collects garbage" in told
            if remote.found and not admitted:
                scan.found += remote.found
            said = "told" if admitted else "not told"
            report(f"{what}: {len(remote.found)} of the server's files have it, {said}")
        self.scans.append((what, scan, took_s, told))
        report(f"{what}: {scan.files} files, {scan.values} values, {len(scan.found)} found, {took_s:.1f} s")
        for line in scan.found[:5]:
            report(f"  {line}")
        report(f"  told: {told[:700]}")


def play(run: Run, others: int) -> None:
    with run.lab.client() as client:
        run.fill(client, 0, others // 2)
        tale = run.secret()
        tell(client, tale, "tale", run.checks)
        run.fill(client, others // 2, others)
        client.search(NAMESPACE, tale.text)
        run.is_seen(tale, others)
        run.erased("a memory with six versions", [tale], *_erase(client, "tale"))
        run.checks.refused(
            "an erased memory has no history", lambda: client.memory_history(NAMESPACE, "tale"), "NOT_FOUND"
        )  # fmt: skip
        run.checks.refused(
            "an erased memory is not restored", lambda: client.restore_memory(NAMESPACE, "tale"), "NOT_FOUND"
        )  # fmt: skip
        forgotten = run.secret()
        remember(client, forgotten, "forgotten", at=2)
        client.forget(NAMESPACE, "forgotten")
        run.erased("a forgotten memory", [forgotten], *_erase(client, "forgotten"))
        _document(run, client)
        _namespace(run, client)
        left = len([line for line in client.export_memories(NAMESPACE) if '"memory"' in line])
        run.checks.holds(f"the others are all there, {left} of {others}", left == others)
    _killed(run, others)


def _document(run: Run, client: Client) -> None:
    secrets = [run.secret() for _ in range(PASSAGES)]
    content = "\n\n".join(f"# {secret.title}\n\n{secret.text * 12}" for secret in secrets)
    document = NewDocument(NAMESPACE, DOCUMENT, media_type="text/markdown", source=secrets[0].source)
    *_, kept = client.remember_document(document, content.encode())
    run.checks.holds("the document has passages", kept.passages >= PASSAGES)
    passages = client.read_places(NAMESPACE, DOCUMENT)
    began_s = time.monotonic()
    places = [place for each in passages for place in client.erase_memory(NAMESPACE, each.memory_id)]
    run.erased("a document", secrets, places, time.monotonic() - began_s)


def _namespace(run: Run, client: Client) -> None:
    secrets = [run.secret() for _ in range(12)]
    for number, secret in enumerate(secrets):
        remember(client, secret, f"d{number}", DOOMED, number)
        client.update_memory(DOOMED, f"d{number}", text=secret.later_text)
    client.forget(DOOMED, "d1")
    began_s = time.monotonic()
    *_, last = client.delete_namespace(DOOMED, confirm=DOOMED)
    run.checks.holds("the namespace is gone", last.done and DOOMED not in client.namespaces())
    run.checks.holds("all of its memories are erased", last.erased == len(secrets) and not last.remaining)
    run.erased("a namespace", secrets, last.places, time.monotonic() - began_s)


def _killed(run: Run, others: int) -> None:
    secret = run.secret()
    with run.lab.client() as client:
        remember(client, secret, "killed", at=3)
        client.update_memory(NAMESPACE, "killed", text=secret.later_text)
        places, took_s = _erase(client, "killed")
        run.lab.kill()
    run.erased("kill -9 after the acknowledgement", [secret], places, took_s)
    run.lab.start()
    run.erased("the start after it", [secret], places, took_s)
    with run.lab.client() as client:
        run.checks.refused("it stays erased", lambda: client.get_memory(NAMESPACE, "killed"), "NOT_FOUND")
        found = [hit.memory.memory_id for hit in client.search(NAMESPACE, secret.later_text)]
        run.checks.holds("no search finds it after the start", "killed" not in found)
        run.checks.holds("the others are counted", client.namespaces().get(NAMESPACE) == others)


def _erase(client: Client, memory_id: str) -> tuple[tuple[ErasedPlace, ...], float]:
    began_s = time.monotonic()
    return client.erase_memory(NAMESPACE, memory_id, reason="asked"), time.monotonic() - began_s


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("memory_erasure", __doc__)
    options.add_argument("--seed", type=int, default=1, help="seed of the texts (default: 1)")
    options.add_argument(
        "--store", choices=("lite", "remote"), default="lite",
        help="Milvus Lite with the local index, or a `milvus-lite server` (default: lite)",
    )  # fmt: skip
    chosen = options.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="erasure-") as scratch, contextlib.ExitStack() as stack:
        folder, remote = Path(scratch), None
        uri = ""
        if chosen.store == "remote":
            remote = folder / "milvus"
            uri = stack.enter_context(running_server(remote))
        lab = Lab(folder, uri)
        stack.callback(lab.close)
        run = Run(folder, lab, chosen.seed, remote)
        play(run, QUICK_OTHERS if chosen.quick else OTHERS)
    return _told(run, chosen.json)


def _told(run: Run, as_json: bool) -> int:
    print_table(
        ("erased", "files", "MiB", "Redis values", "found", "seconds"),
        [
            (
                what,
                scan.files,
                f"{scan.size_bytes / 2**20:.1f}",
                scan.values,
                len(scan.found),
                f"{took_s:.1f}",
            )
            for what, scan, took_s, _ in run.scans
        ],
    )
    for line in run.checks.failed:
        report(f"does not hold: {line}")
    found = [line for _, scan, *_ in run.scans for line in scan.found]
    bars = [
        Bar("places where something erased is found", len(found), at_most=0),
        Bar("statements of the history that do not hold", len(run.checks.failed), at_most=0),
        Bar("statements", run.checks.made, at_least=20),
    ]  # fmt: skip
    figures: dict[str, object] = {
        "found": [line for _, scan, *_ in run.scans for line in scan.found],
        "failed": run.checks.failed,
    }
    return finish(bars, figures, as_json)


if __name__ == "__main__":
    sys.exit(main())
