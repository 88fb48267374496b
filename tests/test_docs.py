"""The README knows every command, setting, metric and RPC, and the steps of the pipeline."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from loadtests.safety.newcomer import quick_start
from memserve.cli.app import app
from memserve.cli.audit import audit_app
from memserve.cli.keys import keys_app
from memserve.cli.kv import kv_app
from memserve.cli.modules import modules_app
from memserve.config import Settings
from memserve.metrics.instruments import GatewayMetrics
from memserve.pb.v1 import activation_pb2, inference_pb2, memory_pb2, module_pb2, status_pb2
from memserve.pb.worker.v1 import worker_pb2

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    missing = [name for name in Settings.model_fields if f"`{name}`" not in README]
    assert missing == []


def test_every_metric_is_in_the_readme() -> None:
    names = [metric.name for metric in GatewayMetrics().registry.collect()]
    assert [name for name in names if name not in README] == []


def test_every_metric_of_the_redis_tier_is_in_the_readme() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of vLLM and torch, which it imports
        from memserve.worker.kv.metrics import COUNTERS, GAUGES, LABELLED
    names = [f"memserve_kv_tier_{name}_total" for name in (*COUNTERS, *LABELLED)] + [
        f"memserve_kv_tier_{name}" for name in GAUGES
    ]
    assert [name for name in names if f"`{name}`" not in README] == []


def test_every_rpc_is_in_the_readme() -> None:
    files = (activation_pb2, inference_pb2, memory_pb2, module_pb2, status_pb2, worker_pb2)
    rpcs = [
        f"{service.name}.{method.name}"
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    assert [rpc for rpc in rpcs if f"`{rpc}`" not in README] == []


def test_every_command_is_in_the_readme() -> None:
    commands = [
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    ]
    commands += [f"modules {command.name}" for command in modules_app.registered_commands]
    commands += [f"audit {command.name}" for command in audit_app.registered_commands]
    commands += [f"keys {command.name}" for command in keys_app.registered_commands]
    commands += [
        f"kv {command.callback.__name__}" for command in kv_app.registered_commands if command.callback
    ]
    assert [command for command in commands if f"`memserve {command}`" not in README] == []


def test_the_life_of_a_request_has_the_pipelines_steps() -> None:
    steps = set(
        re.findall(r"# (\d)\. ", (ROOT / "memserve" / "gateway" / "pipeline.py").read_text(encoding="utf-8"))
    )
    life = README[README.index("## The life of a request") :]
    numbered = re.findall(r"^(\d)\. ", life.split("\n## ")[0], flags=re.MULTILINE)
    assert [str(number) for number in range(1, 9)] == numbered
    assert steps <= set(numbered)


def test_every_file_that_the_readme_names_exists() -> None:
    names = re.findall(r"`((?:memserve|protos|deploy|tests|loadtests)/[\w./-]+)`", README)
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_quick_start_is_found_by_the_session_that_runs_it() -> None:
    commands, program = quick_start()
    assert commands[:2] == ["make demo", ".venv/bin/memserve up"]
    assert all(command.startswith(("make ", ".venv/bin/memserve ")) for command in commands)
    compile(program, "README.md", "exec")
