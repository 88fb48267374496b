"""What a model can be named by, which files of it are fetched, and which names are refused."""

from __future__ import annotations

from typing import Any

import pytest

from memserve.errors import StartupError
from memserve.model.fetch.progress import progress_line
from memserve.model.fetch.sources import check_name, is_wanted, source_of
from memserve.model.fetch.stores import FsspecStore


@pytest.mark.parametrize(
    ("name", "model", "is_hub"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B", True),
        ("s3://bucket/models/qwen", "qwen", False),
        ("s3://bucket/models/qwen/", "qwen", False),
        ("gs://bucket/a~b$c", "a-b-c", False),
        ("memory://m", "m", False),
        ("file:///models/tiny", "tiny", False),
        ("https://host/..", "model", False),
        ("org/partial", "partial-model", True),
        ("s3://bucket/lock/", "lock-model", False),
    ],
)
def test_a_source_says_what_the_model_is_called(name: str, model: str, is_hub: bool) -> None:
    source = source_of(name, "model")
    assert (source.model, source.is_hub) == (model, is_hub)


def test_two_sources_have_two_folders() -> None:
    keys = {source_of(name, "model").key for name in ("a/m", "b/m", "s3://a/m", "s3://b/m", "s3://b/m/")}
    assert len(keys) == 4


@pytest.mark.parametrize(
    "name",
    [
        "m",
        "/nowhere",
        "./m",
        "../a/m",
        "a/b/c",
        "a/",
        "-a/m",
        "simplecache::s3://b/m",
        "://x",
        "A://x",
        "https://h/m?key=x",
    ],
)
def test_a_name_that_is_neither_is_refused(name: str) -> None:
    with pytest.raises(StartupError, match="no such directory"):
        source_of(name, "model")


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(StartupError, match="no password") as refused:
        source_of("https://user:hunter2@host/m", "model")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "with_weights", "without"),
    [
        ("config.json", True, True),
        ("tokenizer.model", True, True),
        ("vocab.txt", True, True),
        ("additional_chat_templates/rag.jinja", True, True),
        ("1_Pooling/config.json", True, True),
        ("model.safetensors.index.json", True, True),
        ("model-00001-of-00002.safetensors", True, False),
        ("onnx/model.safetensors", False, False),
        ("pytorch_model.bin", False, False),
        ("weights.pt", False, False),
        ("weights.pkl", False, False),
        ("modeling_custom.py", False, False),
        (".hidden.json", False, False),
        (".cache/x.json", False, False),
        ("a/b/c.json", False, False),
        ("README.md", False, False),
    ],
)
def test_only_what_serving_needs_is_fetched(name: str, with_weights: bool, without: bool) -> None:
    assert is_wanted(name, weights=True) == with_weights
    assert is_wanted(name, weights=False) == without


HOSTILE = [
    "../config.json", "a/../../config.json", "/etc/config.json", "a//config.json", "./config.json",
    "..\\config.json", "con\nfig.json", "config\x00.json", "a" * 300 + ".json",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(StartupError, match="a name that memserve does not write"):
        check_name(name)


class HostileFiles:
    """A store's file system that lists a hostile name beside a good one."""

    def __init__(self, name: str) -> None:
        self._names = ("bucket/m/config.json", f"bucket/m/{name}", "bucket/other/config.json")

    def find(self, root: str, **_: Any) -> dict[str, dict[str, Any]]:
        return {name: {"size": 1, "type": "file"} for name in self._names}


@pytest.mark.parametrize("name", [name for name in HOSTILE if not name.startswith("/")])
def test_a_store_that_lists_such_a_name_is_not_fetched_from(name: str) -> None:
    with pytest.raises(StartupError, match="does not write"):
        FsspecStore(HostileFiles(name), "bucket/m").files(weights=True)


def test_files_beside_the_model_are_not_its_files() -> None:
    assert [file.name for file in FsspecStore(HostileFiles("b.json"), "bucket/m").files(weights=True)] == [
        "b.json",
        "config.json",
    ]


@pytest.mark.parametrize(
    ("done", "total", "speed", "line"),
    [
        (370_000_000, 1_000_000_000, 21e6, "fetching m: 37 % of 1 GB, 21 MB/s, 30 s left"),
        (1_000, 0, 500.0, "fetching m: 1 kB, 500 B/s"),
        (0, 10_000, 0.0, "fetching m: 0 % of 10 kB, 0 B/s"),
        (12_000, 10_000, 1.0, "fetching m: 100 % of 10 kB, 1 B/s"),
    ],
)
def test_a_line_says_how_far_it_is_and_how_fast(done: int, total: int, speed: float, line: str) -> None:
    assert progress_line("m", done, total, speed) == line
