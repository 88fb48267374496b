# Generated from ../_async/activation.py by `make client`; do not edit.
"""The client's calls of `ActivationService`: `Client.activation`."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from memserve.client._sync.connection import Connection
from memserve.client.values import CachedPrefix, CacheUsage, Conversation, Evicted
from memserve.client.wire.activation import cached_of, evicted_of, prefix_of, usage_of, warmth_of
from memserve.domain import Warmth
from memserve.pb.v1 import activation_pb2 as pb


class ActivationCalls:
    """The KV of prompt prefixes.

    A prefix is its messages, and the module that they are asked with. A string is one message of the user.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def lookup(self, messages: Conversation, *, module: str = "", model: str = "") -> CachedPrefix:
        """How much of a prefix is cached, and where."""
        stub = self._connection.stubs.activation
        request = pb.LookupPrefixRequest(prefix=prefix_of(messages, module, model))
        return cached_of(self._connection.call(stub.LookupPrefix, request))

    def warm(
        self, messages: Conversation, *, module: str = "", model: str = "", worker_id: str = ""
    ) -> Generator[Warmth, None, None]:
        """Compute a prefix and store it in Redis. Yields progress. The last value has `done` set.

        worker_id: where it is computed. Empty: on the least busy worker.
        """
        stub = self._connection.stubs.activation
        request = pb.WarmPrefixRequest(prefix=prefix_of(messages, module, model), worker_id=worker_id)
        with contextlib.closing(self._connection.stream(stub.WarmPrefix, request)) as responses:
            for response in responses:
                yield warmth_of(response)

    def pin(self, messages: Conversation, duration_s: int, *, module: str = "", model: str = "") -> int:
        """Keep a prefix in Redis. Redis must have all of it already. Returns the pinned tokens."""
        stub = self._connection.stubs.activation
        request = pb.PinPrefixRequest(prefix=prefix_of(messages, module, model), duration_s=duration_s)
        return self._connection.call(stub.PinPrefix, request).pinned_tokens

    def unpin(self, messages: Conversation, *, module: str = "", model: str = "") -> int:
        """Take back the pin of a prefix. Returns the tokens that were pinned."""
        stub = self._connection.stubs.activation
        request = pb.UnpinPrefixRequest(prefix=prefix_of(messages, module, model))
        return self._connection.call(stub.UnpinPrefix, request).unpinned_tokens

    def evict(self, messages: Conversation, *, module: str = "", model: str = "") -> Evicted:
        """Remove a prefix from Redis, from its first chunk on."""
        stub = self._connection.stubs.activation
        request = pb.EvictPrefixRequest(prefix=prefix_of(messages, module, model))
        response = self._connection.call(stub.EvictPrefix, request)
        return evicted_of(response)

    def evict_module(self, module_digest: str) -> Evicted:
        """Remove the KV that was computed with a version of a module. The version may be deleted already."""
        stub = self._connection.stubs.activation
        request = pb.EvictModuleRequest(module_digest=module_digest)
        response = self._connection.call(stub.EvictModule, request)
        return evicted_of(response)

    def evict_tenant(self) -> Evicted:
        """Remove all KV of the caller's tenant from Redis."""
        stub = self._connection.stubs.activation
        response = self._connection.call(stub.EvictTenant, pb.EvictTenantRequest())
        return evicted_of(response)

    def usage(self) -> CacheUsage:
        """What Redis holds, and the quotas."""
        stub = self._connection.stubs.activation
        return usage_of(self._connection.call(stub.GetUsage, pb.GetUsageRequest()))
