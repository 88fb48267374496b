"""Headless Chromium that reaches this machine alone, and what tests and pictures of the page ask of it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

TIMEOUT_S = 20.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    # No name leads anywhere but to this machine.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)


@dataclass(frozen=True, slots=True)
class Browser:
    """One tab. `requests` and `complaints` empty what they return."""

    driver: Chrome

    def open(self, url: str, *, width: int = 1280, height: int = 1000, dark: bool = False) -> None:
        """Of this size, with nothing kept from before."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._devtools("Emulation.setEmulatedMedia", features=scheme)
        self._devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.driver.get(url)
        self.driver.execute_script("sessionStorage.clear()")
        self.driver.get(url)

    def offline(self, is_so: bool) -> None:
        self._devtools(
            "Network.emulateNetworkConditions",
            offline=is_so,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    def text(self, selector: str) -> str:
        """What the first element shows; empty where there is none."""
        found = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found[0].text if found else ""

    def count(self, selector: str) -> int:
        return len(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def type(self, selector: str, text: str) -> None:
        self.driver.find_element(By.CSS_SELECTOR, selector).send_keys(text)

    def click(self, selector: str) -> None:
        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def run(self, script: str, *arguments: Any) -> Any:
        """Returns what the script, the body of an async function, returns."""
        call = f"(async (...args) => {{{script}}})(...arguments)"
        return self.driver.execute_async_script(f"{call}.then(arguments[arguments.length - 1])", *arguments)

    def until(self, holds: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not holds():
            assert time.monotonic() < deadline_s, self.text("body")
            time.sleep(0.05)

    def picture(self) -> bytes:
        """A PNG of what the tab shows."""
        return self.driver.get_screenshot_as_png()

    def requests(self) -> set[str]:
        """The hosts that the page has asked since the last look."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        urls = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return {urlsplit(url).hostname or url for url in urls}

    def complaints(self) -> list[str]:
        """Errors and warnings in the console, the policy's too, since the last look."""
        return [entry["message"] for entry in self._log("browser")]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return entries

    def _devtools(self, command: str, **arguments: Any) -> None:
        self.driver.execute_cdp_cmd(command, arguments)


def start_chromium(profile: Path) -> Chrome:
    """profile: a new, empty directory. `tests/install_chromium.sh` installs what this needs."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        raise FileNotFoundError("chromium or chromedriver: tests/install_chromium.sh installs them")
    options = ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = Chrome(options, Service(driver))
    started.set_script_timeout(TIMEOUT_S)
    return started
