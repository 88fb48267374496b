"""The host regions that killed engines left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_region_is_swept_only_when_no_process_has_it_mapped_or_open(tmp_path: Path) -> None:
    from memserve.worker.kv.host_regions import sweep_orphan_regions

    names = ["mapped", "open", "orphan"]
    mapped, opened, orphan = (tmp_path / f"vllm_offload_{name}.mmap" for name in names)
    other = tmp_path / "something_else.mmap"
    for path in (mapped, opened, orphan, other):
        path.write_bytes(bytes(32 << 20))
    program = (
        "import mmap, sys; a = open(sys.argv[1], 'r+b'); m = mmap.mmap(a.fileno(), 4096); a.close(); "
        "b = open(sys.argv[2]); "
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(mapped), str(opened)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdin is not None
    holder.stdout.readline()
    assert sweep_orphan_regions(tmp_path) == []  # all too young
    assert sweep_orphan_regions(tmp_path, minimum_age_s=0) == [orphan]
    holder.stdin.close()
    holder.wait()
    holder.stdout.close()
    assert set(sweep_orphan_regions(tmp_path, minimum_age_s=0)) == {mapped, opened}
    assert other.exists()
