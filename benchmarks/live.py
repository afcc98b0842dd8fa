"""From the end of a stroke to the picture that follows it, on the page in a real browser: `python -m benchmarks.live`.

The page of `python -m cldm app` in live mode, driven by playwright in a headless chromium: a line is drawn, and the
clock runs from the pen's lifting until the page shows the next result. Wall-clock seconds, medians over --strokes.
"""

import argparse
import re
import shutil
import statistics
import time
from typing import Any

from playwright.sync_api import sync_playwright

from cldm.app.server import serving
from cldm.app.studio import Studio
from cldm.runs.checkout import commit

SHOWN = "() => document.querySelector('#gallery img')?.src ?? ''"
CHANGED = f"before => ![before, ''].includes(({SHOWN})())"


def stroke(page: Any, number: int) -> None:
    """A short line of the pen, each time at another height."""
    page.locator('#canvas [data-taken="yes"]').wait_for(state="attached")
    frame = page.locator("#canvas canvas").first.bounding_box()
    x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] * (0.25 + 0.05 * (number % 10))
    page.mouse.move(x - 50, y)
    page.mouse.down()
    page.mouse.move(x + 50, y, steps=8)
    page.mouse.up()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strokes", type=int, default=8)
    parser.add_argument("overrides", nargs="*", help="as of `python -m cldm app`: checkpoint=runs/...")
    args = parser.parse_args()
    waited, asked, drawn, sent = [], [], [], []
    with sync_playwright() as driver, serving(Studio(args.overrides)) as opened:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.goto(opened.local_url)
        page.locator("#canvas canvas").first.wait_for()
        page.get_by_label("Live: one image").check()
        page.on("request", lambda request: sent.append(time.perf_counter()) if "queue/join" in request.url else None)
        for number in range(args.strokes + 1):
            before = page.evaluate(SHOWN)
            stroke(page, number)
            sent.clear()
            began = time.perf_counter()
            page.wait_for_function(CHANGED, arg=before, polling=20)
            waited.append(time.perf_counter() - began)
            asked += [moment - began for moment in sent[:1]]
            drawn += [float(s) for s in re.findall(r"in ([\d.]+) s", page.inner_text("#told"))]
            page.wait_for_timeout(1000)
        browser.close()
    parts = {
        "stroke to picture": waited,
        "until the request": asked,
        "drawing, as the page says": drawn,
    }
    for name, seconds in ((name, taken[1:]) for name, taken in parts.items()):
        print(f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")
    print(f"commit {commit()}")


if __name__ == "__main__":
    main()
