"""`memserve health`, against a real health service of gRPC."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from memserve.cli.app import app
from memserve.cli.health import asked

ROOT = Path(__file__).parents[2]
STATUS = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module")
def port() -> Iterator[tuple[str, health.HealthServicer]]:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    number = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{number}", servicer
    server.stop(None)


@pytest.mark.parametrize(
    ("live", "ready", "arguments", "said", "code"),
    [
        (STATUS.SERVING, STATUS.NOT_SERVING, [], "SERVING", 0),
        (STATUS.SERVING, STATUS.NOT_SERVING, ["--ready"], "NOT_SERVING", 1),
        (STATUS.SERVING, STATUS.SERVING, ["--ready"], "SERVING", 0),
        (STATUS.NOT_SERVING, STATUS.SERVING, [], "NOT_SERVING", 1),
        (STATUS.UNKNOWN, STATUS.SERVING, [], "UNKNOWN", 1),
    ],
)
def test_the_exit_status_says_what_the_port_says(
    port: tuple[str, health.HealthServicer], live: int, ready: int, arguments: list[str], said: str, code: int
) -> None:
    address, servicer = port
    servicer.set("", live)
    servicer.set("ready", ready)
    result = CliRunner().invoke(app, ["health", "--address", address, *arguments])
    assert (result.output.strip(), result.exit_code) == (said, code)


def test_a_service_that_the_port_does_not_know_is_not_healthy(
    port: tuple[str, health.HealthServicer],
) -> None:
    assert asked(port[0], "another", 2.0) == f"NOT_FOUND at {port[0]}"


def test_no_answer_is_not_healthy() -> None:
    result = CliRunner().invoke(app, ["health", "--address", "127.0.0.1:1"])
    assert (result.output.strip(), result.exit_code) == ("UNAVAILABLE at 127.0.0.1:1", 1)
    result = CliRunner().invoke(app, ["health", "--address", "nothing at all"])
    assert result.exit_code == 1
    assert "is no address" in result.output


def test_it_loads_no_other_command(port: tuple[str, health.HealthServicer]) -> None:
    """It is asked every few seconds."""
    address, servicer = port
    servicer.set("", STATUS.SERVING)
    look = (
        "import sys\n"
        f"sys.argv = ['memserve', 'health', '--address', '{address}']\n"
        "from memserve.cli.entry import main\n"
        "try:\n    main()\nfinally:\n"
        "    print([name for name in sys.modules if name.startswith('memserve.')], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    assert (done.stdout, done.returncode) == ("SERVING\n", 0), done.stderr
    assert "memserve.cli.health" in done.stderr
    assert "memserve.cli.app" not in done.stderr
    assert "memserve.config" not in done.stderr
