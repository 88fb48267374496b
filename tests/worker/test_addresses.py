"""The ports that a worker listens on, and the address that it registers."""

from __future__ import annotations

import socket

import pytest

from memserve.config import Settings
from memserve.errors import StartupError
from memserve.worker.addresses import (
    PORTS_TRIED,
    bound_to_first,
    check_free,
    own_address,
    ports_from,
    reachable,
)


def test_without_a_first_port_any_free_one_is_taken() -> None:
    assert list(ports_from(0)) == [0]


def test_the_ports_of_a_machine_follow_each_other_and_leave_out_the_one_of_the_probes() -> None:
    ports = list(ports_from(50061, without=50062))
    assert ports[:3] == [50061, 50063, 50064]
    assert len(ports) == PORTS_TRIED - 1
    assert list(ports_from(65534)) == [65534, 65535]


def test_the_first_port_that_is_free_is_taken() -> None:
    def bind(port: int) -> int:
        if port < 12:
            raise RuntimeError("in use")
        return port

    assert bound_to_first(iter([10, 11, 12, 13]), bind, "worker_port") == 12
    with pytest.raises(StartupError, match="worker_port"):
        bound_to_first(iter([10, 11]), bind, "worker_port")


def test_a_port_that_another_socket_would_share_counts_as_taken() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            check_free("127.0.0.1", other.getsockname()[1])
    assert check_free("127.0.0.1", 0) == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_a_worker_that_listens_on_every_address_registers_its_nodes(host: str) -> None:
    settings = Settings()
    assert reachable(f"{host}:50061", settings, "10.1.2.3") == "10.1.2.3:50061"
    assert reachable(f"{host}:50061", settings, "fd00::3") == "[fd00::3]:50061"
    chosen = Settings(worker_address="10.9.9.9")
    assert reachable(f"{host}:50061", chosen, "10.1.2.3") == "10.9.9.9:50061"


def test_a_worker_that_listens_on_one_address_registers_that_one() -> None:
    assert reachable("127.0.0.1:5", Settings(worker_address="10.9.9.9"), "10.1.2.3") == "127.0.0.1:5"
    assert reachable("", Settings(), "10.1.2.3") == ""


def test_a_machine_finds_the_address_from_which_it_dials() -> None:
    assert own_address("127.0.0.1:6379") == "127.0.0.1"
    assert own_address("")
