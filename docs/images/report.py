"""Draw docs/images/report.png: `python docs/images/report.py`, with Chromium and its chromedriver.

Two floors and three methods in five seeds on the digits, and the upper end of the page that compares them.
"""

from __future__ import annotations

import base64
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from fedham_flwr import simulate
from fedham_flwr.analysis.collection import open_collection
from fedham_flwr.page.write import write_report

METHODS, SEEDS, ROUNDS = ("local", "fedavg", "fedper", "fedrep", "ditto"), range(5), 20
WIDTH, HEIGHT = 1000, 1220


def compare(folder: Path) -> Path:
    """Train, and write the page."""
    for method in METHODS:
        for seed in SEEDS:
            simulate(
                method, clients=10, seed=seed, num_server_rounds=ROUNDS, samples_per_client=60, backend="cohort",
                results_dir=folder / "runs", verbose=False,
            )  # fmt: skip
    return write_report(open_collection([folder / "runs"]), folder / "report.html")


def draw(page: Path, file: Path) -> None:
    """Open the page in Chromium, and keep what is seen of it."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    browser = Chrome(options=options, service=ChromeService(str(shutil.which("chromedriver"))))
    try:
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(page.as_uri())
        seen = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
    finally:
        browser.quit()
    Image.open(io.BytesIO(seen)).convert("RGB").quantize(96).save(file, optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        draw(compare(Path(folder)), Path(__file__).with_name("report.png"))
