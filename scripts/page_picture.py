"""Takes the picture of the live page in docs/use/observing.md: docs/use/page.png. Needs Debian's `chromium`."""

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

TARGET = ROOT / "docs" / "use" / "page.png"
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
        shot = page.screenshot()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(TARGET, optimize=True)
    print(f"{TARGET.relative_to(ROOT)}: {TARGET.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
