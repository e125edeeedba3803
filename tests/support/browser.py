"""A browser for tests of pages."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.limits import HANG


class Browser:
    """A headless Chromium, by the WebDriver protocol. It can reach no host but this one, and says what it wanted to
    reach.
    """

    def __init__(self, folder: Path) -> None:
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._driver.stdout is not None
        line = next(row for row in self._driver.stdout if "successfully on port " in row)
        self._base = f"http://127.0.0.1:{line.rpartition('on port ')[2].strip().rstrip('.')}"
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            f"--user-data-dir={folder}",
        ]
        arguments += [
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--window-size=1400,1000",
            "--no-proxy-server",
        ]
        options = {"args": arguments, "binary": shutil.which("chromium")}
        capabilities = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL"}}}
        self._session = "/session/" + self.call("POST", "/session", {"capabilities": capabilities})["sessionId"]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self._base + path, method=method, data=None if body is None else json.dumps(body).encode()
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=HANG) as answer:
            return json.loads(answer.read())["value"]

    def do(self, method: str, path: str, body: Any = None) -> Any:
        return self.call(method, self._session + path, body)

    def open(self, url: str) -> None:
        self.do("POST", "/url", {"url": url})

    def script(self, text: str) -> Any:
        return self.do("POST", "/execute/sync", {"script": text, "args": []})

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol: what the browser seems to be."""
        return self.do("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def resize(self, width: int, height: int = 1000) -> None:
        """The size of the page in CSS pixels: narrower than a window can be."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def mouse(self, kind: str, x: float, y: float, buttons: int = 0) -> None:
        button = "left" if buttons or kind == "mouseReleased" else "none"
        self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=buttons, clickCount=1)

    def picture(self, path: Path) -> None:
        """What it shows, as PNG."""
        path.write_bytes(base64.b64decode(self.do("GET", "/screenshot")))

    def hosts(self) -> set[str]:
        """Every host that the pages asked since the last call, whether it could be reached or not."""
        rows = [json.loads(row["message"])["message"] for row in self.do("POST", "/se/log", {"type": "performance"})]
        sent = [row["params"]["request"]["url"] for row in rows if row["method"] == "Network.requestWillBeSent"]
        sent += [row["params"]["url"] for row in rows if row["method"] == "Network.webSocketCreated"]
        return {urlsplit(url).hostname or "" for url in sent if urlsplit(url).scheme in ("http", "https", "ws", "wss")}

    def close(self) -> None:
        try:
            self.do("DELETE", "")
        finally:
            self._driver.kill()
            self._driver.wait()


def need_browser() -> None:
    """Skip the test where there is no browser."""
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("no chromium and chromedriver here (Debian: chromium, chromium-driver)")


@contextmanager
def open_browser(folder: Path) -> Generator[Browser]:
    """One with a new profile in a folder; the test is skipped where there is no browser."""
    need_browser()
    browser = Browser(folder)
    try:
        yield browser
    finally:
        browser.close()
