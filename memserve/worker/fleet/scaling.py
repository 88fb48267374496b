"""What Ray Serve asks for the number of workers: `policy/routing/scaling.py` over what replicas report."""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from memserve.config import Settings
from memserve.policy.routing.scaling import wanted_workers

DEMAND = "demand"
"""The metric of a replica."""
REPORT_S, LOOK_BACK_S = 1.0, 5.0


def wanted_replicas(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Serve's controller calls this, and keeps to the bounds and delays of `autoscaling`."""
    demands = [value for value in context.aggregated_metrics.get(DEMAND, {}).values() if value is not None]
    return wanted_workers(demands, context.current_num_replicas), {}


def autoscaling(settings: Settings) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=settings.workers,
        max_replicas=settings.max_workers,
        metrics_interval_s=REPORT_S,
        look_back_period_s=LOOK_BACK_S,
        upscale_delay_s=settings.scale_up_s,
        downscale_delay_s=settings.scale_down_s,
        policy=AutoscalingPolicy(policy_function=f"{__name__}:{wanted_replicas.__name__}"),
    )
