"""Ports are taken before anything slow starts, and kept: nobody else gets them, and the gateway listens on
them as often as need be.
"""

from __future__ import annotations

import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from memserve.config import Settings
from memserve.errors import StartupError
from memserve.processes.ports import held_ports, ports_file, taken_ports


def listening(port: int, **options: int) -> socket.socket:
    server = socket.socket()
    try:
        for name, value in options.items():
            server.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        server.bind(("127.0.0.1", port))
        server.listen()
    except OSError:
        server.close()
        raise
    return server


def free(data: Path, **changes: object) -> Settings:
    return Settings(data_dir=data, **{"port": 0, "http_port": 0, "metrics_port": 0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", ["port", "http_port", "metrics_port"])
def test_a_port_that_is_taken_is_refused_by_its_setting(tmp_path: Path, setting: str) -> None:
    with (
        listening(0) as taken,
        pytest.raises(StartupError, match=rf"in use.*{setting}"),
        held_ports(free(tmp_path, **{setting: taken.getsockname()[1]})),
    ):
        pass


def test_an_address_of_another_machine_is_refused_by_its_setting(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="host"), held_ports(free(tmp_path, host="203.0.113.1")):
        pass


@pytest.mark.parametrize("options", [{}, {"SO_REUSEADDR": 1}], ids=["plainly", "with SO_REUSEADDR"])
def test_nobody_else_gets_a_port_that_is_kept(tmp_path: Path, options: dict[str, int]) -> None:
    with held_ports(free(tmp_path)) as settings:
        for port in (settings.port, settings.http_port, settings.metrics_port):
            with pytest.raises(OSError, match="in use"):
                listening(port, **options)


def test_a_second_memserve_is_refused_a_port_that_the_first_keeps(tmp_path: Path) -> None:
    with (
        held_ports(free(tmp_path / "first")) as first,
        pytest.raises(StartupError, match="in use"),
        held_ports(free(tmp_path / "second", port=first.port)),
    ):
        pass


def test_a_gateway_listens_on_the_port_that_is_kept_each_time_that_it_is_started(tmp_path: Path) -> None:
    with held_ports(free(tmp_path)) as settings:
        for _ in range(3):
            server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 1)])
            assert server.add_insecure_port(f"127.0.0.1:{settings.port}") == settings.port
            server.start()
            # A connection that stays behind does not keep the next one out.
            with socket.create_connection(("127.0.0.1", settings.port)):
                server.stop(0).wait()


def test_the_ports_that_were_taken_stand_in_a_private_file_while_they_are_kept(tmp_path: Path) -> None:
    assert taken_ports(tmp_path, os.getpid()) is None
    with held_ports(free(tmp_path)) as settings:
        assert 0 not in (settings.port, settings.http_port, settings.metrics_port)
        assert taken_ports(tmp_path, os.getpid()) == {
            "port": settings.port,
            "http_port": settings.http_port,
            "metrics_port": settings.metrics_port,
        }
        assert stat.S_IMODE(ports_file(tmp_path, os.getpid()).stat().st_mode) == 0o600
    assert taken_ports(tmp_path, os.getpid()) is None
    with listening(settings.port):
        pass
