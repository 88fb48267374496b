"""The port that Prometheus scrapes: who may, and that it names nothing of a tenant's."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Gauge
from pydantic import SecretStr

from memserve.config import Settings
from memserve.metrics.port import serve_metrics, without_tenants


def scrape(address: str, authorization: str = "") -> tuple[int, str]:
    request = urllib.request.Request(
        f"http://{address}/metrics", headers={"Authorization": authorization} if authorization else {}
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    Gauge("memserve_seen", "For a test.", registry=made).set(7)
    Gauge("vllm:lora_requests_info", "As vLLM has it.", ["running_lora_adapters"], registry=made).labels(
        "digest-of-acme"
    ).set(1)
    return made


def test_without_a_key_everybody_scrapes() -> None:
    with serve_metrics(Settings(), registry(), 0) as address:
        assert scrape(address) == scrape(address, "Bearer anything")
        assert "memserve_seen 7.0" in scrape(address)[1]


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer wrong", "Basic the-key", "the-key", "Bearer the-key "]
)
def test_with_a_key_nothing_is_told_without_it(authorization: str) -> None:
    with serve_metrics(Settings(metrics_key=SecretStr("the-key")), registry(), 0) as address:
        assert "memserve_seen" in scrape(address, "Bearer the-key")[1]
        status, text = scrape(address, authorization)
        # HTTP strips the blanks around a header's value.
        assert (status, "memserve_seen" in text) == (
            (200, True) if authorization.strip() == "Bearer the-key" else (401, False)
        )


def test_metrics_that_are_switched_off_have_no_port() -> None:
    with serve_metrics(Settings(metrics=False), registry(), 0) as address:
        assert address == ""


def test_metrics_stay_on_loopback_whatever_the_hosts_are() -> None:
    with serve_metrics(Settings(host="0.0.0.0", worker_host="0.0.0.0"), registry(), 0) as address:
        assert address.startswith("127.0.0.1:")


def test_metrics_are_served_on_ipv6_too() -> None:
    with serve_metrics(Settings(metrics_host="::1"), registry(), 0) as address:
        assert address.startswith("[::1]:") and scrape(address)[0] == 200


def test_what_is_a_tenants_is_left_out() -> None:
    with serve_metrics(Settings(), without_tenants(registry()), 0) as address:
        _, text = scrape(address)
    assert "memserve_seen 7.0" in text and "acme" not in text
