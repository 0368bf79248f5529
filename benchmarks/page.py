"""How fast the page at `/` is on a first visit: `python -m benchmarks.page [visits]`.

A real Chromium with a new profile for each visit, the real service with its collector. Prints the best and the median of: the document
complete (`loadEventEnd`), the first live figure on the page, and the bytes that crossed the network. All times are in milliseconds
since the navigation began.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
from pathlib import Path

from tests.page.browser import FIRST_FIGURE, Browser, Driver, sampled
from tests.support.service import Service

VISITS = 10

LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"
TRANSFERRED = (
    "performance.getEntries().filter(({ transferSize, name }) => transferSize && /\\/$|assets|icon/.test(name))"
    ".reduce((sum, { transferSize }) => sum + transferSize, 0)"
)


async def measure(visits: int) -> None:
    """Visit the page and print the figures."""
    rows: dict[str, list[float]] = {"complete": [], "first figure": [], "bytes": []}
    with tempfile.TemporaryDirectory() as name, Driver(directory := Path(name)) as driver:
        async with Service(COLLECTOR=1) as service, Browser(driver, directory) as browser:
            await sampled(service)
            for _ in range(visits):
                async with await browser.open(f"{service.base}/", init=FIRST_FIGURE) as tab:
                    rows["first figure"].append(await tab.wait("window.firstFigure"))
                    rows["complete"].append(await tab.wait(LOADED))
                    rows["bytes"].append(await tab.value(TRANSFERRED))
    print(f"{'':14}{'best':>10}{'median':>10}   of {visits} first visits")
    for name, values in rows.items():
        print(f"{name:14}{min(values):10.0f}{statistics.median(values):10.0f}")


if __name__ == "__main__":
    asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else VISITS))
