"""Takes the pictures of the live page in docs/use. Needs Debian's `chromium`.

python scripts/page_picture.py                         # page.png and story.png, of a cluster that is none
python scripts/page_picture.py --recorded runs/RUN     # whatif.png, of what `llumnix serve --record runs` wrote
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from frame.browser import CHROMIUM, chromium  # noqa: E402
from frame.page_server import page_server  # noqa: E402
from frame.pretend import PretendCluster  # noqa: E402
from PIL import Image  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FOLDER = ROOT / "docs" / "use"
HOW: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
COLOURS = 64
OTHERWISE = "instances=4"
SIMULATED_MS = 300_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, metavar="RUN", help="The folder of a run of three instances.")
    recorded = parser.parse_args().recorded
    if CHROMIUM is None:
        print("There is no chromium here (Debian: apt install chromium).")
        return 2
    with chromium() as browser:
        if recorded is None:
            page_and_story(browser)
        else:
            what_if(browser, recorded)
    return 0


def page_and_story(browser: Browser) -> None:
    with page_server(PretendCluster(8, seed=3), past_s=900) as server:
        page = browser.new_page(**HOW)
        page.goto(f"{server.url}/llumnix/")
        page.locator("path.flight").first.wait_for(state="attached")
        page.wait_for_timeout(900)  # it has flown far enough to be seen
        keep(page.screenshot(), "page.png")
        runs = (request for one in server.cluster.all.values() for request in one.running)
        told = max(runs, key=lambda request: (request.moves, -request.story.arrived_s))
        page.goto(f"{server.url}/llumnix/#story/{told.id}")
        page.get_by_text("Why it stays where it is").wait_for()
        keep(page.screenshot(), "story.png")


def what_if(browser: Browser, recorded: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path("runs", recorded.name)  # as it is shown: without where it lies here
        shutil.copytree(recorded, folder / run)
        os.chdir(folder)
        with page_server(PretendCluster(3), recorded=run) as server:
            page = browser.new_page(**HOW)
            page.goto(f"{server.url}/llumnix/#whatif")
            page.get_by_label(OTHERWISE).check()
            page.get_by_role("button", name="Simulate").click()
            page.get_by_role("heading", name=OTHERWISE).wait_for(timeout=SIMULATED_MS)
            page.wait_for_timeout(500)  # the form is as it was again
            keep(page.screenshot(full_page=True), "whatif.png")


def keep(shot: bytes, name: str) -> None:
    path = FOLDER / name
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
