# SPDX-License-Identifier: GPL-2.0-or-later
"""The pictures: the HTML page in a real browser, its pixels and its hover; the SVG as a document."""

import math
import re
import shutil
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import require
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from vmaweld.abi import VM_ACCOUNT, VM_MAYREAD, VM_MAYWRITE, VM_READ, VM_WRITE
from vmaweld.inspect.html import picture
from vmaweld.inspect.legend import CLASSES, KIND_COLOURS, class_of
from vmaweld.inspect.report import Inspection, Pages
from vmaweld.inspect.svg import strip
from vmaweld.seams import ANON_VMA, PAGE_OFFSET, PROTECTION, seams
from vmaweld.snapshot import Row, Snapshot

BASE = 0x7F00_0000_0000
RW = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_ACCOUNT
EVIL = "</script><script>document.title='owned'</script>\n\udcff&"


def report_of(rows: list[Row]) -> Inspection:
    snapshot = Snapshot(4711, rows, source="bpf", flags_exact=True, hidden=True)
    pages = {row.start: Pages(row.pages, 0) for row in rows}
    return Inspection(snapshot, seams(snapshot), "pro<b>gram", 0, 65530, pages, {})


def row(page: int, pages: int, **fields: Any) -> Row:
    start = BASE + page * 4096
    known: dict[str, Any] = {"pgoff": start >> 12, "anon_vma": 0, "chain": 0, "mempolicy": "", "uffd": 0, "file_id": 0}
    return Row(start, start + pages * 4096, fields.pop("flags", RW), **{**known, **fields})


def small() -> Inspection:
    return report_of(
        [
            row(0, 16, anon_vma=1, chain=1),
            row(16, 16, anon_vma=2, chain=1),  # open: anon-vma
            row(32, 16, anon_vma=2, chain=1, pgoff=5),  # open: page-offset
            row(
                48, 16, flags=VM_READ | VM_MAYREAD | VM_MAYWRITE | VM_ACCOUNT, pgoff=21, anon_vma=2, chain=1
            ),  # protection
            row(4096, 64, flags=VM_READ | VM_MAYREAD, file=f"/tmp/{EVIL}", file_id=7, pgoff=0),
        ]
    )


def large() -> Inspection:
    """60,000 VMAs: open seams in the first half, protection in the second."""
    rows = []
    for page in range(60_000):
        if page < 30_000:
            rows.append(row(page, 1, anon_vma=page + 1, chain=1, pgoff=3))
        else:
            rows.append(row(page, 1, flags=RW if page % 2 else RW & ~VM_WRITE))
    return report_of(rows)


# ---- the page in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    require(None not in (chromium, driver_path), "no Chromium to drive (Debian: chromium chromium-driver)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(chromium)
        for argument in (
            "headless",
            "no-sandbox",
            "disable-gpu",
            "disable-quic",
            "no-first-run",
            "disable-background-networking",
            "disable-component-update",
            "disable-sync",
            "window-size=1300,1000",
            f"user-data-dir={profile}",
        ):
            options.add_argument(f"--{argument}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(str(driver_path)))
        driver.set_page_load_timeout(60)
        driver.set_script_timeout(60)
        try:
            yield driver
        finally:
            driver.quit()


def show(browser: webdriver.Chrome, report: Inspection, folder: Path, theme: str = "light") -> WebElement:
    path = folder / "picture.html"
    path.write_text(picture(report), encoding="utf-8")
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    browser.get(path.as_uri())
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    return browser.find_element(By.ID, "strip")


def pixel(browser: webdriver.Chrome, x: float, y: float) -> str:
    """The colour of the strip at a place in CSS pixels, as #rrggbb."""
    red, green, blue, _ = browser.execute_script(
        "const c = document.getElementById('strip'), r = window.devicePixelRatio;"
        "return [...c.getContext('2d').getImageData(arguments[0] * r, arguments[1] * r, 1, 1).data]",
        math.floor(x),
        y,
    )
    return f"#{red:02x}{green:02x}{blue:02x}"


def place(browser: webdriver.Chrome, what: str) -> float:
    value = browser.execute_script(f"return window.vmaweld.{what}")
    assert isinstance(value, int | float)
    return float(value)


def hover(browser: webdriver.Chrome, strip: WebElement, x: float, y: float) -> str:
    size = strip.size
    ActionChains(browser).move_to_element_with_offset(
        strip, round(x - size["width"] / 2), round(y - size["height"] / 2)
    ).perform()
    return browser.find_element(By.ID, "tip").text


def no_complaints(browser: webdriver.Chrome) -> None:
    log: list[dict[str, str]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert [entry for entry in log if entry["level"] == "SEVERE"] == []


def seam_colour(mask: int, dark: bool = False) -> str:
    return CLASSES[class_of(mask)].colours[dark]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_vma_and_seam_has_its_colour(browser: webdriver.Chrome, tmp_path: Path, theme: str) -> None:
    show(browser, small(), tmp_path, theme)
    dark = theme == "dark"
    band, ticks = place(browser, "bandY"), place(browser, "ticksY")
    for index, kind in ((0, "anonymous"), (3, "anonymous"), (4, "file-private")):
        # Below the label, so that no letter is met.
        assert pixel(browser, place(browser, f"rowX({index})"), band + 30) == KIND_COLOURS[kind][dark]
    for index, mask in enumerate((ANON_VMA, PAGE_OFFSET, PROTECTION)):
        assert pixel(browser, place(browser, f"seamX({index})"), ticks) == seam_colour(mask, dark)
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") is not dark
    no_complaints(browser)


def test_hovering_tells_about_the_vma_the_seam_and_the_gap(browser: webdriver.Chrome, tmp_path: Path) -> None:
    strip = show(browser, small(), tmp_path)
    band, ticks = place(browser, "bandY"), place(browser, "ticksY")
    text = hover(browser, strip, place(browser, "rowX(2)"), band)
    assert "7f0000020000-7f0000030000" in text
    assert "64 KiB" in text
    assert "below its address" in text
    assert "anon_vma: #2" in text
    text = hover(browser, strip, place(browser, "seamX(0)"), ticks)
    assert "open seam at 7f0000010000: anon-vma" in text
    assert "32 pages populated, 0 shared" in text
    assert "left" in text
    assert "right" in text
    text = hover(browser, strip, place(browser, "seamX(2)"), ticks)
    assert "seam at 7f0000030000: protection" in text
    assert "open seam" not in text
    # Widths on the axis: 5 for 16 pages, 2 for the gap, 7 for 64 pages.
    low, high = place(browser, "rowX(3)"), place(browser, "rowX(4)")
    assert hover(browser, strip, low + (high - low) * 3.5 / 8, band) == "nothing mapped: 15.8 MiB"
    text = hover(browser, strip, place(browser, "rowX(4)"), band)
    assert "owned" in text  # the name, as text
    assert "pro<b>gram" in browser.title
    assert browser.title != "owned"
    no_complaints(browser)


def test_sixty_thousand_vmas_stay_readable(browser: webdriver.Chrome, tmp_path: Path) -> None:
    report = large()
    strip = show(browser, report, tmp_path)
    assert (tmp_path / "picture.html").stat().st_size < 4 << 20
    assert place(browser, "rows") == 60_000
    width = strip.size["width"]
    ticks = place(browser, "ticksY")
    both = seam_colour(PAGE_OFFSET | ANON_VMA)
    for part in (0.05, 0.25, 0.45):
        assert pixel(browser, width * part, ticks) == both
    for part in (0.55, 0.75, 0.95):
        assert pixel(browser, width * part, ticks) == seam_colour(PROTECTION)
    text = hover(browser, strip, width * 0.25, ticks)
    assert "seams here; zoom in for each" in text
    assert "open: page-offset and anon-vma" in text
    assert "29,999" in browser.find_element(By.ID, "table-title").text
    # Zoomed in to one seam, it is drawn and told by itself.
    browser.execute_script("window.vmaweld.showSeam(12345)")
    assert pixel(browser, place(browser, "seamX(12345)"), ticks) == both
    text = hover(browser, strip, place(browser, "seamX(12345)"), ticks)
    assert f"open seam at {BASE + 12346 * 4096:x}: page-offset, anon-vma" in text
    no_complaints(browser)


def test_zooming_searching_and_switching_reasons_off(browser: webdriver.Chrome, tmp_path: Path) -> None:
    strip = show(browser, small(), tmp_path)
    ticks = place(browser, "ticksY")
    before = place(browser, "rowX(1)")
    strip.send_keys("+")
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert place(browser, "rowX(1)") != before
    strip.send_keys("0")
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert place(browser, "rowX(1)") == before
    find = browser.find_element(By.ID, "find")
    find.send_keys("7f0000020010", Keys.ENTER)
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert 0 < place(browser, "rowX(2)") < strip.size["width"]
    browser.execute_script("window.vmaweld.showAll()")
    (button,) = [
        one for one in browser.find_elements(By.CSS_SELECTOR, "#reasons button") if "open: anon-vma" in one.text
    ]
    assert pixel(browser, place(browser, "seamX(0)"), ticks) == seam_colour(ANON_VMA)
    button.click()
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert button.get_attribute("aria-pressed") == "false"
    assert pixel(browser, place(browser, "seamX(0)"), ticks) != seam_colour(ANON_VMA)
    for mode in ("scale", "equal", "log"):
        browser.find_element(By.CSS_SELECTOR, f"#axis option[value={mode}]").click()
        browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        xs = [place(browser, f"rowX({index})") for index in range(5)]
        assert xs == sorted(xs)
    no_complaints(browser)


def test_an_empty_address_space(browser: webdriver.Chrome, tmp_path: Path) -> None:
    show(browser, report_of([]), tmp_path)
    assert "0 VMAs" in browser.find_element(By.ID, "title").text
    no_complaints(browser)


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    page = picture(small())
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?://""", page)


# ---- the strip ------------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def test_the_svg_draws_every_vma_and_seam() -> None:
    document = ElementTree.fromstring(strip(small()))
    tips = [tip.text or "" for tip in document.iter(f"{SVG}title")]
    assert sum("anonymous" in tip for tip in tips) == 4
    assert sum(tip.startswith("open seam at") for tip in tips) == 2
    assert sum(tip.startswith("seam at") for tip in tips) == 1
    assert any("owned" in tip for tip in tips)
    assert not list(document.iter(f"{SVG}script"))
    classes = {rect.get("class") for rect in document.iter(f"{SVG}rect")}
    assert {f"s{class_of(ANON_VMA)}", f"s{class_of(PAGE_OFFSET)}", f"s{class_of(PROTECTION)}"} <= classes


def test_the_svg_of_sixty_thousand_vmas_is_added_up() -> None:
    text = strip(large())
    assert len(text) < 2 << 20
    document = ElementTree.fromstring(text)
    classes = [rect.get("class") for rect in document.iter(f"{SVG}rect")]
    both = f"s{class_of(PAGE_OFFSET | ANON_VMA)}"
    assert classes.count(both) > 3000
    assert classes.count(f"s{class_of(PROTECTION)}") > 3000
    right = max(float(rect.get("x", 0)) + float(rect.get("width", 0)) for rect in document.iter(f"{SVG}rect"))
    assert right <= 1200


def test_the_svg_of_nothing() -> None:
    assert ElementTree.fromstring(strip(report_of([]))).tag == f"{SVG}svg"
