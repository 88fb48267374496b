"""`memserve bench` as a user runs it, against a gateway that answers what the test says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import grpc
import pytest

from memserve.pb.v1 import inference_pb2 as pb
from memserve.pb.v1 import status_pb2
from tests.client.stub_gateway import Refusal, StubGateway

LOOSE = ("--set", "limits.late_p99_ms=2000", "--set", "limits.cpu_share=8")
QUICK = ("chat", "--rate", "30", "--seconds", "0.5", *LOOSE)


@pytest.fixture
def gateway() -> Iterator[StubGateway]:
    stub = StubGateway()
    stub.replies["GetStatus"] = [status_pb2.GetStatusResponse(version="9", model="m")]
    usage = pb.Usage(prompt_tokens=10, output_tokens=1)
    stub.replies["Generate"] = [
        pb.GenerateResponse(route=pb.Route(worker_id="w0")),
        pb.GenerateResponse(text=pb.TextDelta(text="a", token_ids=[1])),
        pb.GenerateResponse(usage=usage),
    ]
    yield stub
    stub.close()


def command(address: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "memserve", "bench", *words, "--address", address]


def bench(gateway: StubGateway, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(gateway.address, *words),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def test_a_run_prints_its_figures_and_writes_what_repeats_it(gateway: StubGateway, tmp_path: Path) -> None:
    folder = tmp_path / "load"
    done = bench(gateway, *QUICK, "--report", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    assert "goodput 100.0 % of" in done.stderr and "cold: every prompt" in done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    offered = run["figures"]["offered"]
    assert offered == run["figures"]["outcomes"]["met"] == len(gateway.requests["Generate"]) > 0
    record = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    assert len(record["runs"][0]["rows"]) == offered
    assert record["server"]["model"] == "m" and record["generator"]["python"] and record["way"] == "gRPC"
    report = (folder / "report.md").read_text(encoding="utf-8")
    for picture in ("ttft-over-time.svg", "ttft.svg"):
        assert f"]({picture})" in report
        drawn = ElementTree.fromstring((folder / picture).read_text(encoding="utf-8"))
        assert drawn.tag.endswith("svg") and len(list(drawn.iter())) > offered

    before = [request.messages[-1].content for request in gateway.requests["Generate"]]
    again = bench(gateway, "--repeat", str(folder / "bench.json"), "--json")
    assert again.returncode == 0, again.stderr
    after = [request.messages[-1].content for request in gateway.requests["Generate"]][offered:]
    assert json.loads(again.stdout)["scenario"] == record["scenario"]

    def without_salt(texts: list[str]) -> list[str]:
        return sorted(text.split(" ", 1)[1] for text in texts)

    assert without_salt(after) == without_salt(before)
    assert {text.split()[0] for text in after}.isdisjoint(text.split()[0] for text in before)


def test_a_trace_is_replayed_and_only_the_same_trace_repeats_it(gateway: StubGateway, tmp_path: Path) -> None:
    trace, saved = tmp_path / "trace.jsonl", tmp_path / "saved.json"
    line = {"timestamp": 100, "input_length": 600, "output_length": 20, "hash_ids": [1, 2]}
    trace.write_text(json.dumps(line) + "\n" + json.dumps(line | {"timestamp": 300}), encoding="utf-8")
    words = ("mooncake", "--trace", str(trace), "--factor", "2", "--seconds", "1", *LOOSE)
    done = bench(gateway, *words, "--save", str(saved))
    assert done.returncode == 0, done.stderr
    record = json.loads(saved.read_text(encoding="utf-8"))
    assert [row["intended_s"] for row in record["runs"][0]["rows"]] == [0.05, 0.15]
    assert len(record["trace"]["sha256"]) == 64
    trace.write_text(json.dumps(line), encoding="utf-8")
    again = bench(gateway, "--repeat", str(saved))
    assert again.returncode == 1
    assert "is not the trace of that run" in again.stderr


def test_an_invalid_run_says_why_and_has_a_status_of_its_own(gateway: StubGateway) -> None:
    done = bench(gateway, *QUICK, "--set", "limits.late_p99_ms=0.0001")
    assert done.returncode == 3
    assert "INVALID: the generator sent late" in done.stdout


def test_a_sweep_finds_no_knee_where_everything_is_refused_and_says_so(gateway: StubGateway) -> None:
    gateway.replies["Generate"] = [Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")]
    rates = ("--rates", "20,40", "--seeds", "2", "--seconds", "0.3")
    done = bench(gateway, "chat", *rates, *LOOSE, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["knee"]["bound"] == "below 20/s"
    assert len(found["runs"]) == 4
    for run in found["runs"]:
        assert run["figures"]["outcomes"]["refused"] == run["figures"]["offered"]


def test_ctrl_c_ends_a_run_early_and_shows_what_there_is(gateway: StubGateway) -> None:
    words = command(gateway.address, "chat", "--rate", "20", "--seconds", "60", *LOOSE)
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    ) as running:
        deadline_s = time.monotonic() + 30
        while len(gateway.requests["Generate"]) < 5 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        os.kill(running.pid, signal.SIGINT)
        said, _ = running.communicate(timeout=30)
    assert running.returncode == 130, said
    assert "INCOMPLETE: it was ended before its time" in said
    assert "goodput" in said and "met" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("no-such",), "no-such: is no bundled scenario"),
        (("chat", "--set", "slo.tfft_ms=1"), "chat: slo.tfft_ms: is no key; did you mean ttft_ms?"),
        (("chat", "--rates", "1,x"), "--rates: 1,x: numbers with commas"),
        (("chat", "--rates", "1,1"), "--rates: each rate once"),
        (("chat", "--rates", "9000,9999", "--seconds", "99"), "--rates: 1880901 requests in all"),
        (("chat", "--rates", "1,2", "--search"), "--search: finds the rates itself"),
        (("mooncake",), "--trace: no file"),
        (("chat", "--http", "ftp://x"), "--http: ftp://x is no address"),
        (("--repeat", "/nowhere.json"), "--repeat /nowhere.json: cannot be read"),
        (("chat",), "no gateway answers at 127.0.0.1:1"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(words: tuple[str, ...], said: str) -> None:
    done = subprocess.run(
        command("127.0.0.1:1", *words),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"memserve: {said}" in done.stderr and len(done.stderr.splitlines()) == 1
