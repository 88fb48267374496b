"""Checkpoints know of which memories they were made."""

from __future__ import annotations

import json
from pathlib import Path

from memserve.worker.training.distil.kept import MEMORIES_FILE, KeptTrainings, folder_of


def test_checkpoints_of_an_erased_memory_go_and_one_that_does_not_say_goes_with_any(tmp_path: Path) -> None:
    kept = KeptTrainings(tmp_path)
    for order, keys in (("a" * 64, ["k1", "k2"]), ("b" * 64, ["k3"])):
        with kept.noting(order, keys):
            assert json.loads((folder_of(tmp_path, order) / MEMORIES_FILE).read_text("utf-8")) == keys
    (tmp_path / "old").mkdir()
    assert kept.forget(frozenset()) == 0
    assert kept.forget(frozenset({"k2", "other"})) == 2
    assert [folder.name for folder in tmp_path.iterdir()] == ["b" * 32]


def test_a_training_under_way_leaves_nothing_when_a_memory_of_it_is_erased(tmp_path: Path) -> None:
    kept = KeptTrainings(tmp_path)
    with kept.noting("a" * 64, ["k1"]):
        assert kept.forget(frozenset({"k9"})) == 0
        assert kept.forget(frozenset({"k1"})) == 1
        assert folder_of(tmp_path, "a" * 64).is_dir()
    assert list(tmp_path.iterdir()) == []
    assert KeptTrainings(tmp_path / "nowhere").forget(frozenset({"k1"})) == 0
