"""The fake worker of `gateway_overhead` on a host of its own, with the ports of a real worker.

Its settings come from the environment, as a real worker's do.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path

import grpc
from prometheus_client import REGISTRY

from loadtests.traffic.gateway_overhead.worker import LEASE_S, Worker, lease_of
from memserve.config import at, load_settings
from memserve.credentials import salt_key, worker_credential
from memserve.metrics.certificates import CertificateMetrics, FollowedCertificates
from memserve.metrics.port import serve_metrics
from memserve.model.files import open_model
from memserve.processes.supervised import repeat
from memserve.registry.leases import Registry
from memserve.tls.grpc_credentials import add_port
from memserve.tls.live import internal_tls
from memserve.tls.pem import WORKER_NAME
from memserve.worker.fleet.gateways_only import GatewaysOnly

LOOK_S = 0.2


async def main(worker_id: str, address: str, model_dir: str) -> None:
    """address: of this host."""
    settings = load_settings()
    model, worker = open_model(Path(model_dir), 4096), Worker()
    tls = internal_tls(settings, WORKER_NAME)
    followed = FollowedCertificates([tls], CertificateMetrics(REGISTRY))
    only = GatewaysOnly(worker_credential(salt_key(settings)), by_certificate=tls is not None)
    server = grpc.aio.server(interceptors=[only])
    server.add_generic_rpc_handlers((worker,))
    port = add_port(server, at(settings.worker_host, settings.worker_port), tls)
    await server.start()
    lease = lease_of(model, worker_id, f"{address}:{port}", f"{address}:{settings.worker_metrics_port}")
    registry = Registry(settings.redis)
    renew = partial(registry.renew_lease, lease, LEASE_S)
    with serve_metrics(settings, REGISTRY, settings.worker_metrics_port, tls):
        await renew()
        print(lease.address, flush=True)
        await asyncio.gather(
            repeat("pressure", worker.pace.own.look, 0.0),
            repeat("certificates", followed.look, LOOK_S),
            repeat("lease", renew, 1.0),
        )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
