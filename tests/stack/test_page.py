"""The page at `/` of the whole of memserve, in Chromium: a question and its receipt."""

from __future__ import annotations

import re

import pytest

from loadtests.harness.chromium import Browser
from memserve.client import Client
from memserve.config import at
from memserve.embedded import Stack

pytestmark = [pytest.mark.stack, pytest.mark.chromium, pytest.mark.timeout(600)]
QUESTION = "What is the code of Amber Lantern?"
FACT = "The code of Amber Lantern is 4071."


def test_a_question_and_its_receipt(stack: Stack, client: Client, browser: Browser) -> None:
    """client: waits until the workers are ready."""
    client.remember("page", FACT, source="<script>the manual</script>")
    workers = {worker.worker_id for worker in client.status().workers}
    browser.open(f"http://{at(stack.settings.host, stack.settings.http_port)}/")
    browser.until(lambda: browser.count("#namespaces [value=page]"))
    assert {browser.run("return [...document.querySelectorAll('.worker .name')][args[0]].textContent", place)
            for place in range(len(workers))} == workers  # fmt: skip
    browser.click("#namespaces label:has([value=page])")
    shares = []
    for _ in range(2):
        browser.click("#question")
        browser.run("document.getElementById('question').value = ''")
        browser.type("#question", f"{QUESTION}\n")
        browser.until(lambda: browser.text("#send"))
        assert "4071" in browser.text("#answer"), browser.text("#ask")
        shares.append(browser.text("#cached-share"))
    assert browser.text("#passages .passage") == FACT
    assert browser.text("#passages .hint").startswith("<script>the manual</script> · page")
    chosen = browser.text("#candidates .chosen .name")
    assert chosen.removesuffix(" (chosen)") in workers
    assert browser.count("#candidates li") == len(workers)
    assert re.search(r"\d+ of \d+ tokens cached", browser.text("#why")), browser.text("#why")
    assert int(shares[1].removesuffix(" %")) > 0, shares
    browser.until(lambda: "answered" in browser.text("#requests .ended .outcome"))
    assert browser.count("#requests .request .steps li") == 8 * browser.count("#requests .request") > 0
    assert browser.requests() == {"127.0.0.1"}
    assert browser.complaints() == []
