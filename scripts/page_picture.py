"""Takes the pictures of the live page in docs/use/observing.md: page.png and story.png. Needs Debian's `chromium`."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from frame.browser import CHROMIUM, chromium  # noqa: E402
from frame.page_server import page_server  # noqa: E402
from frame.pretend import PretendCluster  # noqa: E402
from PIL import Image  # noqa: E402

FOLDER = ROOT / "docs" / "use"
HOW: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
COLOURS = 64


def main() -> int:
    if CHROMIUM is None:
        print("There is no chromium here (Debian: apt install chromium).")
        return 2
    with page_server(PretendCluster(8, seed=3), past_s=900) as server, chromium() as browser:
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
    return 0


def keep(shot: bytes, name: str) -> None:
    path = FOLDER / name
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
