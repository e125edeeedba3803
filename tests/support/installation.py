"""A whole installation in a folder of its own: the services of `moxin up`, the command line, runs to break."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.limits import DAG, HANG
from tests.support.paths import ROOT

#: The tiny profile with still smaller numbers: the same nodes, the same code.
SMALL = {
    "collect.text_bytes": 1_500_000,
    "collect.web_bytes": 2_500_000,
    "collect.code_bytes": 500_000,
    "tokenizer.vocab_size": 1024,
    "tokenizer.sample_bytes": 1_000_000,
    "pretrain_1.tokens": 40_960,
    "pretrain_2.tokens": 40_960,
    "pretrain_3.tokens": 40_960,
}


def sets(values: dict[str, Any]) -> list[str]:
    """Values as `--set` arguments."""
    return [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]


@dataclass
class Installation:
    """Services in `home`, and how to use them."""

    home: Path

    @property
    def env(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_", "MOXIN_"))}
        return clean | {"MOXIN_HOME": str(self.home), "PYTHONPATH": str(ROOT)}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`moxin <arguments>` in the background."""
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # a background job of a script's ignores it, and hands that on
        )

    def moxin(self, *arguments: str, status: int = 0) -> str:
        """Run `moxin <arguments>` to its end; its output. The exit status must be `status`."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=DAG)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == status, f"moxin {' '.join(arguments)}: {process.returncode}\n{out}\n{err}"
        return out if status == 0 else err

    def json(self, *arguments: str) -> Any:
        """The JSON that a command prints."""
        return json.loads(self.moxin(*arguments, "--json"))

    def stages(self) -> list[int]:
        """Process numbers of the stages of this installation that run now."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if b"stages.core.runtime" in command and str(self.home).encode() in command and state != "Z":
                found.append(int(entry.name))
        return found

    def key(self, node: str, overrides: dict[str, Any]) -> str:
        """A node's present key; its parents must have results."""
        rows = self.json("plan", "--select", f"+{node}", *sets(overrides))["nodes"]
        return next(row["key"] for row in rows if row["name"] == node)

    def events(self, key: str) -> list[dict[str, Any]]:
        """The events of the newest attempt at a key; empty before it starts."""
        logs = sorted((self.home / "logs" / "stages" / key).glob("*.jsonl"))
        return [json.loads(line) for line in logs[-1].read_text().splitlines()] if logs else []

    def metrics(self, node: str) -> list[dict[str, float]]:
        """The metric rows that a node's newest result kept."""
        return [json.loads(line) for line in self.moxin("show", node, "--metrics").splitlines()]

    def prefect(self, method: str, path: str, body: Any = None) -> Any:
        """One call of this installation's Prefect API."""
        from flows.local_services.prefect import call_api
        from flows.settings import Settings

        return call_api(Settings.load(self.home), method, path, body)


def wait_for(what: Callable[[], Any], message: str, seconds: float = HANG) -> Any:
    """The first true value of `what`, asked several times a second; fails with `message` after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := what():
            return value
        time.sleep(0.2)
    pytest.fail(f"{message} (waited {seconds:.0f} s)")


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to one process."""
    os.kill(pid, number)
