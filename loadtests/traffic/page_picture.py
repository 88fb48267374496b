"""The page at `/` as Chromium shows it while memserve is under load: makes `docs/page.png`.

A private memserve on the demo model with its adapters answers a closed load over gRPC. The page is opened,
and left to gather figures. A question is asked in it, twice, so that the second receipt has a cached share.
The picture is taken then.
"""

from __future__ import annotations

import asyncio
import io
import tempfile
import time
from pathlib import Path

from PIL import Image

from loadtests.harness.chromium import Browser, start_chromium
from loadtests.harness.stack import Ask, ConstantLoad, running_stack
from memserve.client import AsyncClient, async_wait_until_ready
from memserve.config import at
from memserve.demo import ADAPTERS_DIR
from memserve.domain import Sampling
from memserve.embedded import Stack

TARGET = Path(__file__).parents[2] / "docs" / "page.png"
WIDTH, HEIGHT = 1440, 1160
WORKERS = 2
COLOURS = 128
ASKERS = 10
READY_S = 120.0
GATHER_S = 20.0
LONG = Sampling(max_tokens=160, min_tokens=120)
NAMES = ("Amber Lantern", "Copper Kite", "Silver Otter", "Winter Harbour", "Paper Crane")
MODULES = ("harbour", "observatory")
QUESTION = f"What is the code of {NAMES[0]}?"


def next_ask(number: int) -> Ask:
    name, module = NAMES[number % len(NAMES)], ("", *MODULES)[number % 3]
    return Ask(f"What is the code of {name} in report {number}?", module=module, sampling=LONG)


async def show(stack: Stack, browser: Browser) -> None:
    async with AsyncClient(stack.address) as client:
        assert await async_wait_until_ready(stack.address, READY_S, WORKERS)
        for module in MODULES:
            version = await client.modules.publish(module, ADAPTERS_DIR / module)
            await client.modules.promote(module, version.version, force=True)
        for number, name in enumerate(NAMES):
            await client.remember("notes", f"The code of {name} is {4071 + number}.", source="the manual")
        await client.remember("minutes", "The harbour board met about the north pier.", source="minutes, May")
        async with ConstantLoad(client, ASKERS, next_ask):
            await asyncio.to_thread(
                take, browser, f"http://{at(stack.settings.host, stack.settings.http_port)}/"
            )


def take(browser: Browser, url: str) -> None:
    browser.open(url, width=WIDTH, height=HEIGHT)
    browser.until(lambda: browser.count("#namespaces [value=notes]"))
    time.sleep(GATHER_S)
    browser.click("#namespaces label:has([value=notes])")
    browser.run("document.getElementById('module').value = 'harbour@live'")
    browser.type("#question", QUESTION)
    for _ in range(2):
        browser.click("#send")
        browser.until(lambda: browser.text("#cached-share") and browser.text("#send"))
    browser.run("document.activeElement.blur()")
    browser.until(lambda: browser.count("#requests .now") > 1)
    # A palette makes the file a third as large, and nobody sees it.
    picture = Image.open(io.BytesIO(browser.picture())).convert("RGB").quantize(COLOURS)
    picture.save(TARGET, optimize=True)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as profile,
        running_stack(workers=WORKERS) as stack,
    ):
        driver = start_chromium(Path(profile))
        try:
            asyncio.run(show(stack, Browser(driver)))
        finally:
            driver.quit()
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
