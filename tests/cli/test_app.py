"""The command line: signals, and what a person may mistype."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from rich.table import Table

from memserve import __version__
from memserve.cli.serve import _stopping
from memserve.cli.terminal import PlainConsole
from tests.hostile_server import hostile_server

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class FakeStack:
    started: bool = True
    stopped: int = 0

    def stop(self) -> None:
        self.stopped += 1


class SignalsItsProcess:
    """Python drops an exception that a finalizer raises, and a signal handler's KeyboardInterrupt with it."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_a_signal_interrupts_what_runs_and_stops_the_stack_once(number: signal.Signals) -> None:
    # Also where these tests run under nohup.
    signal.signal(number, signal.SIG_DFL)
    stack = FakeStack()
    with _stopping(stack):
        signal.raise_signal(number)
        pytest.fail("the signal did not interrupt")
    assert stack.stopped == 1
    signal.raise_signal(number)  # while or after stopping: nothing


def test_a_signal_that_meets_a_finalizer_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: lost.append(raised.exc_type))
    stack = FakeStack()
    with _stopping(stack) as asked_to_stop:
        assert not asked_to_stop()
        finalized = SignalsItsProcess()
        del finalized
        assert lost == [KeyboardInterrupt]
        assert asked_to_stop()
    assert stack.stopped == 1


# Mistyped commands, and input that cannot be read


def memserve(
    *arguments: str | bytes, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the command as from a shell."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MEMSERVE_")}
    return subprocess.run(
        [sys.executable, "-m", "memserve", *arguments],
        input=stdin,
        capture_output=True,
        env={**kept, **environment},
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def answering() -> Iterator[str]:
    with hostile_server(fails=False) as address:
        yield address


NOT_UTF8 = b"caf\xe9"
# Python uses UTF-8 in the locale C unless both variables forbid it.
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("arguments", "stdin", "reason"),
    [
        (["remember", "notes", "-"], NOT_UTF8, b"standard input is not UTF-8"),
        (["generate", "-"], NOT_UTF8, b"standard input is not UTF-8"),
        (["generate", NOT_UTF8], b"", b"is not UTF-8"),
        (["remember", NOT_UTF8, "x"], b"", b"is not UTF-8"),
        (["modules", "show", NOT_UTF8], b"", b"is not UTF-8"),
        (["status", "--api-key", "secret\r"], b"", b"--api-key: holds a character that no header takes"),
        (["status", "--address", "https://127.0.0.1:1"], b"", b"no gateway answers at https://127.0.0.1:1"),
        (
            ["status", "--address", "http://127.0.0.1:1", "--tls-ca", "/etc/hosts"],
            b"",
            b"--address: 'http://127.0.0.1:1' asks for no TLS",
        ),
        (["status", "--tls-ca", "/nowhere"], b"", b"--tls-ca: /nowhere cannot be read"),
        (["status", "--tls-cert", "/etc/hosts"], b"", b"--tls-cert and --tls-key: certificate and key"),
        (["certs", "renew", "--folder", "/nowhere"], b"", b"memserve certs init"),
        (["certs", "init", "--folder", "/tmp", "--host", "a"], b"", b"nothing is overwritten"),
        (["certs", "init", "--folder", "/proc/x", "--host", "http://a"], b"", b"no DNS name"),
        (["status", "--address", "127.0.0.1:port"], b"", b"--address: '127.0.0.1:port' has no port"),
        (["status", "--address", "http://127.0.0.1:1"], b"", b"no gateway answers at http://127.0.0.1:1"),
        (["modules", "push", "t", "/nowhere"], b"", b"/nowhere"),
        (["modules", "push", "t", NOT_UTF8], b"", b"has no"),
        (["restore", "/nowhere", "--data-dir", "/proc/nope"], b"", b"/nowhere"),
        (["up", "--data-dir", "/proc/nope"], b"", b"/proc/nope"),
        (["keys", "list"], b"", b"/dev/null"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str | bytes], stdin: bytes, reason: bytes, answering: str
) -> None:
    ended = memserve(
        *arguments, stdin=stdin, MEMSERVE_ADDRESS=answering, MEMSERVE_DATA_DIR="/dev/null", **ASCII_LOCALE
    )
    assert (ended.returncode, ended.stderr.count(b"\n")) == (1, 1), ended.stderr.decode(errors="replace")
    assert ended.stderr.startswith(b"memserve: ")
    assert reason in ended.stderr
    assert b"secret" not in ended.stderr


def test_a_gateway_that_wants_a_key_is_answered_in_the_words_of_the_command_line() -> None:
    with hostile_server(fails=True, code=grpc.StatusCode.UNAUTHENTICATED) as address:
        assert (
            b"name yours with --api-key or in MEMSERVE_API_KEY"
            in memserve("status", "--address", address).stderr
        )
        assert (
            b"does not know the API key" in memserve("status", "--address", address, "--api-key", "k").stderr
        )
    with hostile_server(fails=True, code=grpc.StatusCode.DEADLINE_EXCEEDED) as address:
        assert (
            b"no answer within 7 s; allow more with --timeout"
            in memserve("status", "--address", address, "--timeout", "7").stderr
        )


def test_version_and_help_are_found_where_people_look() -> None:
    assert memserve("--version").stdout.strip() == memserve("version").stdout.strip() == __version__.encode()
    for arguments in (
        ["-h"],
        ["up", "-h"],
        ["modules", "-h"],
        ["modules", "push", "-h"],
        ["keys", "-h"],
        ["audit", "-h"],
        ["kv", "-h"],
    ):
        assert b"Usage:" in memserve(*arguments).stdout


def test_without_a_home_or_a_name_the_working_directory_has_what_is_kept(tmp_path: Path) -> None:
    """As in a container that runs under any user id: no HOME, no entry in passwd."""
    asks = (
        "import getpass, os; from memserve.private_files import find_home; from memserve.config "
        "import load_settings; "
        "find_home(os.environ); print(load_settings({}).data, getpass.getuser())"
    )
    command = [sys.executable, "-c", f"import pwd; pwd.getpwuid = lambda uid: {{}}[uid]; {asks}"]
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME")
    }
    ended = subprocess.run(
        command, capture_output=True, text=True, env=kept, cwd=tmp_path, check=True, encoding="utf-8"
    )
    assert ended.stdout.split()[0] == str(tmp_path / ".memserve/.local/share/memserve")
    assert ended.stdout.split()[1].startswith("user-")


def test_nothing_is_wrapped_in_a_pipe() -> None:
    stream = io.StringIO()
    table = Table("digest", "text")
    digest, text = "0" * 64, "a text that is longer than a line of a terminal " * 4
    table.add_row(digest, text)
    PlainConsole(file=stream).print(table)
    assert digest in stream.getvalue()
    assert text in stream.getvalue()


def test_what_a_locale_cannot_show_ends_no_command(answering: str) -> None:
    ended = memserve("search", "x", "-n", "notes", "--address", answering, **ASCII_LOCALE)
    assert ended.returncode == 0, ended.stderr.decode()
    assert ":warning:" in ended.stdout.decode()


def test_a_reader_that_has_seen_enough_sees_no_traceback() -> None:
    command = f"{sys.executable} -m memserve settings | head -1"
    ended = subprocess.run(command, shell=True, capture_output=True, timeout=60, check=False)
    assert b"Traceback" not in ended.stderr
    assert b"Exception" not in ended.stderr
