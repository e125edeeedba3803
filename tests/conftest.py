"""Fixtures of all tests: a real object store (SeaweedFS, started once), and the probe stages of `tests/probes`.

`store` and `ledger` give each test a prefix of its own in the one bucket, so tests neither see nor disturb each other.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: tests share the cores
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a script's background job ignores Ctrl-C and hands that on: programs that tests start would, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

import stages
from flows.local_services import lifecycle, object_store, processes, state_file
from flows.settings import BUCKET, Settings
from stages.core.errors import InfraError
from stages.core.ledger import Ledger
from stages.core.messages import StoreAddress
from stages.core.store import Store
from tests.support.examples import FAST, FULL
from tests.support.limits import DAG, TEST
from tests.support.paths import PROBES

stages.__path__.append(str(PROBES))

for profile, count in (("moxin", FULL), ("fast", FAST)):
    hypothesis.settings.register_profile(profile, deadline=None, derandomize=True, max_examples=count)
hypothesis.settings.load_profile("moxin")  # `--hypothesis-profile fast` comes after this

_PREFIXES = itertools.count()


#: The folders of tests in the order in which they run. The longest, on one worker, begins at once; then comes what
#: finds most in a second, so that a run that ends early (`UNTIL`) has seen most.
ORDER = ("e2e", "contract", "unit", "integration", "profiles", "training", "fault", "docs", "launch")

#: The variable that names the second (`date +%s`) after which no test begins: those left are skipped, and counted by
#: folder. CI sets it: it is killed without a word after some time, on machines whose speed changes three times over.
UNTIL = "MOXIN_TEST_UNTIL"
OUT_OF_TIME = "not run: the time for tests was over"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by folder, and give each its limit, which is against hangs alone (tests/support/limits.py)."""
    here = Path(__file__).parent
    rank = {name: place for place, name in enumerate(ORDER)}
    items.sort(key=lambda item: rank.get(os.path.relpath(item.path, here).split(os.sep)[0], len(rank)))
    for item in items:
        long = item.path.parent.name in ("e2e", "launch") or item.get_closest_marker("upstream")
        item.add_marker(pytest.mark.timeout(DAG if long else TEST))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin nothing more when the time is over; before any fixture."""
    if time.time() > float(os.environ.get(UNTIL, "inf")):
        pytest.skip(OUT_OF_TIME)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many tests of each folder were not run because the time was over."""
    folders = [
        report.nodeid.split("/")[1]
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and OUT_OF_TIME in report.longrepr[2]
    ]
    for folder in dict.fromkeys(folders):
        terminalreporter.write_line(f"tests/{folder}: {folders.count(folder)} tests {OUT_OF_TIME}", red=True)


#: Files that one worker runs, one after another: those of `e2e` share services and what the first run made, those of
#: `kernels` compiled functions, which two workers would both compile where no cache of them is.
TOGETHER = {
    "e2e": ("tests/e2e/",),
    "kernels": (
        "tests/unit/stages/dedup/",
        "tests/unit/stages/contamination/",
        "tests/unit/lib/data/test_word_hashes.py",
    ),
}


class _Schedule(LoadFileScheduling):
    """A file at a time, and files that belong together as if they were one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return next((name for name, starts in TOGETHER.items() if file.startswith(starts)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """How `-n 2 --dist loadfile` deals out the tests."""
    return _Schedule(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """What a stage that runs in the tests' own process sets for itself (threads, no hub) reaches no later test."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(
        {
            name: value
            for name, value in before.items()
            if os.environ.get(name) != value and name != "PYTEST_CURRENT_TEST"
        }
    )


@pytest.fixture(scope="session")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A SeaweedFS on free loopback ports, with generated keys, for the whole session."""
    environment = dict(os.environ)
    folder = tmp_path_factory.mktemp("services")
    first = 20_000 + 100 * (os.getpid() % 200)  # far from the ports of `moxin up`, and from other test processes'
    keys = state_file.credentials(folder)
    for attempt in range(3):
        state = {f"{name}_port": first + 37 * i + attempt for i, name in enumerate(("s3", "master", "volume", "filer"))}
        lifecycle.start(folder, state, "store", object_store.command(folder, state, keys), lambda line: None)
        settings = Settings(
            home=folder,
            store=StoreAddress(bucket=BUCKET, endpoint=f"http://127.0.0.1:{state['s3_port']}"),
            prefect_api_url="http://127.0.0.1:9/api",
            external_store=True,
            external_prefect=False,
            credentials={"AWS_ACCESS_KEY_ID": keys["s3_access_key"], "AWS_SECRET_ACCESS_KEY": keys["s3_secret_key"]},
        )
        ready = functools.partial(object_store.ready, settings)
        try:
            lifecycle.wait(folder, state, "store", ready)
            break
        except InfraError:  # somebody took a port between the look and the start
            processes.stop(state, "store", 5.0)
            if attempt == 2:
                raise
    yield settings
    processes.stop(state, "store", 0.0)  # nothing is worth keeping: no orderly end
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session")
def root_store(store_server: Settings) -> Store:
    """The whole bucket. Most tests want `store`."""
    return Store(store_server.store)


@pytest.fixture
def store(root_store: Store) -> Store:
    """An empty store: a prefix of the bucket that no other test uses."""
    address = root_store.address.model_copy(update={"prefix": f"test-{os.getpid()}-{next(_PREFIXES)}/"})
    return Store(address, root_store._client)


@pytest.fixture
def ledger(store: Store) -> Ledger:
    """An empty ledger."""
    return Ledger(store)


@pytest.fixture(scope="session")
def finished_run(root_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """A ledger in which the small pipeline of `tests.support.probe_pipeline` has run once. To be read only: others use
    it too.
    """
    from tests.support import probe_pipeline

    address = root_store.address.model_copy(update={"prefix": f"finished-{os.getpid()}/"})
    ledger, folder, pipeline = (
        Ledger(Store(address, root_store._client)),
        tmp_path_factory.mktemp("finished"),
        probe_pipeline.small_pipeline(),
    )
    probe_pipeline.run_nodes(
        probe_pipeline.execution(pipeline, probe_pipeline.profile_of(pipeline, folder), ledger, folder), pipeline
    )
    return ledger


@pytest.fixture
def settings(store_server: Settings, store: Store, tmp_path: Path) -> Settings:
    """Settings of a control plane with an empty store and a state folder of its own."""
    return Settings(
        home=tmp_path / "home",
        store=store.address,
        prefect_api_url=store_server.prefect_api_url,
        external_store=True,
        external_prefect=False,
        credentials=store_server.credentials,
        prefect_auth="moxin:not-for-stages",
    )
