"""Which files of a folder a client sends."""

from __future__ import annotations

from pathlib import Path

import pytest

from memserve.client.uploads import PROBES_FILE, kind_of_folder, upload_of
from memserve.domain.kinds import KINDS, KindRow
from memserve.memory.modules.kinds import table


def test_probes_are_named_as_the_gateway_names_them() -> None:
    assert PROBES_FILE == table.PROBES_FILE


def test_the_first_file_of_a_kind_tells_the_kinds_apart() -> None:
    assert len({row.files[0] for row in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize("row", KINDS.values(), ids=KINDS)
def test_a_folder_is_sent_without_the_files_that_are_no_module(row: KindRow, tmp_path: Path) -> None:
    for name in (*row.files, *row.optional_files, PROBES_FILE, "README.md"):
        (tmp_path / name).write_bytes(b"x")
    header = upload_of("tone", tmp_path, "", (), "", "").header
    assert [file.file_name for file in header.files] == [*row.files, *row.optional_files, PROBES_FILE]
    assert kind_of_folder(tmp_path) == row.kind


def test_a_folder_that_is_no_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config\.json or expert_config\.json"):
        upload_of("tone", tmp_path, "", (), "", "")


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(b"{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"is a pickle.*convert it with: python -c"):
        upload_of("tone", tmp_path, "", (), "", "")
