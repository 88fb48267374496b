"""The workers as an application of Ray Serve, by its import path: `memserve.worker.app:application`.

For `serve deploy`, for KubeRay's RayService, and for `memserve ray-node --head`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray import serve

from memserve.config import load_settings
from memserve.errors import StartupError
from memserve.worker.fleet.node_settings import BY_NODES, RESTART, SCALE, check_cluster
from memserve.worker.replica import worker_application


def application(args: Mapping[str, str]) -> serve.Application:
    """How many workers there are comes from the settings of the node that builds this.

    Each worker reads the settings of the node that it runs on.

    args: `restart`, which may be anything: another value has Serve replace all workers, one after the other.
    `scale`: with `nodes`, whoever deploys it says how many workers there are.
    Raises StartupError.
    """
    if unknown := set(args) - {RESTART, SCALE}:
        raise StartupError(f"the application has no argument {', '.join(sorted(unknown))}")
    settings = load_settings()
    check_cluster(settings)
    if args.get(SCALE) == BY_NODES:
        settings = settings.model_copy(update={"max_workers": 0})
    return worker_application(settings, None)
