"""Calls with tokens: over gRPC and HTTP, in the audit, in the metrics, and while the provider is away."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from memserve.client import AsyncClient, CallFailed, TextDelta
from memserve.domain import KeyRole, RefusalReason
from memserve.gateway.access.callers import first_token_keys
from memserve.gateway.access.keys import add_key
from memserve.gateway.access.token_keys import UrlKeys
from tests.api.http.fixtures import http_of
from tests.contract.scripted_worker import Script
from tests.gateway.access.issuer import AUDIENCE, ISSUER, jwks, token, token_settings
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.running import open_gateway


def refusals(registry: CollectorRegistry, fault: str) -> float:
    return registry.get_sample_value("memserve_tokens_refused_total", {"fault": fault}) or 0.0


async def test_a_tokens_tenant_role_and_subject_hold_for_its_calls(tmp_path: Path, model_dir: Path) -> None:
    async with open_gateway(tmp_path, model_dir, **token_settings(tmp_path)) as gateway:
        folder = write_files(tmp_path / "m", lora_files(gateway.parts.model.tensor_shapes()))
        async with AsyncClient(gateway.address, token(role="write")) as ada:
            await ada.modules.publish("tone", folder)
            assert [event.principal async for event in ada.modules.audit()] == ["token ada"]
        async with AsyncClient(gateway.address, token(tenant="other", role=["read", "x"])) as other:
            with pytest.raises(CallFailed, match="does not exist"):
                await other.modules.get("tone")
            with pytest.raises(CallFailed, match="this one has the role read") as refused:
                await other.generate("hello")
            assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_refused_token_is_told_the_rule_over_both_ports_and_is_counted(
    tmp_path: Path, model_dir: Path
) -> None:
    async with open_gateway(tmp_path, model_dir, **token_settings(tmp_path)) as gateway:
        registry = gateway.parts.metrics.registry
        expired = token(exp=int(time.time()) - 100)
        async with AsyncClient(gateway.address, expired) as client:
            with pytest.raises(CallFailed, match="has expired") as refused:
                await client.status()
        assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED
        async with http_of(gateway) as http:
            headers = {"authorization": f"Bearer {expired}"}
            answer = await http.client.get("/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_token"
            assert "has expired" in answer.json()["error"]["message"]
            assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
            good = {"authorization": f"Bearer {token()}"}
            assert (await http.client.get("/v1/models", headers=good)).status_code == 200
        assert refusals(registry, "expired") == 2
        assert refusals(registry, "signature") == 0


async def test_an_answer_that_has_begun_goes_on_when_its_token_expires(
    tmp_path: Path, model_dir: Path
) -> None:
    workers: Any = [{"script": Script(pause_s=0.15)}]
    async with open_gateway(tmp_path, model_dir, workers=workers, **token_settings(tmp_path)) as gateway:
        soon = token(exp=int(time.time()) - 28)  # the leeway ends within two seconds
        texts = []
        async with AsyncClient(gateway.address, soon) as client:
            async for event in client.stream("hello", max_tokens=24):
                if isinstance(event, TextDelta):
                    texts.append(event.text)
            with pytest.raises(CallFailed, match="has expired"):
                await client.status()
        assert len(texts) > 10


async def test_without_the_providers_keys_tokens_wait_and_api_keys_go_on(
    tmp_path: Path, model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "some-keys.json"
    key = add_key(file, "ci", "builds", KeyRole.READ, 0.0)
    async with open_gateway(
        tmp_path, model_dir, api_keys_file=file,
        jwt_jwks="https://127.0.0.1:1/keys", jwt_issuer=ISSUER, jwt_audience=AUDIENCE,
    ) as gateway:  # fmt: skip
        await first_token_keys(gateway.access)
        assert "https://127.0.0.1:1/keys cannot be read: " in caplog.text
        assert "tokens are refused until" in caplog.text
        async with AsyncClient(gateway.address, key) as client:
            await client.status()
        async with AsyncClient(gateway.address, token()) as client:
            with pytest.raises(CallFailed, match="cannot be read from the identity provider") as refused:
                await client.status()
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE
        assert refused.value.reason is RefusalReason.NO_TOKEN_KEYS
        assert refused.value.retry_after_s == 10.0
        assert gateway.access.tokens is not None
        gateway.access.tokens.keys = UrlKeys("https://identity.example", lambda url: jwks("ES256-a"))
        await first_token_keys(gateway.access)
        async with AsyncClient(gateway.address, token()) as client:
            await client.status()
