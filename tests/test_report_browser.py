"""The page in headless Chromium: nothing is asked of a network, and what can be clicked does what it says."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compared import make_run
from test_report_page import CLIENTS, GROUPS, METHODS, SEEDS, tried

from fedham_flwr.analysis.collection import open_collection
from fedham_flwr.page.write import write_report

pytestmark = pytest.mark.slow
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
Browser = Any
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of four methods, three seeds and names that look like markup."""
    root = tmp_path_factory.mktemp("page")
    for method in METHODS:
        for seed in SEEDS:
            make_run(root / "runs", method, seed, CLIENTS, 4, GROUPS if method == "pfedla" else ())
    found = open_collection([root / "runs"])
    tuned = replace(found, tuning=tuple(tried(method, found.tasks[0]) for method in METHODS))
    return write_report(tuned, root / "report.html")


@pytest.fixture(scope="module")
def driver() -> Iterator[Browser]:
    """One browser for all tests; without one they are skipped, and say so."""
    if not BROWSER or not DRIVER:
        pytest.skip("no chromium with its chromedriver: apt-get install chromium chromium-driver")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = Chrome(options=options, service=ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def opened(driver: Browser, file: Path) -> Browser:
    """The page, opened anew in a window of 1,200 pixels with light colours."""
    show(driver, file)
    return driver


def show(driver: Browser, file: Path, width: int = 1200, colours: str = "light") -> None:
    wishes = {"prefers-color-scheme": colours, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wishes.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(file.as_uri())
    if driver.execute_script("return localStorage.length"):
        driver.execute_script("localStorage.clear()")
        driver.get(file.as_uri())


def one(browser: Browser, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def all_of(browser: Browser, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def choose(browser: Browser, figure: str, name: str, text: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(one(browser, f"#{figure} select[name='{name}']")).select_by_visible_text(text)


def plot(browser: Browser, figure: str, expression: str) -> Any:
    """Something of what plotly draws: `plot.data` are its traces."""
    return browser.execute_script(f"const plot = document.querySelector('#{figure} .plot'); return {expression};")


def wait_for(done: Callable[[], Any]) -> None:
    end = time.monotonic() + 5
    while not done():
        assert time.monotonic() < end, "nothing came of it in 5 seconds"
        time.sleep(0.02)


def screenshot(browser: Browser, path: Path) -> None:
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
    path.write_bytes(base64.b64decode(shot["data"]))


def test_no_error_and_no_request(opened: Browser, tmp_path: Path) -> None:
    opened.get_log("performance")
    opened.refresh()
    wait_for(lambda: plot(opened, "tuning-figure", "plot.data && plot.data.length"))
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1
    assert [entry for entry in opened.get_log("browser") if entry["level"] != "INFO"] == []
    assert opened.execute_script("return performance.getEntriesByType('resource').length") == 0
    for figure in ("curves", "clients-figure", "mixing-figure", "costs-figure", "tuning-figure"):
        assert plot(opened, figure, "plot.querySelectorAll('.main-svg').length") >= 1, figure
    screenshot(opened, tmp_path / "light.png")


def test_a_table_is_sorted_by_a_click_and_by_a_key(opened: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    head = one(opened, "#table-results thead th:nth-child(2)")
    button = head.find_element("tag name", "button")

    def values() -> list[float]:
        cells = all_of(opened, "#table-results tbody td:nth-child(2)")
        return [float(cell.get_attribute("data-value")) for cell in cells]

    before = values()
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(before)
    button.send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "descending"
    assert values() == sorted(before, reverse=True)
    first = one(opened, "#table-results thead th:first-child")
    first.find_element("tag name", "button").send_keys(Keys.SPACE)
    names = [row.text.split("\n")[0] for row in all_of(opened, "#table-results tbody th")]
    assert names == sorted(METHODS)
    assert head.get_attribute("aria-sort") is None
    assert first.get_attribute("aria-sort") == "ascending"
    assert len(all_of(opened, "#table-results tbody tr.floor")) == 2


def test_values_of_settings_are_sorted_as_numbers(opened: Browser) -> None:
    column = "document.querySelector('#table-tuned').tBodies[0]"
    values = ["0.02", "0.001858", "10", "–", "1e-05"]
    for at, value in enumerate(values):
        opened.execute_script(f"{column}.rows[{at}].cells[2].textContent = '{value}'")
    one(opened, "#table-tuned thead th:nth-child(3) button").click()
    texts = [cell.text for cell in all_of(opened, "#table-tuned tbody td:nth-child(3)")]
    assert [text for text in texts if text in values] == ["1e-05", "0.001858", "0.02", "10", "–"]
    assert texts[-1] == "–"


def test_what_is_not_there_is_sorted_last(opened: Browser) -> None:
    button = one(opened, "#table-clients thead th:nth-child(2) button")
    for _ in range(2):
        button.click()
        cells = all_of(opened, "#table-clients tbody td:nth-child(2)")
        assert cells[-1].text == "–"


def test_methods_seeds_phase_and_axis_of_the_curves_are_chosen(opened: Browser) -> None:
    lines = "plot.data.filter((trace) => trace.name).length"
    assert plot(opened, "curves", lines) == len(METHODS)
    whole = plot(opened, "curves", "plot.data.length")
    assert whole == 3 * len(METHODS)  # a line and the two edges of a band
    one(opened, "#curves input[name='methods fedper']").click()
    assert plot(opened, "curves", lines) == len(METHODS) - 1
    for seed in SEEDS[1:]:
        one(opened, f"#curves input[name='seeds {seed}']").click()
    assert plot(opened, "curves", "plot.data.length") == len(METHODS) - 1  # one seed has no band
    before = plot(opened, "curves", "[...plot.data[0].y]")
    choose(opened, "curves", "model", "after local training")
    assert plot(opened, "curves", "[...plot.data[0].y]") == pytest.approx([y + 1 / 64 for y in before], abs=1e-4)
    choose(opened, "curves", "by", "bytes")
    assert plot(opened, "curves", "plot.layout.xaxis.title.text") == "MiB sent by training, up and down"
    assert plot(opened, "curves", "plot.data[0].x[1]") == pytest.approx(3000 / 2**20)
    choose(opened, "curves", "by", "seconds")
    assert plot(opened, "curves", "plot.data[0].x[1]") == 0.5


def test_a_client_is_compared_by_method_and_as_a_line(opened: Browser) -> None:
    said = one(opened, "#clients-figure .said")
    assert said.text == "fedper is better than local for 4 of 4 clients, worse for 0, and the same for 0."
    choose(opened, "clients-figure", "method", "fedavg")
    assert said.text == "fedavg is better than local for 0 of 4 clients, worse for 4, and the same for 0."
    choose(opened, "clients-figure", "as", "a line for each client")
    labels = opened.execute_script(
        "return [...document.querySelectorAll('#clients-figure .ytick text')].map((text) => text.textContent)"
    )
    assert "\"b'c&amp;" in " ".join(labels)  # as it was written, no entity and no tag
    assert any(label.startswith("<scrip") for label in labels)
    choose(opened, "clients-figure", "against", "itself before local training")
    assert "after local training is better than before local training for 4 of 4" in said.text


def test_a_long_label_fits_beside_an_axis(driver: Browser, tmp_path: Path) -> None:
    for rate in (0.001, 0.002):
        more = {"learning-rate": rate, "batch-size": round(1e4 * rate), "local-epochs": round(1e3 * rate)}
        make_run(tmp_path / "runs", "fedper", 0, CLIENTS, 2, more=more)
    show(driver, write_report(open_collection([tmp_path / "runs"]), tmp_path / "report.html"), 320)
    for axis in ("x", "y"):
        title = plot(driver, "clients-figure", f"plot.layout.{axis}axis.title.text")
        assert title.startswith("accuracy: fedper, ")
        assert len(title) == len("accuracy: ") + 28
    box = "document.querySelector('#clients-figure .xtitle').getBoundingClientRect().right"
    assert driver.execute_script(f"return {box} <= document.documentElement.clientWidth")


def test_the_slider_moves_through_the_rounds(opened: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    slider, output = one(opened, "#mixing-figure input[type=range]"), one(opened, "#mixing-figure output")
    assert output.text == "5 of 5"
    last = plot(opened, "mixing-figure", "plot.data[0].z.flat()")
    slider.send_keys(Keys.HOME)
    assert output.text == "1 of 5"
    assert slider.get_attribute("aria-valuetext") == "1 of 5"
    first = plot(opened, "mixing-figure", "plot.data[0].z.flat()")
    assert first != last
    assert sum(first) == pytest.approx(len(CLIENTS), abs=0.05)
    slider.send_keys(Keys.ARROW_RIGHT)
    assert output.text == "2 of 5"
    choose(opened, "mixing-figure", "layer group", GROUPS[0])
    choose(opened, "mixing-figure", "run", "pfedla, seed 2")
    one(opened, "#mixing-figure input[name=' own weight']").click()
    diagonal = plot(opened, "mixing-figure", "plot.data[0].z.map((row, at) => row[at])")
    assert diagonal == [None] * len(CLIENTS)


def test_trials_of_another_method_are_shown(opened: Browser) -> None:
    said = one(opened, "#tuning-figure .said")
    choose(opened, "tuning-figure", "method", "pfedla")
    assert said.text.startswith("4 trials: 2 complete (●), 1 pruned (○), 1 failed (✕). Chosen (ring): trial 3")
    assert plot(opened, "tuning-figure", "plot.layout.xaxis.type") == "log"
    assert plot(opened, "tuning-figure", "plot.layout.xaxis2.type") == "category"


def test_colours_follow_the_system_and_the_button(driver: Browser, file: Path, tmp_path: Path) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    show(driver, file, colours="dark")
    assert driver.execute_script(background) == "rgb(20, 23, 27)"
    assert plot(driver, "curves", "plot.layout.font.color") == "#e7eaee"
    screenshot(driver, tmp_path / "dark.png")
    button = one(driver, "#theme")
    assert button.text == "light"
    button.click()
    assert driver.execute_script(background) == "rgb(255, 255, 255)"
    assert plot(driver, "curves", "plot.layout.font.color") == "#1b1f24"
    assert button.text == "dark"
    driver.refresh()
    assert driver.execute_script(background) == "rgb(255, 255, 255)"  # it is remembered
    driver.execute_script("localStorage.clear()")


@pytest.mark.parametrize("width", [400, 320])
def test_a_narrow_page_does_not_scroll_sideways(driver: Browser, file: Path, width: int, tmp_path: Path) -> None:
    show(driver, file, width)
    driver.execute_script("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    place = "return document.querySelector('#table-clients tbody th').getBoundingClientRect().left"
    before = driver.execute_script(place)
    moved = (
        "const box = document.querySelector('#table-clients').parentNode; box.scrollLeft = 200; return box.scrollLeft"
    )
    assert driver.execute_script(moved) == 200
    assert driver.execute_script(place) == before
    screenshot(driver, tmp_path / "narrow.png")


def test_everything_is_reached_by_the_keyboard_and_the_focus_is_seen(opened: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    what = "const e = document.activeElement; return [e.tagName, e.className, getComputedStyle(e).outlineStyle]"
    seen = []
    for _ in range(90):
        opened.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(opened.execute_script(what))
    assert seen[0][:2] == ["A", "skip"]
    assert all(outline != "none" for _, _, outline in seen), [entry for entry in seen if entry[2] == "none"]
    assert {"A", "BUTTON", "DIV", "SELECT", "INPUT", "SUMMARY"} <= {tag for tag, _, _ in seen}


@pytest.mark.parametrize("asked", ["by the system", "by the button"])
def test_what_is_dark_is_printed_light(driver: Browser, file: Path, asked: str) -> None:
    show(driver, file, colours="dark" if asked == "by the system" else "light")
    if asked == "by the button":
        one(driver, "#theme").click()
    colours = "return getComputedStyle(document.body).backgroundColor"
    dark, ink = driver.execute_script(colours), plot(driver, "curves", "plot.layout.font.color")
    driver.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert driver.execute_script(colours) == "rgb(255, 255, 255)"
    assert plot(driver, "curves", "plot.layout.font.color") == "#1b1f24"
    driver.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert driver.execute_script(colours) == dark == "rgb(20, 23, 27)"
    assert plot(driver, "curves", "plot.layout.font.color") == ink
    driver.execute_script("localStorage.clear()")


def test_printing_opens_what_is_folded_and_is_a_file(opened: Browser, tmp_path: Path) -> None:
    folded = "return document.querySelectorAll('details:not([open])').length"
    count = opened.execute_script(folded)
    opened.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert opened.execute_script(folded) == 0
    assert plot(opened, "curves", "plot.layout.width") == 660
    opened.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert opened.execute_script(folded) == count > 0
    printed = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    (tmp_path / "report.pdf").write_bytes(printed)
    assert printed.startswith(b"%PDF")
    assert len(printed) > 50_000


def test_without_scripts_the_tables_are_there(driver: Browser, file: Path) -> None:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.get(file.as_uri())
        assert one(driver, "#table-results").is_displayed()
        assert one(driver, "noscript").text or one(driver, "main").text
        assert not any(element.is_displayed() for element in all_of(driver, ".plot"))
        assert one(driver, "svg.forest").is_displayed()
        summary = one(driver, "#learning summary")
        assert not one(driver, "#table-curves-test-0").is_displayed()
        summary.click()
        assert one(driver, "#table-curves-test-0").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
