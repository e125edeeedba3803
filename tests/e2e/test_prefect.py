"""The Prefect pages ask this machine alone, and runs that nobody works on any more are closed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from stages.core.files import ROOT
from tests.support.browser import Browser, open_browser
from tests.support.installation import Installation, kill, wait_for
from tests.support.limits import HANG
from tests.support.prefect_pages import logged_in

pytestmark = pytest.mark.e2e


def page(installation: Installation, path: str, accept: str = "text/html") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a page, redirects followed."""
    from flows.settings import Settings

    request = urllib.request.Request(Settings.load(installation.home).prefect_ui_url + path, headers={"Accept": accept})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=HANG) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


def test_the_second_page_is_neither_offered_nor_there(installation: Installation) -> None:
    found = json.loads(page(installation, "/ui-settings", "application/json")[2])
    assert (found["available_uis"], found["default_ui"], found["v2_base_url"]) == (["v1"], "v1", None)
    for path in ("/v2", "/v2/", "/v2/dashboard", "/v2/assets/index.js"):
        for accept in ("text/html", "*/*"):
            assert page(installation, path, accept)[0] == 404
    status, headers, body = page(installation, "/dashboard")
    assert status == 200
    assert b"amplitude" not in body.lower()
    policy = headers["content-security-policy"]
    sources = {word for part in policy.split(";") for word in part.split()[1:]}
    assert {urlsplit(word).hostname for word in sources if "://" in word} == {"127.0.0.1", "localhost"}
    assert not [word for word in sources if word in ("*", "https:", "http:")]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with open_browser(tmp_path / "profile") as opened:
        yield opened


def test_a_browser_that_clicks_through_the_pages_asks_nobody_else(installation: Installation, browser: Browser) -> None:
    address = logged_in(installation, browser)
    asked, seen = browser.hosts(), 0
    pages = browser.script(
        "return [...new Set([...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href')))]"
    )
    for path in [found for found in pages if found.startswith("/")]:
        browser.open(address + path)
        wait_for(
            lambda: browser.script("return document.readyState === 'complete' && document.body.innerText.length > 0"),
            f"page {path}",
        )
        labels = browser.script("return [...document.querySelectorAll('button')].map(b => b.innerText)")
        assert not [label for label in labels if "v2" in label.lower()]
        browser.script(
            "document.querySelectorAll('button').forEach(b => { if (/new|try|upgrade|learn/i.test(b.innerText))"
            " b.click(); })"
        )
        time.sleep(0.5)
        asked |= browser.hosts()
        seen += 1
    assert seen >= 4, "it did not get into the pages"
    assert asked == {"127.0.0.1"}
    browser.script(
        "fetch('https://api2.amplitude.com/2/httpapi').catch(() => 0); new Image().src ="
        " 'https://example.org/pixel.png'"
    )
    blocked = browser.script(
        "return (async () => { try { await fetch('https://example.org/'); return 'sent'; } catch (e) { return"
        " 'refused'; } })()"
    )
    assert blocked == "refused"


FILL_IN = """
    const field = name => {
        const label = [...document.querySelectorAll('.schema-form-property__label')].find(
            one => one.innerText.startsWith(name + ' '));
        return label?.closest('.schema-form-property').querySelector('input, select, textarea');
    };
    const say = (box, value) => {
        Object.getOwnPropertyDescriptor(Object.getPrototypeOf(box), 'value').set.call(box, value);
        for (const kind of ['input', 'change']) box.dispatchEvent(new Event(kind, {bubbles: true}));
    };
    if (!field('tokens') || !field('document_mask')) return '';
    say(field('tokens'), '1');
    const mask = field('document_mask');
    say(mask, [...mask.options].find(one => one.text === 'true').value);
    [...document.querySelectorAll('button')].find(one => one.innerText === 'Submit').click();
    return 'submitted';
"""
"""Of the form of pretrain_1: two fields and the button."""


def test_a_node_is_run_from_its_form_and_its_failure_is_told(installation: Installation, browser: Browser) -> None:
    """Typed fields, none of which says more than was filled in; and an automation, as docs/using.md has it."""
    from flows.settings import Settings

    call = installation.prefect
    with listening() as (url, said):
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "using.md").read_text(), re.DOTALL)
        text = next(block for block in blocks if "CallWebhook" in block).replace("https://example.org/hook", url)
        env = installation.env | Settings.load(installation.home).environment()
        subprocess.run([sys.executable, "-c", text], env=env, check=True)
        deployment = call("GET", "/deployments/name/moxin/pretrain_1")
        address = logged_in(installation, browser)
        browser.open(f"{address}/deployments/deployment/{deployment['id']}/run")
        lines = (
            "Which nodes: 'full', or names and stages separated by commas",
            "peak (paper 3.4; upstream's scripts: 1e-5, 2e-5) [7b: 2e-06, small: 0.0006, tiny: 0.003]",
        )
        shown = "return document.body.innerText"  # descriptions are drawn after their fields
        wait_for(lambda: all(line in browser.script(shown) for line in lines), "descriptions of both")
        wait_for(lambda: browser.script(FILL_IN), "the form")
        query = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}}
        filled = {"pretrain_1": {"tokens": 1, "document_mask": True}}
        wait_for(
            lambda: [
                one for one in call("POST", "/flow_runs/filter", query) if one["parameters"].get("fields") == filled
            ],
            "the run",
        )
        name = "tiny pretrain_1 pretrain_1.tokens=1 pretrain_1.document_mask=true: Failed"
        message = wait_for(lambda: [text for text in said if text.startswith(name)], "the notification")[0]
        assert "tokens = 1 is less than one batch" in message
        named = {"automations": {"name": {"any_": ["tell of failed runs"]}}}
        for automation in call("POST", "/automations/filter", named):
            call("DELETE", f"/automations/{automation['id']}")


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """A webhook on loopback: its address, and what it was told."""
    said: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", said
        server.shutdown()


def claimed(installation: Installation, *states: str) -> str:
    """A run of a deployment in a state, and through those before it; no worker sees it."""
    found = installation.prefect("GET", "/deployments/name/moxin/collect")
    body = {
        "parameters": {"select": "collect"},
        "state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}},
    }
    run_id = installation.prefect("POST", f"/deployments/{found['id']}/create_flow_run", body)["id"]
    for state in states:
        installation.prefect("POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": state}, "force": True})
    return run_id


def test_runs_that_nobody_works_on_any_more_are_closed(installation: Installation) -> None:
    """Their worker was killed between claiming them and their first heartbeat; one was to be cancelled after that."""
    services = json.loads((installation.home / "services.json").read_text())
    kill(int(services["worker"].partition(":")[0]), signal.SIGKILL)
    begun, cancelled = claimed(installation, "PENDING"), claimed(installation, "PENDING", "CANCELLING")
    waits = claimed(installation)
    time.sleep(1.1)  # the start of a process is known to a hundredth, and the boot to a second
    out = installation.start("up").communicate(timeout=HANG)
    states = {run: installation.prefect("GET", f"/flow_runs/{run}")["state"] for run in (begun, cancelled, waits)}
    assert [states[run]["type"] for run in (begun, cancelled, waits)] == ["CRASHED", "CANCELLED", "SCHEDULED"], out
    assert states[begun]["message"] == "its worker ended before the run began"
    assert "is closed as crashed: its worker ended before the run began" in out[1]


def test_a_run_whose_process_outlives_its_worker_for_a_moment_is_closed_by_itself(installation: Installation) -> None:
    """Seen: a worker was killed when it had just started a run's process, which was alive when `moxin up` looked, and
    ended before its first heartbeat. Nobody looked again.
    """
    services = json.loads((installation.home / "services.json").read_text())
    kill(int(services["worker"].partition(":")[0]), signal.SIGKILL)
    run_id = claimed(installation, "PENDING")

    def process(number: str) -> None:
        installation.prefect("PATCH", f"/flow_runs/{run_id}", {"infrastructure_pid": number})

    def state() -> dict[str, Any]:
        return installation.prefect("GET", f"/flow_runs/{run_id}")["state"]

    process(services["prefect"].partition(":")[0])  # one of Prefect's that lives
    time.sleep(1.1)  # the start of a process is known to a hundredth, and the boot to a second
    installation.moxin("up")
    assert state()["type"] == "PENDING"
    process(str(2**22 + 1))
    wait_for(lambda: state()["type"] == "CRASHED", "the end of a run that nobody works on")
    assert state()["message"] == "its process is gone"


def test_nothing_of_this_machine_is_asked_for_through_a_proxy(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that answers nothing, as one of a company that knows no loopback: plan, Prefect's client, the stage and
    its store.
    """
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    installation.json("plan", "--select", "collect")
    values = [
        "--set",
        "collect.text_bytes=310000",
        "--set",
        "collect.web_bytes=300000",
        "--set",
        "collect.code_bytes=100000",
    ]
    assert installation.json("run", "--select", "collect", *values)["ok"]
