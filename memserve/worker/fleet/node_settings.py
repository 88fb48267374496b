"""Settings on a node of a Ray cluster: what all nodes must agree about, and what each decides for itself."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from memserve.config import Settings, load_settings
from memserve.errors import StartupError
from memserve.model.checks import with_models
from memserve.private_files import kept_secret, open_data_dir
from memserve.worker.fleet.fitting import fit_host_tier
from memserve.worker.fleet.local_ray import common_environment

log = logging.getLogger("memserve.workers")

# Ray has the token from its own variables already where KubeRay started it.
RAYS_TOKEN = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
# How long a node and its workers go on without Ray's head, which is a week: they serve over their own ports.
HEAD_AWAY_S = 7 * 24 * 3600
# Of the application: the name of its deployment, and its arguments.
DEPLOYMENT = "worker"
RESTART, SCALE, BY_NODES = "restart", "scale", "nodes"


def node_settings() -> Settings:
    """The settings of a worker on this node, with its model fetched and its folders made.

    Raises StartupError. They come from the environment that this node's Ray was started with.
    """
    settings = load_settings()
    check_cluster(settings)
    if not settings.module_store_url:
        log.warning("module_store_url is not set: modules that a gateway keeps elsewhere are not found here")
    open_data_dir(settings.data)
    on_a_node = 1 if not settings.worker_gpus else settings.most_workers
    fitted = fit_host_tier(with_models(settings).model_copy(update={"workers": on_a_node, "max_workers": 0}))
    return fitted.model_copy(update={"workers": settings.workers, "max_workers": settings.max_workers})


def check_cluster(settings: Settings) -> None:
    """Raises StartupError where nodes could not agree, because each would make up its own value."""
    for name, value in (("redis_url", settings.redis), ("salt_key", settings.salt_key.get_secret_value())):
        if not value:
            raise StartupError(
                f"setting {name} is needed on a Ray cluster: all gateways and workers must have the same"
            )


def cluster_environment(settings: Settings, *, makes_token: bool = False) -> dict[str, str]:
    """The environment that Ray reads in every process of a node, without secrets. Raises StartupError.

    makes_token: keep a token in data_dir where none is set, as the first node of a cluster may.
    """
    token = settings.ray_token_file
    if token is None and not makes_token and any(name in os.environ for name in RAYS_TOKEN):
        return _lasting({name: os.environ[name] for name in RAYS_TOKEN if name in os.environ})
    if token is None:
        token = settings.data / "ray_token"
        if makes_token:
            kept_secret(token)
    if not _is_readable(token):
        raise StartupError(f"no token of the Ray cluster in {token}: set ray_token_file to the head's")
    return _lasting(common_environment(token))


def _lasting(environment: dict[str, str]) -> dict[str, str]:
    return {
        **environment,
        "RAY_AUTH_MODE": "token",
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(HEAD_AWAY_S),
        "RAY_enable_metrics_collection": "0",
    }


def _is_readable(file: Path) -> bool:
    return file.is_file() and os.access(file, os.R_OK)
