"""Recognizable credentials are planted, a run goes by, and nothing that it leaves or shows holds one: logs, requests,
records and artifacts in the store, Prefect's database, the report, command lines, output; nor could a core file.
"""

from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from flows.settings import Settings
from stages.core.store import Store
from tests.support.installation import SMALL, Installation, sets
from tests.support.limits import DAG
from tests.support.planted import CONTROL_PLANE, SOURCES, held, held_in_files, secrets_in

pytestmark = pytest.mark.e2e
SELECT = "+ingest_text"
VALUES = SMALL | {"resources.ingest_text.network": "internet", "collect.seed": 3}
"""One stage may reach the internet, and is given the sources' credentials. A seed of its own: both run."""


@dataclass
class Planted(Installation):
    """An installation whose user has credentials of everything."""

    @property
    def env(self) -> dict[str, str]:
        return super().env | SOURCES | CONTROL_PLANE


@dataclass
class Seen:
    """What a run showed while it went by."""

    command_lines: set[bytes] = field(default_factory=set)
    requests: set[bytes] = field(default_factory=set)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of each node's stage."""
    core_limits: dict[str, int] = field(default_factory=dict)
    """Bytes of a core file, by what the process is."""
    output: str = ""

    def look(self, home: Path) -> None:
        """Look once at every process of this machine that is of the installation, or shows anything."""
        for path in (home / "requests").glob("*.json"):
            try:
                self.requests.add(path.read_bytes())
            except OSError:
                continue
        for process in psutil.process_iter():
            try:
                words, env = process.cmdline(), process.environ()
                limit = process.rlimit(psutil.RLIMIT_CORE)[0]
            except (psutil.Error, OSError):
                continue
            self.command_lines.add("\0".join(words).encode("utf-8", "surrogateescape"))
            if str(home) not in (env.get("MOXIN_HOME"), env.get("MOXIN_SERVICE_HOME")) and not env.get(
                "MOXIN_SCRATCH", ""
            ).startswith(str(home)):
                continue
            if "stages.core.runtime" in words and env.get("MOXIN_RUN"):
                name = Path(words[-1]).name
                self.environments[name] = env
                self.core_limits[f"stage {name}"] = limit
            elif service := env.get("MOXIN_SERVICE"):
                self.core_limits[service] = limit


@pytest.fixture(scope="module")
def here(installation: Installation) -> Planted:
    return Planted(installation.home)


@pytest.fixture(scope="module")
def seen(here: Planted) -> Iterator[Seen]:
    """A run of two nodes, looked at from outside all the time."""
    watched, over = Seen(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            watched.look(here.home)
            time.sleep(0.05)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with here.start("run", "--select", SELECT, *sets(VALUES)) as process:
            out, err = process.communicate(timeout=DAG)
            assert process.returncode == 0, out + err
    finally:
        over.set()
        watching.join()
    watched.output = out + err
    return watched


@pytest.fixture(scope="module")
def secrets(here: Planted) -> dict[str, str]:
    """All that may be found nowhere, by name."""
    generated = json.loads((here.home / "credentials.json").read_text())
    own = {"s3_secret_key": generated["s3_secret_key"], "password": generated["prefect_auth"].partition(":")[2]}
    return secrets_in(SOURCES | CONTROL_PLANE) | own


def test_the_secrets_were_there_to_be_found(here: Planted, seen: Seen, secrets: dict[str, str]) -> None:
    """Each stage had what it needs, and nothing else: the sources' credentials are the second one's alone."""
    assert len(seen.environments) == 2, "each node's stage was seen at work"
    reached = [env for env in seen.environments.values() if "HF_TOKEN" in env]
    assert len(reached) == 1
    assert {name: reached[0][name] for name in SOURCES} == SOURCES
    for env in seen.environments.values():
        assert env["AWS_SECRET_ACCESS_KEY"] == secrets["s3_secret_key"]
        assert not CONTROL_PLANE.keys() & env.keys()
        assert secrets["password"] not in str(env)
    (other,) = [env for env in seen.environments.values() if env is not reached[0]]
    assert not held(str(other).encode(), secrets_in(SOURCES))


def test_no_command_line_request_or_output_holds_one(seen: Seen, secrets: dict[str, str]) -> None:
    assert any(b"stages.core.runtime" in line for line in seen.command_lines)
    assert seen.requests
    for text in (*seen.command_lines, *seen.requests, seen.output.encode()):
        assert held(text, secrets) == [], text[:200]


def test_no_file_of_the_state_folder_holds_one(here: Planted, seen: Seen, secrets: dict[str, str]) -> None:
    """Logs, requests, reports, scratch, caches, Prefect's database and the store's own files."""
    here.moxin("report")
    kept = [here.home / "credentials.json", here.home / ".env"]
    assert (here.home / "prefect" / "prefect.db").is_file()
    assert list(here.home.glob("logs/stages/*/*.jsonl"))
    assert list(held_in_files(here.home, secrets, kept)) == []
    for path in kept:
        assert not path.exists() or stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_object_of_the_store_holds_one(
    here: Planted, seen: Seen, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the store gives them: on its disk they may be packed."""
    settings = Settings.load(here.home)
    for name, value in settings.credentials.items():
        monkeypatch.setenv(name, value)
    store, kinds = Store(settings.store), set()
    for row in store.list(""):
        stored = store.get(row.key)
        assert stored is None or held(stored[0] + row.key.encode(), secrets) == [], row.key
        kinds.add(row.key.partition("/")[0])
    assert {"manifests", "attempts", "leases", "nodes", "objects"} <= kinds


def test_what_prefect_was_told_holds_none(here: Planted, seen: Seen, secrets: dict[str, str]) -> None:
    runs = here.prefect("POST", "/flow_runs/filter", {"limit": 200})
    assert [run for run in runs if run["parameters"].get("select") == SELECT]
    logs = here.prefect("POST", "/logs/filter", {"limit": 200})
    artifacts = here.prefect("POST", "/artifacts/filter", {"limit": 200})
    variables = here.prefect("POST", "/variables/filter", {})
    assert held(json.dumps([runs, logs, artifacts, variables]).encode(), secrets) == []


def test_no_process_leaves_a_core_file(seen: Seen) -> None:
    """A limit of one byte, below which nothing is written and no program is told of the crash."""
    assert {"store", "prefect", "worker"} <= seen.core_limits.keys()
    assert len(seen.core_limits) >= 5
    assert set(seen.core_limits.values()) <= {0, 1}
