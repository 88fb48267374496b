"""The commands that speak to a gateway need no more than the client has installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from memserve import __version__
from memserve.pb.v1 import module_pb2
from tests.client.examples import ANSWER_PB, MODULE_PB, STATUS_PB, VERSION_PB
from tests.client.stub_gateway import StubGateway


def memserve(*arguments: str, address: str = "") -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEMSERVE_")}
    ended = subprocess.run(
        [sys.executable, "-m", "memserve", *arguments],
        env=environment | {"MEMSERVE_ADDRESS": address, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_it_tells_its_version_its_commands_and_its_settings() -> None:
    assert memserve("--version") == f"{__version__}\n"
    assert "generate" in memserve("--help")
    assert "--max-tokens" in memserve("generate", "--help")
    assert "MEMSERVE_PORT" in memserve("settings")


def test_an_answer_is_printed(stub: StubGateway) -> None:
    stub.replies["Generate"] = list(ANSWER_PB)
    assert memserve("generate", "q", "--max-tokens", "7", address=stub.address) == " a b\n"
    assert json.loads(memserve("generate", "q", "--json", address=stub.address))["text"] == " a b"
    assert stub.requests["Generate"][0].sampling.max_tokens == 7


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["status"], "w0"),
        (["modules", "list"], "tone"),
        (["modules", "show", "tone@3"], "q_proj"),
        (["kv", "usage"], "0 bytes"),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_a_gateway_has_is_shown(arguments: list[str], shown: str, stub: StubGateway) -> None:
    stub.replies = {
        "GetStatus": [STATUS_PB],
        "ListModules": [module_pb2.ListModulesResponse(modules=[MODULE_PB])],
        "GetVersion": [module_pb2.GetVersionResponse(version=VERSION_PB)],
    }
    assert shown in memserve(*arguments, address=stub.address)
