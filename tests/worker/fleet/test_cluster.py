"""The workers as an application on a Ray cluster, without one."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from memserve.config import Settings
from memserve.errors import StartupError
from memserve.worker.fleet.cluster import (
    IMPORT_PATH,
    SHRINK_S,
    application_config,
    room_for_workers,
    wanted_workers,
)
from memserve.worker.fleet.node_settings import check_cluster, cluster_environment, node_settings

AGREED = {"redis_url": "redis://registry", "salt_key": "k" * 32}


def test_what_is_deployed_is_what_serve_deploy_reads() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own import
        from ray.serve.schema import ServeDeploySchema

    config = application_config(3, {"restart": "1"})
    (application,) = ServeDeploySchema.model_validate({"applications": [config]}).applications
    assert application.import_path == IMPORT_PATH
    assert application.deployments[0].num_replicas == 3
    # As many as the application itself asks for.
    assert "deployments" not in application_config(None, {})


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The settings of a node: secrets in a directory, the rest in the environment."""
    for name in [name for name in os.environ if name.startswith("MEMSERVE_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "secrets"
    folder.mkdir()
    for name, value in AGREED.items():
        (folder / name).write_text(value, encoding="utf-8")
    monkeypatch.setenv("MEMSERVE_SETTINGS_DIR", str(folder))
    monkeypatch.setenv("MEMSERVE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("MEMSERVE_WORKERS", "3")
    return monkeypatch


def test_the_application_has_one_worker_a_node_and_names_no_setting(environment: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own import
        from memserve.worker.app import application

    deployment = application({})._bound_deployment
    assert (deployment.num_replicas, deployment._replica_config.max_replicas_per_node) == (3, 1)
    assert deployment.init_args == ("",)
    assert "num_gpus" not in deployment.ray_actor_options
    environment.setenv("MEMSERVE_WORKER_GPUS", "1")
    with_gpus = application({"restart": "1"})._bound_deployment
    assert with_gpus.ray_actor_options["num_gpus"] == 1
    assert with_gpus._replica_config.max_replicas_per_node is None
    with pytest.raises(StartupError, match="restrt"):
        application({"restrt": "1"})


def test_a_worker_reads_the_settings_of_its_own_node(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = node_settings()
    assert (settings.redis, settings.workers) == ("redis://registry", 3)
    assert Path(settings.model).is_dir()
    assert (tmp_path / "data").is_dir()


@pytest.mark.parametrize("missing", AGREED)
def test_what_each_node_would_make_up_for_itself_is_needed(missing: str) -> None:
    check_cluster(Settings(**AGREED))
    with pytest.raises(StartupError, match=missing):
        check_cluster(Settings(**{name: value for name, value in AGREED.items() if name != missing}))


def test_a_node_shows_the_heads_token_and_only_the_head_makes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    settings = Settings(data_dir=tmp_path)
    with pytest.raises(StartupError, match="ray_token_file"):
        cluster_environment(settings)
    made = cluster_environment(settings, makes_token=True)
    assert made["RAY_AUTH_MODE"] == "token"
    assert Path(made["RAY_AUTH_TOKEN_PATH"]).read_bytes()
    assert cluster_environment(settings) == made
    token = tmp_path / "token"
    token.write_text("t" * 64, encoding="utf-8")
    chosen = cluster_environment(Settings(data_dir=tmp_path, ray_token_file=token))
    assert chosen["RAY_AUTH_TOKEN_PATH"] == str(token)
    # KubeRay gives its token in Ray's own variable.
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of KubeRay")
    kuberay = cluster_environment(Settings(data_dir=tmp_path / "other"))
    assert kuberay["RAY_AUTH_TOKEN"] == "of KubeRay"
    assert "RAY_AUTH_TOKEN_PATH" not in kuberay


def test_there_is_room_for_one_worker_on_a_node_or_for_one_on_each_gpu() -> None:
    nodes = [
        {"Alive": True, "Resources": {"memory": 1.0}},
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 9.0, "GPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 9.0, "GPU": 4.0}},
    ]
    assert room_for_workers(nodes, 0) == 2
    assert room_for_workers(nodes, 1) == 4


def test_nodes_that_come_back_one_after_the_other_keep_their_workers() -> None:
    assert wanted_workers(3, 2, 0.0) == 3
    assert wanted_workers(0, 2, SHRINK_S - 1) == 2
    assert wanted_workers(1, 2, SHRINK_S) == 1
    # A cluster whose nodes have not come yet.
    assert wanted_workers(0, 0, 0.0) == 1


def test_ray_is_not_imported_before_its_environment_is_set() -> None:
    # Ray reads RAY_AUTH_MODE when it is imported. Without it a cluster with a token lets nobody in.
    look = "import sys, memserve.worker.fleet.cluster; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0
