"""The report in a real browser: its plots answer, it fits a phone, and it asks nobody for anything."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import report
from flows.report import plots
from stages.core.ledger import Ledger
from tests.support.browser import Browser, open_browser

pytestmark = pytest.mark.slow
RANGE = "return document.querySelector('figure.plot').moxin.plots.map(p => [p.scales.x.min, p.scales.x.max])"
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def folder(trained: Ledger, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """The page in a folder, and the address of a server that knows files alone."""
    page = tmp_path / "site" / "tiny.html"
    report.write(report.collect(trained, "tiny"), page)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(page.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield page, f"http://127.0.0.1:{server.server_address[1]}/tiny.html"
    server.shutdown()
    server.server_close()


def test_the_page_answers_fits_and_asks_nobody(browser: Browser, folder: tuple[Path, str]) -> None:
    page, address = folder
    browser.resize(1200)
    browser.open(page.as_uri())
    whole = browser.script(RANGE)
    assert len(whole) == 2  # loss and rate have rows; norm and speed have none: their panels are not drawn
    assert whole == [whole[0]] * 2
    assert browser.script("return document.querySelector('figure.plot .static').hidden")

    # hover: the legend has the numbers under the pointer
    browser.script("document.querySelector('.u-over').scrollIntoView({block: 'center'})")
    box = browser.script(
        "const b = document.querySelector('.u-over').getBoundingClientRect(); return [b.x, b.y, b.width]"
    )
    x, y, width = box
    browser.mouse("mouseMoved", x + width / 2, y + 60)
    shown = browser.script("return document.querySelector('.u-legend').innerText")
    assert "pretrain_2" in shown
    assert "6." in shown, shown  # its loss in the middle of the axis

    # dragging zooms every panel of the figure, clicking twice shows all again
    browser.mouse("mousePressed", x + width * 0.25, y + 60, buttons=1)
    browser.mouse("mouseMoved", x + width * 0.5, y + 60, buttons=1)
    browser.mouse("mouseReleased", x + width * 0.5, y + 60)
    near = browser.script(RANGE)
    assert near == [near[0]] * 2
    assert near[0][1] - near[0][0] < 0.4 * (whole[0][1] - whole[0][0])
    browser.script("[...document.querySelectorAll('.tools button')].find(b => b.textContent === 'whole').click()")
    assert browser.script(RANGE) == whole
    browser.script("[...document.querySelectorAll('.tools button')].find(b => b.textContent === 'log').click()")
    assert browser.script("return document.querySelector('figure.plot').moxin.plots[0].scales.y.distr") == 3

    # a phone, light and dark
    for scheme in ("light", "dark"):
        browser.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.resize(390)
        assert browser.script(OVERFLOW) <= 0
    assert browser.script("return getComputedStyle(document.documentElement).backgroundColor") == "rgb(21, 24, 28)"
    assert browser.hosts() == set()  # from a file: not one request

    browser.open(address)
    assert browser.script(RANGE)
    assert browser.hosts() == {"127.0.0.1"}
    refused = "return fetch(location.href).then(() => 'sent', () => 'refused')"
    assert browser.script(refused) == "refused", "the page's own policy"


def test_without_scripts_the_static_picture_stands_there(browser: Browser, folder: tuple[Path, str]) -> None:
    browser.resize(1200)
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(folder[0].as_uri())
    document = browser.command("DOM.getDocument")["root"]["nodeId"]
    assert browser.command("DOM.querySelectorAll", nodeId=document, selector=".uplot")["nodeIds"] == []
    picture = browser.command("DOM.querySelector", nodeId=document, selector="figure.plot .static svg")["nodeId"]
    assert browser.command("DOM.getBoxModel", nodeId=picture)["model"]["height"] > 100


def test_the_bundled_library_is_the_one_that_its_readme_names() -> None:
    import hashlib

    rows = [row.split("`") for row in (plots.UPLOT / "README.md").read_text().splitlines() if row.startswith("| `")]
    assert {row[1]: row[3] for row in rows} == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in plots.UPLOT.iterdir()
        if path.name != "README.md"
    }
