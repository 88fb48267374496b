from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.stub_gateway import Call, StubGateway, async_call, blocking_call


@pytest.fixture
def stub() -> Iterator[StubGateway]:
    server = StubGateway()
    yield server
    server.close()


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, stub: StubGateway) -> Call:
    """Calls a method of the client by name: of `Client`, or of `AsyncClient`."""
    return (blocking_call if request.param == "sync" else async_call)(stub.address)
