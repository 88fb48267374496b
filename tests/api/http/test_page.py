"""The page at `/` and what it shows, without a browser."""

from __future__ import annotations

import asyncio
import json
import re
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from memserve.api.http import overview as shown
from memserve.api.http.page import FILES
from memserve.api.http.server import open_http
from memserve.config import Settings
from tests.api.http.fixtures import Http, http_of
from tests.contract.scripted_worker import Script
from tests.gateway.asking import published
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import eventually, until

of_shared_gateway = pytest.mark.asyncio(loop_scope="module")
STATUS = "/v1/memserve/status"
ROLES = {"ann": ("alpha", "ask"), "boss": ("alpha", "admin"), "bob": ("beta", "write")}
"""Of each key's holder: tenant and role."""


def keyed(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer key-of-{name}"}


def keys_file(folder: Path) -> Path:
    path = folder / "keys.json"
    keys = [
        {"name": name, "tenant": tenant, "role": role, "key": f"key-of-{name}"}
        for name, (tenant, role) in ROLES.items()
    ]
    path.write_text(json.dumps({"keys": keys}), encoding="utf-8")
    path.chmod(0o600)
    return path


@of_shared_gateway
async def test_the_page_needs_nothing_from_elsewhere_and_runs_no_other_script(http: Http) -> None:
    for path, (_, kind) in FILES.items():
        sent = await http.client.get(path)
        assert (sent.status_code, sent.headers["content-type"].partition(";")[0]) == (200, kind), path
        policy = sent.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert sent.headers["x-content-type-options"] == "nosniff"
        addresses = set(re.findall(r"\w+://[^\"' ]*", sent.text)) - {"http://www.w3.org/2000/svg"}
        assert addresses == set(), path
        assert not re.search(
            r"<[^>]+\son\w+=|<[^>]+\sstyle=|<script>|innerHTML|insertAdjacentHTML", sent.text
        )
        again = await http.client.get(path, headers={"if-none-match": sent.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    shipped = {file.name for file in files("memserve.api.http").joinpath("static").iterdir()}
    assert shipped == {name for name, _ in FILES.values()}, "every file is served"


async def resident(http: Http) -> list[str]:
    return [module["reference"] for module in (await http.client.get(STATUS)).json()["workers"][0]["modules"]]


@of_shared_gateway
async def test_the_status_says_what_runs_and_what_is_remembered(http: Http, tmp_path: Path) -> None:
    await published(http.gateway, tmp_path, "tone")
    await http.gateway.client.remember("notes", "The code of Amber Lantern is 4071.")
    await http.chat(max_tokens=3)

    async def tone_is_resident() -> bool:
        return await resident(http) == ["tone@1"]

    await eventually(tone_is_resident)
    now = (await http.client.get(STATUS)).json()
    assert (now["model"], now["tenant"], now["role"]) == (http.model, "default", "admin")
    [worker] = now["workers"]
    assert (worker["worker_id"], worker["ready"], worker["max_concurrent"]) == ("w0", True, 32)
    assert worker["silent_s"] < 5
    assert now["texts"]["namespaces"] == [{"name": "notes", "memories": 1}]
    [module] = now["modules"]["modules"]
    assert (module["name"], module["aliases"]) == ("tone", [{"name": "live", "versions": [1]}])
    assert now["prefixes"]["chunks"] == 0
    assert now["steps"][1] == "tenant and versions"
    [ended] = now["requests"]["ended"]
    assert (ended["outcome"], ended["step"], ended["worker_id"]) == ("answered", 8, "w0")
    assert ended["seconds"] == pytest.approx(sum(ended["step_seconds"]))


async def test_tenants_see_their_own_alone(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = await start_gateway(
        api_keys_file=keys_file(tmp_path), workers=[{"script": Script(hangs_after=1)}]
    )
    async with http_of(gateway) as http:
        async with httpx.AsyncClient(base_url=http.url, headers=keyed("bob"), timeout=20) as bob:
            asking = asyncio.create_task(
                bob.post("/v1/chat/completions", json=http.body(max_tokens=9, user="the-other-tenant"))
            )
            await until(lambda: gateway.parts.inflight.total == 1)
            ann = (await http.client.get(STATUS, headers=keyed("ann"))).json()
            assert (ann["tenant"], ann["requests"]["under_way"], ann["requests"]["others"]) == (
                "alpha",
                [],
                None,
            )
            assert ann["workers"][0]["others_modules"] is ann["prefixes"]["cache_stored_bytes"] is None
            boss = (await http.client.get(STATUS, headers=keyed("boss"))).json()
            assert (boss["requests"]["under_way"], boss["requests"]["others"]) == ([], 1)
            assert boss["prefixes"]["cache_stored_bytes"] == 0
            own = (await bob.get(STATUS)).json()["requests"]
            assert [request["worker_id"] for request in own["under_way"]] == ["w0"]
            asking.cancel()
            await until(lambda: gateway.parts.inflight.total == 0)
        assert (await http.client.get(STATUS, headers=keyed("ann"))).json()["requests"]["ended"] == []


async def test_the_page_comes_without_a_key_and_its_figures_do_not(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway(api_keys_file=keys_file(tmp_path))
    async with http_of(gateway) as http:
        assert (await http.client.get("/")).status_code == 200
        refused = await http.client.get(STATUS)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (await http.client.get(STATUS, headers=keyed("bob"))).json()["tenant"] == "beta"


async def test_no_page_by_setting(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(page=False)
    async with http_of(gateway) as http:
        for path in (*FILES, STATUS):
            assert (await http.client.get(path)).status_code == 404
        assert STATUS not in (await http.client.get("/openapi.json")).json()["paths"]


@of_shared_gateway
async def test_the_document_describes_the_status(http: Http) -> None:
    document = (await http.client.get("/openapi.json")).json()
    answer = document["paths"][STATUS]["get"]["responses"]["200"]["content"]["application/json"]
    schema = document["components"]["schemas"][answer["schema"]["$ref"].rpartition("/")[2]]
    assert schema["properties"].keys() == (await http.client.get(STATUS)).json().keys()


@of_shared_gateway
async def test_what_is_shown_is_bounded(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("WORKERS_MAX", "NAMESPACES_MAX", "MODULES_MAX"):
        monkeypatch.setattr(shown, limit, 1)
    monkeypatch.setattr(shown, "REQUESTS_MAX", 2)
    for name in ("one", "two"):
        await http.gateway.client.remember(name, "A text.")
    live = http.gateway.parts.live
    with live.request("default"), live.request("default"), live.request("default"):
        now = (await http.client.get(STATUS)).json()
    assert (len(now["texts"]["namespaces"]), len(now["requests"]["under_way"])) == (1, 2)
    assert now["texts"]["left_out"] >= 1
    assert now["requests"]["left_out"] == 1


async def test_a_store_that_does_not_answer_is_said(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    async with http_of(gateway) as http:
        gateway.redis.stop()
        now = (await http.client.get(STATUS)).json()
    assert (now["modules"], now["prefixes"], now["texts"]) == (None, None, None)
    assert len(now["workers"]) == 1


async def test_the_page_is_there_while_the_gateway_starts() -> None:
    async with open_http(Settings(http_port=0)) as front:
        assert front is not None
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{front.port}") as client:
            assert (await client.get("/")).text.startswith("<!doctype html>")
            starting = await client.get(STATUS)
            assert (starting.status_code, starting.headers["x-memserve-reason"]) == (503, "starting")
    async with open_http(Settings(http_port=0, page=False)) as front:
        assert front is not None
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{front.port}") as client:
            assert (await client.get("/")).status_code == 503
