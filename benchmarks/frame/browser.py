"""Debian's Chromium, for what looks at the live page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
"""None where there is none: then nothing below can be used."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Ended at the end."""
    from playwright.sync_api import sync_playwright

    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # it has none for root
    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield running
        running.close()
