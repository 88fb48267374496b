"""The parts of `loadtests.cluster_tls` that need no hosts."""

from __future__ import annotations

import time
from pathlib import Path

from loadtests.cluster.cluster_tls.__main__ import _unserved, _wrong
from loadtests.cluster.cluster_tls.load import files_of
from loadtests.cluster.cluster_tls.rig import PARTS, Mounted
from loadtests.harness.certificates import new_trial, trusting_both
from memserve.tls.pem import read_pem


def test_certificates_are_mounted_as_kubernetes_does_and_change_at_once(tmp_path: Path) -> None:
    one, other = new_trial(tmp_path / "one", ["gw"]), new_trial(tmp_path / "other", ["gw"])
    mounted = Mounted(tmp_path / "mounted")
    for trial in (one, trusting_both(one, other, tmp_path / "both"), other):
        mounted.show(trial)
        for part in PARTS:
            shown, meant = (read_pem(files.files(part), time.time()) for files in (mounted, trial))
            assert shown == meant
    version = files_of(tmp_path / "mounted" / "client")
    assert isinstance(version.ca, Path) and version.ca.parent.name == "..v3"


def test_a_caller_that_is_served_wrongly_or_not_at_all_is_found() -> None:
    right = {"right": "served", "expired": "refused"}
    sound = {"wire": "a", "caller": right, "impostor": {"right": "taken", "expired": "refused"}}
    assert (_wrong([sound]), _unserved([sound])) == ([], [])
    open_to_all = {**sound, "caller": {**right, "expired": "served"}, "wire": "b"}
    fooled = {**sound, "impostor": {"right": "taken", "expired": "taken"}, "wire": "c"}
    closed = {**sound, "caller": {**right, "right": "refused"}, "wire": "d"}
    blind = {**sound, "impostor": {"right": "refused", "expired": "refused"}, "wire": "e"}
    rows = [open_to_all, fooled, closed, blind]
    assert _wrong(rows) == ["b: caller, expired", "c: impostor, expired"]
    assert _unserved(rows) == ["d", "e"]
