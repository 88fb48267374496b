"""Cases from reports of people who run such systems, as they were reported, each for the kind that other
tests hold.

B01, B06, B07, B09, B10, B11, B14, B15 and B22 are here. B02 (a token without an embedding) and B04 (no system
role) are in `tests/gateway/test_any_template.py`, B03 (templates) in `tests/model/test_chat.py`, B05 (what
peft writes) in `tests/memory/modules/kinds/test_lora.py`, B17 (sizes elsewhere) and B18 (unreadable files) in
`tests/model/test_files.py`, B21 (a closed terminal) in `tests/stack/test_lifecycle.py`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import grpc
import pytest

from memserve.client import AsyncClient, CallFailed, Client
from memserve.domain import Sampling
from memserve.embedded import Stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

DEAD_PROXY = "http://127.0.0.1:9"


def memserve(
    stack: Stack, *arguments: str | bytes, stdin: bytes = b"", **environment: str
) -> tuple[int, str, str]:
    """The command as from a shell. Returns its status and what it printed to either stream."""
    command = [sys.executable, "-m", "memserve", *arguments]
    environ = {**os.environ, "MEMSERVE_ADDRESS": stack.address, **environment}
    ended = subprocess.run(command, input=stdin, capture_output=True, env=environ, timeout=60, check=False)
    return ended.returncode, ended.stdout.decode(), ended.stderr.decode(errors="replace")


def test_b01_stored_text_is_text(stack: Stack, client: Client) -> None:
    text = "Close the tag with [/INST] and write [bold] here."
    assert memserve(stack, "remember", "markup", text, "--source", "ticket [/x]")[0] == 0
    status, output, _ = memserve(stack, "search", "close the tag", "-n", "markup")
    assert status == 0
    assert all(part in output for part in ("[/INST]", "[bold]", "ticket [/x]"))
    assert memserve(stack, "generate", "Which tag?", "--recall", "markup")[0] == 0


@pytest.mark.parametrize(
    "variable", ["http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"]
)
def test_b06_loopback_is_never_proxied(stack: Stack, variable: str) -> None:
    assert memserve(stack, "status", **{variable: DEAD_PROXY})[0] == 0


def refused_in_a_process(address: str) -> str:
    with Client(address) as client:
        return client.generate("").text


def test_b07_a_refusal_leaves_a_process_pool_as_it_is(stack: Stack) -> None:
    failed = CallFailed(grpc.StatusCode.NOT_FOUND, "x", "module", None)
    assert str(pickle.loads(pickle.dumps(failed))) == str(failed)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in range(2):
            with pytest.raises(CallFailed):
                pool.submit(refused_in_a_process, stack.address).result(timeout=60)


def test_b09_a_text_where_a_list_is_meant_is_a_list_of_one(client: Client) -> None:
    client.remember("one-text", "The code of Amber Lantern is 4071.")
    question = "What is the code of Amber Lantern?"
    answers = [
        client.generate(question, namespaces=namespaces, sampling=Sampling(max_tokens=32, stop=stop)).text  # type: ignore[arg-type]
        for namespaces, stop in ((["one-text"], ("Lantern",)), ("one-text", "Lantern"))
    ]
    assert answers[0] == answers[1]
    assert [hit.memory.text for hit in client.search("one-text", question)] == [
        "The code of Amber Lantern is 4071."
    ]


def test_b10_an_async_client_works_in_the_loop_that_uses_it(stack: Stack) -> None:
    client = AsyncClient(stack.address)
    versions = [asyncio.run(client.status()).version for _ in range(2)]
    assert versions[0] == versions[1]


def test_b11_bytes_that_are_not_utf8_are_one_line(stack: Stack) -> None:
    for arguments, stdin in ((("remember", "notes", "-"), b"caf\xe9"), (("generate", b"caf\xe9"), b"")):
        status, _, said = memserve(stack, *arguments, stdin=stdin)
        assert (status, said.count("\n")) == (1, 1)
        assert "UTF-8" in said


def test_b14_words_are_found_in_scripts_without_spaces(client: Client) -> None:
    texts = [
        "北京的天气今天很好",
        "上海的交通非常拥堵",
        "我喜欢在周末爬山",
        "パスワードは青い箱の中にあります",
        "회의는 화요일 오후에 열립니다",
    ]
    for text in texts:
        client.remember("cjk", text)
    for query, wanted in (("天气", 0), ("爬山", 2), ("青い箱", 3), ("회의", 4), ("화요일", 4)):
        (best,) = client.search(["cjk"], query, 1)
        assert best.memory.text == texts[wanted]
        assert best.bm25_score


def test_b15_messages_say_the_rule_and_the_remedy(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    assert memserve(stack, "status", "--address", f"http://{stack.address}")[0] == 0
    assert memserve(stack, "--version")[0] == 0
    for arguments, said in (
        (("generate", "x", "--max-tokens", "99999999"), "1048576"),
        (("status", "--api-key", "secret-key\r"), "--api-key: holds a character that no header takes"),
        (("modules", "push", "t", str(tmp_path)), "safetensors"),
    ):
        status, _, errors = memserve(stack, *arguments)
        assert status != 0
        assert said in errors
        assert "secret-key" not in errors


def test_b22_a_default_is_known_before_a_rule_is_checked(client: Client) -> None:
    assert client.generate("Hello.", sampling=Sampling(max_tokens=0, min_tokens=5)).usage.output_tokens >= 5
