"""The fast tier's bounds: a test here starts no service and no program that trains, imports no PyTorch, and asks nobody
beyond loopback.

Whatever does belongs in tests/integration, or in tests/training.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

SERVICES = ("weed", "prefect", "dockerd", "slurmctld", "chromium")
TRAINERS = ("torch.distributed.run", "torchrun", "accelerate", "stages.core.runtime")
LARGE = frozenset({"lm_eval", "prefect", "torch", "transformers"})
"""Libraries that take seconds to import and much memory, in each worker: for tests that are marked `slow`, inside."""

_broken: list[str] = []
_inside = 0


class OutOfTier(AssertionError):
    """What this tier does not do."""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook of the interpreter: refuses before it happens."""
    if not _inside:
        return
    if event == "subprocess.Popen":
        words = [str(word) for word in (arguments[0], *(arguments[1] or ()))]
        for word in (*SERVICES, *TRAINERS):
            if any(given == word or given.endswith(f"/{word}") for given in words):
                _refuse(f"starts {word}")
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
        if not (host.startswith("127.") or host in ("::1", "localhost", "0.0.0.0")):
            _refuse(f"connects to {host}")


def _refuse(what: str) -> None:
    _broken.append(what)
    raise OutOfTier(f"a test of tests/unit {what}: it belongs in tests/integration or tests/training")


sys.addaudithook(_watch)


@pytest.fixture(scope="session")
def store_server() -> None:
    """There is none: in place of the fixture of tests/conftest.py, for `store`, `ledger` and all that needs them."""
    pytest.fail("tests/unit has no object store: a test that needs one belongs in tests/integration")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """A file that imports a large library, itself or through what it imports, is no file of this tier."""
    before = LARGE & sys.modules.keys()
    report: Any = yield
    if brought := _large(before):
        report.outcome, report.result = "failed", []
        report.longrepr = (
            f"{collector.nodeid} imports {brought}: inside a test that is marked slow, or in tests/training"
        )
    return report


def _large(before: frozenset[str]) -> str:
    return ", ".join(sorted((LARGE & sys.modules.keys()) - before))


@pytest.fixture(autouse=True)
def within_the_tier(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that went out of bounds, even where the code under test caught the refusal."""
    global _inside
    before, _inside = LARGE & sys.modules.keys(), 1
    _broken.clear()
    yield
    _inside = 0
    if _broken:
        pytest.fail(f"a test of tests/unit {_broken[0]}: it belongs in tests/integration or tests/training")
    if (brought := _large(before)) and not request.node.get_closest_marker("slow"):
        pytest.fail(f"a test of tests/unit imports {brought}: mark it slow, or it belongs in tests/training")
