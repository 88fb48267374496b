"""Which files of a folder a client sends."""

from __future__ import annotations

from pathlib import Path

import pytest

from memserve.client.uploads import FILES, PROBES_FILE, KindFiles, kind_of_folder, upload_of
from memserve.memory.modules.kinds import table


def test_the_client_sends_the_files_that_the_gateway_takes() -> None:
    assert {
        kind: KindFiles(rules.files, rules.optional_files) for kind, rules in table.KINDS.items()
    } == FILES
    assert PROBES_FILE == table.PROBES_FILE


def test_the_first_file_of_a_kind_tells_the_kinds_apart() -> None:
    assert len({files.required[0] for files in FILES.values()}) == len(FILES)


@pytest.mark.parametrize("kind", FILES)
def test_a_folder_is_sent_without_the_files_that_are_no_module(kind: str, tmp_path: Path) -> None:
    files = FILES[kind]  # type: ignore[index]
    for name in (*files.required, *files.optional, PROBES_FILE, "README.md"):
        (tmp_path / name).write_bytes(b"x")
    header = upload_of("tone", tmp_path, "", (), "", "").header
    assert [file.file_name for file in header.files] == [*files.required, *files.optional, PROBES_FILE]
    assert kind_of_folder(tmp_path) is kind


def test_a_folder_that_is_no_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config\.json or expert_config\.json"):
        upload_of("tone", tmp_path, "", (), "", "")


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(b"{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"is a pickle.*convert it with: python -c"):
        upload_of("tone", tmp_path, "", (), "", "")
