"""A LoRA is checked against the base model: it fits, vLLM applies all of it, and it changes something."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from memserve.domain import ModuleKind
from memserve.errors import InvalidField, InvalidModule
from memserve.memory.modules.kinds import lora
from memserve.memory.modules.kinds.files import HEADER_MAX_BYTES, BaseModel, CheckedModule
from memserve.memory.modules.kinds.lora import check_lora
from memserve.memory.modules.kinds.table import check_module_name, files_check
from memserve.model.files import open_model
from tests.gateway.lora_files import (
    CONFIG_FILE,
    LAYER,
    WEIGHTS_FILE,
    A,
    B,
    broken_files,
    lora_config,
    lora_files,
    lora_tensors,
    put_together,
    taken_apart,
    write_files,
)

DEMO = Path(__file__).parents[4] / "memserve" / "demo"
SHAPES = {
    f"{LAYER}.weight": (256, 128),
    "model.norm.weight": (128,),
    "model.embed_tokens.weight": (512, 128),
    "lm_head.weight": (512, 128),
    "visual.blocks.0.attn.qkv.weight": (256, 128),
    "mtp.layers.0.mlp.up_proj.weight": (256, 128),
}
BASE = BaseModel(SHAPES, vocab_size=512, max_rank=16)
BROKEN = broken_files(SHAPES)


def checked(folder: Path, files: dict[str, bytes]) -> CheckedModule:
    return check_lora(write_files(folder, files), BASE)


def test_a_sound_module_has_its_rank_targets_and_figures(tmp_path: Path) -> None:
    found = checked(tmp_path, lora_files(SHAPES))
    assert (found.kind, found.rank, found.target_modules, len(found.digest)) == (
        ModuleKind.LORA,
        4,
        ("q_proj",),
        64,
    )
    tensors = lora_tensors(SHAPES)
    assert found.figures.delta_norm == pytest.approx(
        float(np.linalg.norm(2 * tensors[B] @ tensors[A])), rel=1e-4
    )


def test_the_digest_of_given_content_never_changes(tmp_path: Path) -> None:
    tensors = {
        name: np.arange(tensor.size, dtype=np.float32).reshape(tensor.shape)
        for name, tensor in lora_tensors(SHAPES).items()
    }
    found = checked(tmp_path, {CONFIG_FILE: lora_config(), WEIGHTS_FILE: save(tensors)})
    assert found.digest == "5f20c818f8f891d77a73f94122e4434293123a0c480120104721def9da76a72f"


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        (
            {},
            "adapts 1 of the 2 layers that target_modules names; model.layers.1.self_attn.q_proj is "
            "not in adapter_model.safetensors",
        ),
        ({"target_modules": ["q_proj", "up_proj"]}, "adapts 1 of the 3 layers that target_modules names"),
        ({"target_modules": [LAYER]}, ""),
        ({"layers_to_transform": [0]}, ""),
        ({"target_modules": "all-linear"}, ""),
    ],
)
def test_a_file_with_some_only_of_its_targets_warns(
    tmp_path: Path, config: dict[str, Any], warning: str
) -> None:
    shapes = {
        **SHAPES,
        "model.layers.1.self_attn.q_proj.weight": (256, 128),
        "model.layers.1.mlp.up_proj.weight": (256, 128),
    }
    files = {**lora_files(SHAPES), CONFIG_FILE: lora_config(**config)}
    found = check_lora(write_files(tmp_path, files), BaseModel(shapes, vocab_size=512, max_rank=16))
    assert found.warning.startswith(warning)
    assert bool(found.warning) == bool(warning)


@pytest.mark.parametrize("name", ["harbour", "observatory"])
def test_the_adapters_that_come_with_memserve_fit_the_demo_model(name: str) -> None:
    base = BaseModel(open_model(DEMO / "model").tensor_shapes(), vocab_size=3072, max_rank=64)
    found = files_check(ModuleKind.LORA)(DEMO / "adapters" / name, base)
    assert found.figures.effective_rank > 1


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_module_is_refused_by_the_field_at_fault(tmp_path: Path, case: str) -> None:
    files, field = BROKEN[case]
    with pytest.raises(InvalidModule) as refusal:
        checked(tmp_path, files)
    printable = "".join(
        letter if letter.isascii() and letter.isprintable() else "?" for letter in refusal.value.field
    )
    assert printable == field


@pytest.mark.parametrize(
    "layer", ["model.embed_tokens", "lm_head", "visual.blocks.0.attn.qkv", "mtp.layers.0.mlp.up_proj"]
)
def test_what_vllm_would_drop_is_refused(tmp_path: Path, layer: str) -> None:
    sound = lora_tensors(SHAPES)
    out_size = SHAPES[f"{layer}.weight"][0]
    name = f"base_model.model.{layer}.lora_A.weight"
    tensors = {**sound, name: sound[A], name.replace("lora_A", "lora_B"): np.ones((out_size, 4), np.float32)}
    with pytest.raises(InvalidModule, match="silently ignored") as refusal:
        checked(tmp_path, {**lora_files(SHAPES), WEIGHTS_FILE: save(tensors)})
    assert refusal.value.field == name


def test_sides_whose_product_is_zero_are_refused(tmp_path: Path) -> None:
    sound = lora_tensors(SHAPES)
    sound[A][1:] = 0
    sound[B][:, 0] = 0
    with pytest.raises(InvalidModule, match="would change nothing"):
        checked(tmp_path, {**lora_files(SHAPES), WEIGHTS_FILE: save(sound)})


@pytest.mark.parametrize(("norm", "sound"), [(9e-7, False), (1.1e-6, True)])
def test_a_delta_that_rounding_would_lose_is_refused(tmp_path: Path, norm: float, sound: bool) -> None:
    tensors = lora_tensors(SHAPES)
    tensors[B] *= norm / float(np.linalg.norm(2 * tensors[B] @ tensors[A]))
    files = {**lora_files(SHAPES), WEIGHTS_FILE: save(tensors)}
    if sound:
        assert checked(tmp_path, files).figures.delta_norm == pytest.approx(norm, rel=1e-3)
    else:
        with pytest.raises(InvalidModule, match="below 1e-06: the module would change nothing"):
            checked(tmp_path, files)


def test_a_header_that_is_too_long_is_refused_before_anything_parses_it(tmp_path: Path) -> None:
    # No reader could parse it: it is no JSON.
    weights = (HEADER_MAX_BYTES + 1).to_bytes(8, "little") + bytes(HEADER_MAX_BYTES + 1)
    with pytest.raises(
        InvalidModule,
        match=f"its header has {HEADER_MAX_BYTES + 1} bytes, at most {HEADER_MAX_BYTES} are taken",
    ):
        checked(tmp_path, {**lora_files(SHAPES), WEIGHTS_FILE: weights})


def test_a_model_of_the_operator_may_have_a_longer_header(tmp_path: Path) -> None:
    header, body = taken_apart(save({"weight": np.ones(2, np.float32)}))
    long = put_together({"__metadata__": {"note": "x" * HEADER_MAX_BYTES}, **header}, body)
    write_files(
        tmp_path,
        {
            "config.json": (DEMO / "model" / "config.json").read_bytes(),
            "tokenizer.json": b"{}",
            "model.safetensors": long,
        },
    )
    assert open_model(tmp_path).tensor_shapes() == {"weight": (2,)}


def test_every_setting_of_peft_is_known() -> None:
    """A new peft brings new ones: each is to be sorted here."""
    from peft import LoraConfig

    known = lora._NO_PART_IN_ANSWERS | lora._PLAIN_VALUES.keys() | lora._KNOWN_REFUSED
    assert {field.name for field in dataclasses.fields(LoraConfig)} - known == set()


@pytest.mark.parametrize("setting", sorted(lora._KNOWN_REFUSED | {"a_setting_of_tomorrow", "use_something"}))
@pytest.mark.parametrize("value", [True, 1, "on", ["x"], {"x": 1}])
def test_a_setting_that_is_more_than_plain_lora_is_refused_by_its_name(
    tmp_path: Path, setting: str, value: object
) -> None:
    with pytest.raises(InvalidModule) as refused:
        checked(tmp_path, lora_files(SHAPES) | {CONFIG_FILE: lora_config(**{setting: value})})
    assert refused.value.field == f"{CONFIG_FILE}: {setting}"


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_a_setting_that_is_off_is_plain(tmp_path: Path, value: object) -> None:
    plain = checked(tmp_path / "plain", lora_files(SHAPES))
    for number, setting in enumerate(sorted(lora._KNOWN_REFUSED | {"a_setting_of_tomorrow"})):
        files = lora_files(SHAPES) | {CONFIG_FILE: lora_config(**{setting: value})}
        assert checked(tmp_path / str(number), files).digest == plain.digest


@pytest.mark.parametrize(
    ("setting", "plain", "refused"),
    [
        (
            "init_lora_weights",
            [True, False, "gaussian", "orthogonal", "eva"],
            ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", 7],
        ),
        ("task_type", ["CAUSAL_LM", None], ["SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION", 1]),
        ("bias", ["none", None], ["all", "lora_only", True]),
        ("use_rslora", [True, False, None], ["yes", 2, [1]]),
        ("lora_dropout", [0.0, 0.1], []),
        ("target_modules", ["all-linear", ["q_proj"], None], []),
    ],
)
def test_settings_with_several_plain_values(
    tmp_path: Path, setting: str, plain: list[object], refused: list[object]
) -> None:
    for number, value in enumerate(plain):
        checked(tmp_path / str(number), lora_files(SHAPES) | {CONFIG_FILE: lora_config(**{setting: value})})
    for value in refused:
        with pytest.raises(InvalidModule, match=setting):
            checked(tmp_path / "refused", lora_files(SHAPES) | {CONFIG_FILE: lora_config(**{setting: value})})


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
    ],
)
def test_a_prefix_that_is_the_fault_is_named(tmp_path: Path, name: str) -> None:
    tensors = lora_tensors(SHAPES)
    with pytest.raises(InvalidModule, match=f"another prefix than the base model's layers: rename it to {A}"):
        checked(tmp_path, {CONFIG_FILE: lora_config(), WEIGHTS_FILE: save({name: tensors[A], B: tensors[B]})})


def test_the_digest_is_of_the_content_not_of_the_files_form(tmp_path: Path) -> None:
    files = lora_files(SHAPES)
    header, body = taken_apart(files[WEIGHTS_FILE])
    reordered = put_together({"__metadata__": {"format": "pt"}, B: header[B], A: header[A]}, body)
    config = json.dumps({"lora_dropout": 0.1, **json.loads(lora_config())}, indent=2).encode()
    assert (
        checked(tmp_path / "1", files).digest
        == checked(tmp_path / "2", {CONFIG_FILE: config, WEIGHTS_FILE: reordered}).digest
    )


@pytest.mark.parametrize("change", ["weight", "alpha", "rslora", "dtype"])
def test_what_changes_the_answer_changes_the_digest(tmp_path: Path, change: str) -> None:
    tensors = lora_tensors(SHAPES)
    config = lora_config()
    match change:
        case "weight":
            tensors[A][0, 0] += 1
        case "alpha":
            config = lora_config(lora_alpha=16)
        case "rslora":
            config = lora_config(use_rslora=True)
        case "dtype":
            tensors = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    changed = {CONFIG_FILE: config, WEIGHTS_FILE: save(tensors)}
    assert checked(tmp_path / "1", lora_files(SHAPES)).digest != checked(tmp_path / "2", changed).digest


def test_what_is_kept_is_checked_to_the_last_field_and_has_the_same_digest(tmp_path: Path) -> None:
    config = lora_config(
        auto_mapping={"evil": 1},
        base_model_name_or_path="../../etc/passwd",
        revision="x",
        target_modules=["all"],
    )
    found = checked(tmp_path, {**lora_files(SHAPES), CONFIG_FILE: config})
    kept = json.loads(found.rewritten[CONFIG_FILE])
    assert set(kept) == {
        "base_model_name_or_path", "bias", "lora_alpha", "peft_type", "r", "target_modules", "task_type",
        "use_rslora"
    }  # fmt: skip
    assert (kept["base_model_name_or_path"], kept["target_modules"]) == ("", ["q_proj"])
    assert checked(tmp_path, found.rewritten).digest == found.digest


def test_bfloat16_weights_have_the_figures_of_their_values(tmp_path: Path) -> None:
    tensors = lora_tensors(SHAPES)
    halves = {name: (tensor.view(np.uint32) >> 16).astype(np.uint16) for name, tensor in tensors.items()}
    header, body = taken_apart(save(halves))
    stored = put_together({name: {**entry, "dtype": "BF16"} for name, entry in header.items()}, body)
    rounded = {name: (half.astype(np.uint32) << 16).view(np.float32) for name, half in halves.items()}
    found = checked(tmp_path / "1", {**lora_files(SHAPES), WEIGHTS_FILE: stored})
    assert (
        found.figures == checked(tmp_path / "2", {**lora_files(SHAPES), WEIGHTS_FILE: save(rounded)}).figures
    )


def test_a_file_that_safetensors_cannot_read_never_gets_the_digest_of_a_sound_one(tmp_path: Path) -> None:
    for number, (files, _) in enumerate(BROKEN.values()):
        folder = write_files(tmp_path / str(number), files)
        try:
            check_lora(folder, BASE)
        except InvalidModule:
            continue
        load_file(folder / WEIGHTS_FILE)


@pytest.mark.parametrize("name", ["a", "0", "tone-v1.2_b", "a" * 64])
def test_a_plain_name_is_fine(name: str) -> None:
    check_module_name("name", name)


@pytest.mark.parametrize(
    "name", ["", "A", ".a", "-a", "a/b", "../a", "a b", "a\n", "é", "a" * 65, "a'", 'a"', "a\0"]
)
def test_any_other_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidField):
        check_module_name("name", name)


def test_a_tensor_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    files = lora_files(SHAPES)
    weights = files[WEIGHTS_FILE]
    length = int.from_bytes(weights[:8], "little")
    header, body = weights[8 : 8 + length], weights[8 + length :]
    repeated = header.rstrip()[:-1] + b"," + header.strip()[1:]
    made = len(repeated).to_bytes(8, "little") + repeated + body
    with pytest.raises(InvalidModule, match="not a safetensors file"):
        checked(tmp_path, {**files, WEIGHTS_FILE: made})
