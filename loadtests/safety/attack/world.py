"""What is attacked: a whole memserve with a key of every role, and what an attack says of itself."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil

from loadtests.harness.figures import report
from memserve.client import CallFailed, Client
from memserve.config import Settings, load_settings
from memserve.demo import MODEL_DIR
from memserve.domain import KeyRole
from memserve.embedded import Stack
from memserve.gateway.access.keys import add_key

TENANT, OTHER = "acme", "bolt"
SALT_KEY = "attacked-salt-key-of-no-other-use-5b1f"
METRICS_KEY = "attacked-metrics-key"


@dataclass(frozen=True, slots=True)
class Attack:
    """item: of the list of attacks that 0.1.0 fell to. tried: for a person. run: returns what happened and
    whether memserve held.
    """

    item: str
    tried: str
    run: Callable[[World], tuple[str, bool]]
    slow: bool = False


@dataclass
class World:
    """keys: of the tenant `acme`, by role. other_key: of the tenant `bolt`, with the role `write`. folder:
    for the attacker's files.
    """

    stack: Stack
    folder: Path
    keys: dict[KeyRole, str] = field(default_factory=dict)
    other_key: str = ""

    @property
    def settings(self) -> Settings:
        return self.stack.settings

    @property
    def keys_file(self) -> Path:
        return self.settings.data / "keys.json"

    @property
    def secrets(self) -> list[str]:
        """What must stand in no environment, command line or log."""
        keys = [SALT_KEY, METRICS_KEY, self.other_key, *self.keys.values()]
        return [*keys, (self.settings.data / "ray_token").read_text(encoding="utf-8").strip()]

    def client(self, role: KeyRole = KeyRole.ADMIN, timeout_s: float = 30.0) -> Client:
        return Client(self.stack.address, self.keys[role], timeout_s)

    def other(self, timeout_s: float = 30.0) -> Client:
        return Client(self.stack.address, self.other_key, timeout_s)

    def processes(self) -> list[psutil.Process]:
        """memserve's, without the attacker's own."""
        return [
            process
            for process in psutil.Process().children(recursive=True)
            if process.status() != psutil.STATUS_ZOMBIE
        ]

    def log_of(self, part: str) -> str:
        return (self.stack.logs / f"{part}.log").read_text(errors="replace", encoding="utf-8")


@contextlib.contextmanager
def attacked_world() -> Iterator[World]:
    """A started memserve with one worker, all settings as they are by default but for the keys. Raises
    StartupError.
    """
    folder = Path(tempfile.mkdtemp(prefix="memserve-attack-"))
    data = folder / "data"
    (folder / "model").symlink_to(MODEL_DIR)
    keys = {role: add_key(data / "keys.json", f"acme-{role}", TENANT, role, 0.0) for role in KeyRole}
    other_key = add_key(data / "keys.json", "bolt", OTHER, KeyRole.WRITE, 0.0)
    settings = load_settings(
        {},
        data_dir=data,
        model=str(folder / "model"),
        workers=1,
        port=0,
        http_port=0,
        metrics_port=0,
        salt_key=SALT_KEY,
        metrics_key=METRICS_KEY,
    )
    stack = Stack(settings, report)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        stack.start()
        (folder / "attacker").mkdir()
        yield World(stack, folder / "attacker", keys, other_key)
    finally:
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


def refusal_of(call: Callable[[], object]) -> grpc.StatusCode:
    """How the call ended; OK where it was answered."""
    try:
        call()
    except CallFailed as failed:
        return failed.code
    return grpc.StatusCode.OK


def run_memserve(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """The command as from a shell, to its end."""
    command = [sys.executable, "-m", "memserve", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False, encoding="utf-8"
    )
