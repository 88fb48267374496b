"""The page at `/` in Chromium, over fake workers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from loadtests.harness.chromium import Browser
from tests.api.http.fixtures import http_of
from tests.api.http.test_page import STATUS, keys_file
from tests.contract.scripted_worker import Script
from tests.gateway.fixtures import StartGateway

pytestmark = pytest.mark.chromium
HOSTILE = "</p><script>window.taken = 1</script><img src=x onerror='window.taken = 2'>"


async def test_hostile_text_is_shown_as_it_is(start_gateway: StartGateway, browser: Browser) -> None:
    gateway = await start_gateway()
    await gateway.client.remember("notes", f"The code is {HOSTILE}", source=HOSTILE)
    async with http_of(gateway) as http:
        state = (await http.client.get(STATUS)).json()
        await asyncio.to_thread(_ask_and_read, browser, http.url)
        await asyncio.to_thread(_draw_hostile, browser, state)
    assert browser.requests() == {"127.0.0.1"}
    assert browser.complaints() == []


def _ask_and_read(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.until(lambda: browser.count("#namespaces label"))
    browser.click("#namespaces label")
    browser.type("#question", f"What is the code? {HOSTILE}\n")
    browser.until(lambda: browser.count("#passages li"))
    assert browser.text("#passages .passage") == f"The code is {HOSTILE}"
    assert browser.text("#passages .hint").startswith(HOSTILE)
    assert browser.text("#link") == "live"
    assert browser.run("return window.taken ?? 0") == 0


def _draw_hostile(browser: Browser, state: dict[str, Any]) -> None:
    """Every text of the status may be hostile, although the gateway has rules for names."""
    spoilt = _spoilt(state)
    spoilt["modules"]["modules"] = [
        {"name": HOSTILE, "kind": "lora", "versions": 1, "newest_version": 1,
         "aliases": [{"name": HOSTILE, "versions": [1]}]}
    ]  # fmt: skip
    spoilt["workers"][0]["modules"] = [{"reference": HOSTILE, "place": HOSTILE}]
    browser.run(
        "const drawn = { status: 'drawStatus', requests: 'drawRequests', ask: 'offer' };"
        "for (const file in drawn) (await import(`/page/${file}.js`))[drawn[file]](args[0]);",
        spoilt,
    )
    assert HOSTILE in browser.text("#memories")
    assert HOSTILE in browser.text("#workers .chip")
    assert browser.count("main script, main img") == browser.run("return window.taken ?? 0") == 0


def _spoilt(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _spoilt(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_spoilt(each) for each in value]
    return HOSTILE if isinstance(value, str) else value


async def test_the_page_asks_for_a_key_and_keeps_it_in_its_tab(
    start_gateway: StartGateway, browser: Browser, tmp_path: Path
) -> None:
    gateway = await start_gateway(api_keys_file=keys_file(tmp_path))

    def use_keys(url: str) -> None:
        browser.open(url)
        browser.until(lambda: browser.text("#link") == "a key is needed")
        assert (browser.count("#main[hidden]"), browser.text("#key h2")) == (1, "This gateway wants a key")
        browser.type("#key-text", "a-wrong-key\n")
        browser.until(lambda: "does not open the page" in browser.text("#key-error"))
        browser.type("#key-text", "key-of-bob\n")
        browser.until(lambda: browser.text("#caller") == "tenant beta, role write")
        kept = browser.run(
            "return [Object.values(sessionStorage), Object.keys(localStorage), document.cookie]"
        )
        assert kept == [["key-of-bob"], [], ""]
        browser.type("#question", "hello\n")
        browser.until(lambda: browser.count("#cached-share"))
        browser.click("#forget")
        browser.until(lambda: browser.text("#link") == "a key is needed")
        assert browser.run("return sessionStorage.length") == 0

    async with http_of(gateway) as http:
        await asyncio.to_thread(use_keys, http.url)


async def test_figures_that_are_old_are_said_to_be(start_gateway: StartGateway, browser: Browser) -> None:
    gateway = await start_gateway()

    def lose_the_gateway(url: str) -> None:
        browser.open(url)
        browser.until(lambda: browser.text("#link") == "live")
        browser.offline(True)
        browser.until(lambda: "not reachable; figures are" in browser.text("#link"))
        browser.until(lambda: browser.count("body.stale"))
        browser.offline(False)
        browser.until(lambda: browser.text("#link") == "live" and not browser.count("body.stale"))

    async with http_of(gateway) as http:
        await asyncio.to_thread(lose_the_gateway, http.url)


async def test_it_fits_a_phone_and_shows_a_request_in_its_step(
    start_gateway: StartGateway, browser: Browser
) -> None:
    gateway = await start_gateway(workers=[{"script": Script(hangs_after=1)}])

    def look(url: str) -> None:
        browser.open(url, width=360, height=740, dark=True)
        browser.until(lambda: browser.text("#requests .now .number") == "8")
        assert "in step 8" in browser.text("#requests .request")
        assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
        assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(13, 19, 25)"
        browser.type("#question", "hello\n")
        browser.until(lambda: browser.text("#stop"))
        browser.click("#stop")
        browser.until(lambda: browser.text("#ask-error").startswith("Stopped."))

    async with http_of(gateway) as http:
        asking = asyncio.create_task(http.chat(max_tokens=9))
        await asyncio.to_thread(look, http.url)
        asking.cancel()
