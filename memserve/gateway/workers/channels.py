"""The channel to a worker, and the next one when this gateway's certificate changes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc

from memserve.channels import NO_PROXY, bearer
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.pb.worker.v1 import worker_pb2_grpc as rpc
from memserve.tls.grpc_credentials import WORKER_OPTIONS, channel_credentials
from memserve.tls.live import LiveTls
from memserve.tls.pem import Pem

log = logging.getLogger("memserve.gateway.workers.channels")

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    *NO_PROXY,
)
_HANDSHAKE_FAILED = ("handshake", "verification check")


class WorkerChannel:
    """One channel with the calls of `WorkerService`, which carry what the worker knows a gateway by."""

    def __init__(self, address: str, credential: str, pem: Pem | None) -> None:
        """Does not connect. Raises ValueError or TypeError where the address is no address."""
        self.pem = pem
        self.calls = 0
        """Under way."""
        if pem is None:
            self.channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        else:
            options = (*CHANNEL_OPTIONS, *WORKER_OPTIONS)
            self.channel = grpc.aio.secure_channel(address, channel_credentials(pem), options=options)
        self.stub: Any = rpc.WorkerServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.generate, self.bearer = self.stub.Generate, bearer(credential)
        for method in pb.DESCRIPTOR.services_by_name["WorkerService"].methods:
            call = partial(getattr(self.stub, method.name), metadata=self.bearer)
            setattr(self.stub, method.name, call)


class WorkerChannels:
    """The channel of the newest certificate. A channel of an older one closes when its calls have ended."""

    def __init__(self, address: str, credential: str, tls: LiveTls | None) -> None:
        """tls: what the worker sees. None: no TLS. Raises ValueError or TypeError as `WorkerChannel`."""
        self._address, self._credential, self._tls = address, credential, tls
        self._newest = WorkerChannel(address, credential, self.pem)
        self._open = [self._newest]
        self._closed = self._said = False

    @property
    def pem(self) -> Pem | None:
        """What new calls go with."""
        return self._tls.current if self._tls is not None else None

    @contextlib.asynccontextmanager
    async def calling(self) -> AsyncIterator[WorkerChannel]:
        """The channel for one call, which stays open until the call has ended."""
        if self._newest.pem is not self.pem and not self._closed:
            before = self._newest
            self._newest = WorkerChannel(self._address, self._credential, self.pem)
            self._open.append(self._newest)
            self._said = False
            await self._close_unused(before)
        channel = self._newest
        channel.calls += 1
        try:
            yield channel
        finally:
            channel.calls -= 1
            await self._close_unused(channel)

    def failed(self, detail: str) -> None:
        """A call has not come through. A handshake that fails is logged, once for each certificate."""
        if self._tls is None or self._said or not any(word in detail.lower() for word in _HANDSHAKE_FAILED):
            return
        self._said = True
        log.error(
            "the worker at %s and this gateway do not accept each other's certificates (internal_tls_*): %s",
            self._address,
            detail,
        )

    async def close(self) -> None:
        self._closed = True
        for channel in self._open:
            await channel.channel.close()

    async def _close_unused(self, channel: WorkerChannel) -> None:
        if channel is not self._newest and not channel.calls and channel in self._open:
            self._open.remove(channel)
            await channel.channel.close()
