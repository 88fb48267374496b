"""PEFT LoRA files for the demo model's shapes, sound and broken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

LAYER = "model.layers.0.self_attn.q_proj"
A = f"base_model.model.{LAYER}.lora_A.weight"
B = f"base_model.model.{LAYER}.lora_B.weight"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

Tensors = dict[str, npt.NDArray[Any]]


def lora_config(**changes: Any) -> bytes:
    """adapter_config.json; a change to None leaves the entry out."""
    entries = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "bias": "none",
        "target_modules": ["q_proj"],
        **changes,
    }
    return json.dumps({name: value for name, value in entries.items() if value is not None}).encode()


def lora_tensors(shapes: Mapping[str, tuple[int, ...]], *, rank: int = 4, seed: int = 0) -> Tensors:
    """One adapted layer. shapes: of the base model."""
    out_size, in_size = shapes[f"{LAYER}.weight"]
    random = np.random.default_rng(seed)
    return {
        A: random.normal(size=(rank, in_size)).astype(np.float32),
        B: random.normal(size=(out_size, rank)).astype(np.float32),
    }


def lora_files(shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0) -> dict[str, bytes]:
    """The two files of a sound module."""
    return {CONFIG_FILE: lora_config(), WEIGHTS_FILE: save(lora_tensors(shapes, seed=seed))}


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def taken_apart(weights: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the tensors' bytes of a safetensors file."""
    begin = 8 + int.from_bytes(weights[:8], "little")
    return json.loads(weights[8:begin]), weights[begin:]


def put_together(header: Any, body: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + body


class _Cases:
    """Sound files, each changed in one thing."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.sound = lora_tensors(shapes)
        self.good = lora_files(shapes)
        self.header, self.body = taken_apart(self.good[WEIGHTS_FILE])
        self.cases: dict[str, tuple[dict[str, bytes], str]] = {}

    def with_config(self, case: str, config: bytes, field: str) -> None:
        self.cases[case] = ({**self.good, CONFIG_FILE: config}, field)

    def with_weights(self, case: str, weights: bytes, field: str) -> None:
        self.cases[case] = ({**self.good, WEIGHTS_FILE: weights}, field)

    def with_tensors(self, case: str, changes: Mapping[str, npt.NDArray[Any] | None], field: str) -> None:
        changed: Tensors = {
            name: tensor for name, tensor in {**self.sound, **changes}.items() if tensor is not None
        }
        self.with_weights(case, save(changed), field)

    def with_header(self, case: str, changes: Mapping[str, Any], field: str) -> None:
        self.with_weights(case, put_together({**self.header, **changes}, self.body), field)


def broken_files(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[dict[str, bytes], str]]:
    """Case to files and the field that its refusal must name."""
    cases = _Cases(shapes)
    _broken_configs(cases)
    _broken_headers(cases)
    _broken_tensors(cases)
    return cases.cases


def _broken_configs(cases: _Cases) -> None:
    cases.cases["no config"] = ({WEIGHTS_FILE: cases.good[WEIGHTS_FILE]}, CONFIG_FILE)
    cases.cases["no weights"] = ({CONFIG_FILE: cases.good[CONFIG_FILE]}, WEIGHTS_FILE)
    cases.with_config("config is no JSON", b"{", CONFIG_FILE)
    cases.with_config("config is no text", b"\xff\xfe\x00", CONFIG_FILE)
    cases.with_config("config is a list", b"[]", CONFIG_FILE)
    cases.with_config("config is nested without end", b"[" * 100_000, CONFIG_FILE)
    cases.with_config("config is too large", b" " * (1 << 20) + lora_config(), CONFIG_FILE)
    cases.with_config("another peft type", lora_config(peft_type="IA3"), f"{CONFIG_FILE}: peft_type")
    for rank in (0, -1, 17, 4.0, True, "4", None):
        cases.with_config(f"rank {rank!r}", lora_config(r=rank), f"{CONFIG_FILE}: r")
    for alpha in (float("nan"), float("inf"), 10**400, "8", True, None):
        cases.with_config(
            f"alpha {str(alpha)[:8]!r}", lora_config(lora_alpha=alpha), f"{CONFIG_FILE}: lora_alpha"
        )
    cases.with_config("alpha 0", lora_config(lora_alpha=0), f"{CONFIG_FILE}: lora_alpha")
    cases.with_config("bias", lora_config(bias="all"), f"{CONFIG_FILE}: bias")
    cases.with_config("dora", lora_config(use_dora=True), f"{CONFIG_FILE}: use_dora")
    cases.with_config(
        "modules to save", lora_config(modules_to_save=["lm_head"]), f"{CONFIG_FILE}: modules_to_save"
    )


def _broken_headers(cases: _Cases) -> None:
    cases.with_weights(
        "pickle",
        b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
        WEIGHTS_FILE,
    )
    cases.with_weights("no bytes but eight", bytes(8), WEIGHTS_FILE)
    cases.with_weights("header cut short", cases.good[WEIGHTS_FILE][:40], WEIGHTS_FILE)
    cases.with_weights("tensors cut short", cases.good[WEIGHTS_FILE][:-4], WEIGHTS_FILE)
    cases.with_weights("bytes behind the tensors", cases.good[WEIGHTS_FILE] + b"more", WEIGHTS_FILE)
    cases.with_weights(
        "bytes between the tensors",
        put_together({A: cases.header[A], B: shifted(cases.header[B], 4)}, cases.body + b"more"),
        WEIGHTS_FILE,
    )
    cases.with_weights("header is a list", put_together([], b""), WEIGHTS_FILE)
    cases.with_weights("no tensors", put_together({}, b""), WEIGHTS_FILE)
    cases.with_header("a tensor without an entry", {A: None}, WEIGHTS_FILE)
    cases.with_header("no offsets", {A: {**cases.header[A], "data_offsets": []}}, WEIGHTS_FILE)
    cases.with_header("three offsets", {A: {**cases.header[A], "data_offsets": [0, 1, 2]}}, WEIGHTS_FILE)
    cases.with_header("offsets as text", {A: {**cases.header[A], "data_offsets": ["0", "1"]}}, WEIGHTS_FILE)
    cases.with_header("negative offsets", {A: shifted(cases.header[A], -8)}, WEIGHTS_FILE)
    cases.with_header("offsets beyond the file", {A: shifted(cases.header[A], 1 << 40)}, WEIGHTS_FILE)
    cases.with_header("dtype is a list", {A: {**cases.header[A], "dtype": []}}, WEIGHTS_FILE)
    cases.with_header("dtype without end", {A: {**cases.header[A], "dtype": "F" * 100_000}}, WEIGHTS_FILE)
    cases.with_header("shape is a number", {A: {**cases.header[A], "shape": 4}}, WEIGHTS_FILE)
    cases.with_header("shape without end", {A: {**cases.header[A], "shape": [1] * 100_000}}, WEIGHTS_FILE)


def _broken_tensors(cases: _Cases) -> None:
    cases.with_tensors("a tensor's name without end", {"x" * 100_000: cases.sound[A]}, "x" * 200)
    cases.with_tensors(
        "a tensor's name with line ends",
        {"evil\r\nmemserve-admin: 1": cases.sound[A]},
        "evil??memserve-admin: 1",
    )
    cases.with_tensors("a tensor's name in Greek", {"ω\0": cases.sound[A], A: None, B: None}, "??")
    cases.with_header("a shape of fractions", {A: {**cases.header[A], "shape": [4.0, 128.0]}}, WEIGHTS_FILE)
    cases.with_header("metadata that is no text", {"__metadata__": {"a": 1}}, WEIGHTS_FILE)
    cases.with_tensors("NaN", {A: np.full_like(cases.sound[A], np.nan)}, A)
    cases.with_tensors("infinite", {B: np.full_like(cases.sound[B], np.inf)}, B)
    cases.with_tensors("wrong dtype", {A: cases.sound[A].astype(np.int8)}, A)
    cases.with_tensors("wrong shape", {A: cases.sound[A][:, :-1].copy()}, A)
    cases.with_tensors(
        "another rank than the config's", {A: cases.sound[A][:2].copy(), B: cases.sound[B][:, :2].copy()}, A
    )
    cases.with_tensors("transposed", {B: cases.sound[B].T.copy()}, B)
    cases.with_tensors(
        "unknown layer",
        {A.replace("layers.0", "layers.99"): cases.sound[A]},
        A.replace("layers.0", "layers.99"),
    )
    cases.with_tensors(
        "no linear layer",
        {"base_model.model.model.norm.lora_A.weight": cases.sound[A]},
        "base_model.model.model.norm.lora_A.weight",
    )
    cases.with_tensors("one side only", {B: None}, LAYER)
    cases.with_tensors("zero B", {B: np.zeros_like(cases.sound[B])}, WEIGHTS_FILE)
    cases.with_tensors("negative zero B", {B: -np.zeros_like(cases.sound[B])}, WEIGHTS_FILE)
    cases.with_tensors("zero A", {A: np.zeros_like(cases.sound[A])}, WEIGHTS_FILE)


def shifted(entry: Mapping[str, Any], by: int) -> dict[str, Any]:
    return {**entry, "data_offsets": [offset + by for offset in entry["data_offsets"]]}
