from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome

from loadtests.harness.chromium import Browser, start_chromium


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Where it is missing, the tests that need it fail: none is skipped."""
    started = start_chromium(tmp_path_factory.mktemp("chromium"))
    yield started
    started.quit()


@pytest.fixture
def browser(chromium: Chrome) -> Iterator[Browser]:
    chromium.get("about:blank")
    shown = Browser(chromium)
    shown.requests(), shown.complaints()
    yield shown
    shown.offline(False)
