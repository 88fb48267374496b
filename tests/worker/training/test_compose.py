"""Composing LoRAs: the arithmetic is peft's, the core is isolated, and what is lost is measured."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from memserve.demo import ADAPTERS_DIR, MODEL_DIR
from memserve.errors import InvalidModule
from memserve.memory.modules.kinds.files import BaseModel
from memserve.memory.modules.kinds.lora import CONFIG_FILE, WEIGHTS_FILE, check_lora
from memserve.model.files import open_model
from memserve.worker.training.compose import Composed, Progress, compose
from memserve.worker.training.merging import core_mask, core_merge, slerp
from memserve.worker.training.parent import Parent

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # peft imports what torch has deprecated
    from peft import PeftModel
    from peft.utils.merge_utils import ties

HARBOUR, OBSERVATORY = (Parent(name, ADAPTERS_DIR / name) for name in ("harbour", "observatory"))
BOTH = [HARBOUR, OBSERVATORY]
SHAPES = {"first.q_proj": (12, 8), "second.v_proj": (6, 10)}
LARGE = {"large.up_proj": (1040, 1030)}


class TwoLayers(torch.nn.Module):
    """A base model that peft can adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(8, 12, bias=False)})
        self.second = torch.nn.ModuleDict({"v_proj": torch.nn.Linear(10, 6, bias=False)})


def lora(
    folder: Path,
    rank: int,
    seed: int,
    weight: float = 1.0,
    *,
    only: str = "",
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Parent:
    """A random LoRA for TwoLayers. only: the one matrix that it adapts."""
    made = torch.Generator().manual_seed(seed)
    tensors = {}
    paths = [only] if only else list(SHAPES)
    for path in paths:
        out_size, in_size = {**SHAPES, **LARGE}[path]
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(rank, in_size, generator=made).to(
            dtype
        )
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(out_size, rank, generator=made).to(
            dtype
        )
    targets = sorted(path.rsplit(".", 1)[-1] for path in paths)
    entries = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": targets,
        "base_model_name_or_path": "",
        **config,
    }
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text(json.dumps(entries), encoding="utf-8")
    (folder / WEIGHTS_FILE).write_bytes(save(tensors))
    return Parent(folder.name, folder, weight)


def composed(parents: list[Parent], method: str, *, max_rank: int = 64, **asked: Any) -> Composed:
    last = list(compose(parents, method, max_rank=max_rank, **asked))[-1]
    assert isinstance(last, Composed)
    return last


def deltas(files: dict[str, bytes]) -> dict[str, torch.Tensor]:
    """Path to what the module adds to the base's weight."""
    config, tensors = json.loads(files[CONFIG_FILE]), load(files[WEIGHTS_FILE])
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    stems = [name.removesuffix("lora_A.weight") for name in tensors if name.endswith("lora_A.weight")]
    return {
        stem.removeprefix("base_model.model.").removesuffix("."): scale
        * (tensors[f"{stem}lora_B.weight"].float() @ tensors[f"{stem}lora_A.weight"].float())
        for stem in stems
    }


def files_of(parent: Parent) -> dict[str, bytes]:
    return {name: (parent.folder / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}


def by_peft(
    parents: list[Parent], combination: str, rank: int | None, density: float | None
) -> dict[str, torch.Tensor]:
    """What `add_weighted_adapter` makes of the same files."""
    model = PeftModel.from_pretrained(TwoLayers(), str(parents[0].folder), adapter_name="0")
    for number, each in enumerate(parents[1:], start=1):
        model.load_adapter(str(each.folder), str(number))
    names, weights = [str(number) for number in range(len(parents))], [each.weight for each in parents]
    model.base_model.add_weighted_adapter(
        names, weights, "merged", combination, svd_rank=rank, density=density
    )
    return {
        path: model.base_model.model.get_submodule(path).get_delta_weight("merged").detach()
        for path in SHAPES
    }


@pytest.mark.parametrize(
    ("method", "combination", "rank", "density"),
    [
        ("linear", "linear", None, None),
        ("cat", "cat", None, None),
        ("svd", "svd", None, None),
        ("svd", "svd", 2, None),
        ("ties", "ties_svd", 5, 0.4),
        ("ties", "ties_svd", 5, 1.0),
        ("dare", "dare_linear_svd", 5, 1.0),
    ],
)
@pytest.mark.filterwarnings("ignore:The density")
def test_a_method_gives_what_peft_gives(
    method: str, combination: str, rank: int | None, density: float | None, tmp_path: Path
) -> None:
    parents = [
        lora(tmp_path / "a", 4, 1, 0.75),
        lora(tmp_path / "b", 4, 2, -0.5, use_rslora=True),
        lora(tmp_path / "c", 4, 3, only="first.q_proj"),
    ]
    made = deltas(composed(parents, method, rank=rank or 0, density=density or 0.0).files)
    wanted = by_peft(parents, combination, rank, density)
    assert made.keys() == wanted.keys()
    for path, delta in wanted.items():
        torch.testing.assert_close(made[path], delta, rtol=1e-4, atol=1e-4)


def test_parents_of_other_ranks_and_dtypes_add_up(tmp_path: Path) -> None:
    parents = [
        lora(tmp_path / "a", 2, 1, dtype=torch.bfloat16),
        lora(tmp_path / "b", 3, 2, 0.5, dtype=torch.float16),
    ]
    one, other = (deltas(files_of(each)) for each in parents)
    for method in ("cat", "svd"):
        made = composed(parents, method, rank=5)
        for path, delta in deltas(made.files).items():
            torch.testing.assert_close(delta, one[path] + 0.5 * other[path], rtol=1e-4, atol=1e-4)
        assert made.recipe["measured"]["loss"] < 1e-6


def test_dare_keeps_its_density_of_each_delta_and_draws_by_its_seed(tmp_path: Path) -> None:
    parent, other = lora(tmp_path / "a", 4, 1), lora(tmp_path / "b", 4, 2, only="second.v_proj")
    made, again, else_drawn = (
        composed([parent, other], "dare", rank=8, density=0.5, seed=seed) for seed in (1, 1, 2)
    )
    assert made == again
    assert made.files[WEIGHTS_FILE] != else_drawn.files[WEIGHTS_FILE]
    # This matrix has one parent and is of full rank 8, so that nothing of the draw is lost.
    before, after = deltas(files_of(parent))["first.q_proj"], deltas(made.files)["first.q_proj"]
    torch.testing.assert_close(
        torch.minimum((after - 2 * before).abs(), after.abs()), torch.zeros_like(after), rtol=0, atol=1e-4
    )
    assert 0.25 < float((after.abs() > 1e-4).float().mean()) < 0.75


def test_a_core_that_stands_alone_is_taken_over_whole_and_the_rest_keeps_its_length() -> None:
    one, other = torch.zeros(4, 5), torch.zeros(4, 5)
    one[0, 0], one[1, 1], one[2, 2] = 9.0, 8.0, 3.0
    other[0, 0], other[3, 3], other[2, 4] = -7.0, 6.0, 3.0
    assert core_mask(one, 0.1).nonzero().tolist() == [[0, 0], [1, 1]]
    merged = core_merge([one, other], [1.0, 1.0], 0.1)
    assert merged[1, 1] == 8.0
    assert merged[3, 3] == 6.0
    rest = [each.clone() for each in (one, other)]
    for each in rest:
        each[1, 1] = each[3, 3] = 0.0
    wanted = slerp(*rest, 0.5)
    wanted[1, 1], wanted[3, 3] = 8.0, 6.0
    torch.testing.assert_close(merged, wanted)
    assert torch.equal(core_merge([one], [1.0], 0.1), one)


def test_slerp_goes_along_the_arc() -> None:
    east, north = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    for share in (0.0, 0.25, 0.5, 1.0):
        angle = share * math.pi / 2
        torch.testing.assert_close(
            slerp(east, north, share),
            torch.tensor([2 * math.cos(angle), 2 * math.sin(angle)]),
            atol=1e-6,
            rtol=1e-6,
        )
    torch.testing.assert_close(slerp(east, -east, 0.25), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(slerp(east, torch.zeros(2), 0.25), torch.tensor([1.5, 0.0]))


def test_the_core_method_reports_the_overlap_of_the_cores_and_what_the_rank_lost(tmp_path: Path) -> None:
    one, other = lora(tmp_path / "a", 4, 1), lora(tmp_path / "b", 4, 2)
    full = composed([one, other], "core", rank=8, density=0.2)
    mine, theirs, made = deltas(files_of(one)), deltas(files_of(other)), deltas(full.files)
    jaccards = []
    for path in SHAPES:
        torch.testing.assert_close(
            made[path], core_merge([mine[path], theirs[path]], [1.0, 1.0], 0.2), rtol=1e-3, atol=1e-3
        )
        cores = core_mask(mine[path], 0.2), core_mask(theirs[path], 0.2)
        jaccards.append(float((cores[0] & cores[1]).sum() / (cores[0] | cores[1]).sum()))
    overlap = full.recipe["measured"]["core_overlap"]
    assert overlap["share"] == 0.2
    assert overlap["mean"] == pytest.approx(sum(jaccards) / 2)
    assert full.recipe["measured"]["loss"] < 1e-5

    cut = composed([one, other], "core", rank=3, density=0.2)
    lost = sum(float((deltas(cut.files)[path] - made[path]).square().sum()) for path in SHAPES)
    whole = sum(float(made[path].square().sum()) for path in SHAPES)
    assert cut.recipe["measured"]["loss"] == pytest.approx(math.sqrt(lost / whole), rel=1e-3)
    heavy = [Parent("a", one.folder, 1e9), Parent("b", other.folder, 1e9)]
    assert composed(heavy, "core", rank=8, density=0.2).files == full.files
    twins = composed([one, Parent("twin", one.folder)], "core", rank=4)
    assert twins.recipe["measured"]["core_overlap"] == {"share": 0.1, "mean": 1.0, "overall": 1.0}
    for path, delta in mine.items():
        torch.testing.assert_close(deltas(twins.files)[path], delta, rtol=1e-3, atol=1e-3)


def test_compress_is_the_best_of_its_rank_and_says_what_it_lost(tmp_path: Path) -> None:
    parent = lora(tmp_path / "a", 4, 1, use_rslora=True)
    small = composed([parent], "compress", rank=2)
    lost = whole = 0.0
    for path, delta in deltas(files_of(parent)).items():
        values = torch.linalg.svdvals(delta)
        assert float((delta - deltas(small.files)[path]).norm()) == pytest.approx(
            float(values[2:].norm()), rel=1e-3
        )
        lost, whole = lost + float(values[2:].square().sum()), whole + float(values.square().sum())
    assert small.recipe["measured"]["loss"] == pytest.approx(math.sqrt(lost / whole), rel=1e-3)
    assert len(small.files[WEIGHTS_FILE]) < len(files_of(parent)[WEIGHTS_FILE])


def test_a_large_matrix_is_factorised_nearly_as_well_as_exactly(tmp_path: Path) -> None:
    parents = [
        lora(tmp_path / "a", 4, 1, only="large.up_proj"),
        lora(tmp_path / "b", 4, 2, only="large.up_proj"),
    ]
    merged = ties([deltas(files_of(each))["large.up_proj"] for each in parents], torch.ones(2), 0.5)
    values = torch.linalg.svdvals(merged)
    made = composed(parents, "ties", rank=6)
    assert made.recipe["measured"]["loss"] == pytest.approx(
        float(values[6:].norm() / values.norm()), rel=1e-3
    )
    assert made == composed(parents, "ties", rank=6)


@pytest.mark.parametrize("method", ["linear", "cat", "svd", "ties", "dare", "core", "compress"])
def test_the_result_is_a_module_of_the_base_and_the_same_each_time(method: str, tmp_path: Path) -> None:
    parents, rank = (BOTH, 0) if method != "compress" else ([HARBOUR], 4)
    steps = list(compose(parents, method, rank=rank, max_rank=32))
    assert [each for each in steps if isinstance(each, Progress)] == [
        Progress(done, 28) for done in range(29)
    ]
    made = steps[-1]
    assert isinstance(made, Composed)
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert made == composed(parents, method, rank=rank, max_rank=32)
    assert torch.equal(torch.rand(1), drawn)  # the process's own random numbers are left alone
    assert json.loads(json.dumps(made.recipe)) == made.recipe
    assert made.recipe["parents"] == [{"digest": each.digest, "weight": 1.0} for each in parents]
    for name, content in made.files.items():
        (tmp_path / name).write_bytes(content)
    checked = check_lora(
        tmp_path, BaseModel(open_model(MODEL_DIR).tensor_shapes(), vocab_size=3072, max_rank=32)
    )
    assert checked.rank == made.recipe["rank"] == {"linear": 16, "svd": 16, "compress": 4}.get(method, 32)
    assert checked.rewritten == {CONFIG_FILE: made.files[CONFIG_FILE]}
    assert {each.dtype for each in load(made.files[WEIGHTS_FILE]).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("parents", "method", "asked", "field", "rule"),
    [
        (BOTH, "average", {}, "method", "must be one of linear, cat, svd, ties, dare, core, compress"),
        ([], "svd", {}, "parents", "svd takes 2 to 8, not 0"),
        ([HARBOUR], "ties", {}, "parents", "ties takes 2 to 8, not 1"),
        ([HARBOUR] * 9, "cat", {}, "parents", "cat takes 2 to 8, not 9"),
        (BOTH, "compress", {"rank": 4}, "parents", "compress takes one, not 2"),
        (BOTH, "ties", {"density": 1.5}, "density", "above 0 and at most 1"),
        (BOTH, "ties", {"density": -0.1}, "density", "above 0 and at most 1"),
        (BOTH, "ties", {"density": math.nan}, "density", "above 0 and at most 1"),
        (BOTH, "svd", {"density": 0.5}, "density", "means nothing to svd"),
        (BOTH, "svd", {"rank": -1}, "rank", "must be 1 or more"),
        (BOTH, "svd", {"rank": 65}, "rank", "65 is above the workers' limit of 64; ask for rank=64"),
        (BOTH, "cat", {"max_rank": 16}, "rank", "32 is above the workers' limit of 16; ask for rank=16"),
        (BOTH, "cat", {"rank": 33}, "rank", "cat of these parents has rank 32"),
        (BOTH, "linear", {"rank": 32}, "rank", "linear gives rank 16"),
        ([HARBOUR], "compress", {}, "rank", "must be from 1 to 15"),
        ([HARBOUR], "compress", {"rank": 16}, "rank", "must be from 1 to 15"),
        (
            [HARBOUR, Parent("o", OBSERVATORY.folder, 0.0)],
            "svd",
            {},
            "parents.weight",
            "finite number other than 0",
        ),
        (
            [HARBOUR, Parent("o", OBSERVATORY.folder, math.inf)],
            "svd",
            {},
            "parents.weight",
            "finite number other than 0",
        ),
        ([HARBOUR, Parent("o", OBSERVATORY.folder, -1.0)], "core", {}, "parents.weight", "number above 0"),
        ([HARBOUR, Parent("o", OBSERVATORY.folder, 1e38)], "ties", {}, "model.layers", "NaN or infinite"),
        ([HARBOUR, Parent("h", HARBOUR.folder, -1.0)], "cat", {}, "parents", "cancel each other out"),
        ([HARBOUR, Parent("absent", MODEL_DIR / "absent")], "svd", {}, "parents", "cannot be read as a LoRA"),
    ],
)
def test_what_cannot_be_composed_is_refused_by_its_field(
    parents: list[Parent], method: str, asked: dict[str, Any], field: str, rule: str
) -> None:
    with pytest.raises(InvalidModule) as refused:
        composed(parents, method, **asked)
    assert refused.value.field.startswith(field)
    assert rule in refused.value.rule


def test_parents_of_different_bases_or_for_linear_of_different_ranks_are_refused(tmp_path: Path) -> None:
    parent = lora(tmp_path / "a", 2, 1)
    with pytest.raises(InvalidModule, match="linear adds factors of one rank, and theirs are 2, 3"):
        composed([parent, lora(tmp_path / "b", 3, 2)], "linear")
    other = lora(tmp_path / "c", 2, 2)
    tensors = load((other.folder / WEIGHTS_FILE).read_bytes())
    name = "base_model.model.second.v_proj.lora_A.weight"
    (other.folder / WEIGHTS_FILE).write_bytes(save({**tensors, name: tensors[name][:, :-1].contiguous()}))
    with pytest.raises(
        InvalidModule, match=r"different base models: second.v_proj is \[6, 9\] and \[6, 10\]"
    ):
        composed([parent, other], "svd")
