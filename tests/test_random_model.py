"""The benchmarks' random model: its config tells the sizes of its weights."""

from __future__ import annotations

import json
from pathlib import Path

from loadtests.harness.engines import SHAPE
from loadtests.harness.random_model import VOCAB_SIZE, write_model
from memserve.model.files import open_model


def test_the_config_is_that_of_the_weights(tmp_path: Path) -> None:
    """The demo model's config, which stands beside the copied tokenizer, has other sizes."""
    folder = write_model(tmp_path / "model", 1)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config == {**SHAPE, "num_hidden_layers": 1, "vocab_size": VOCAB_SIZE}
    shapes = open_model(folder).tensor_shapes()
    assert shapes["model.embed_tokens.weight"] == (config["vocab_size"], config["hidden_size"])
