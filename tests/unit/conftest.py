"""The fast tier's bounds: a test here starts no service and no program that trains, trains no model, and asks nobody
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
STEPS = 30
"""Optimizer steps of one test: a step's arithmetic is tested here, a loss that falls is not."""

_broken: list[str] = []
_inside = _steps = 0
_counted = False


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


def _count(*_: Any) -> None:
    global _steps
    _steps += 1


sys.addaudithook(_watch)


@pytest.fixture(scope="session")
def store_server() -> None:
    """There is none: in place of the fixture of tests/conftest.py, for `store`, `ledger` and all that needs them."""
    pytest.fail("tests/unit has no object store: a test that needs one belongs in tests/integration")


@pytest.fixture(autouse=True)
def within_the_tier() -> Iterator[None]:
    """Fails a test that went out of bounds, even where the code under test caught the refusal."""
    global _counted, _inside, _steps
    if not _counted and "torch" in sys.modules:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(_count)
        _counted = True
    _steps, _inside = 0, 1
    _broken.clear()
    yield
    _inside = 0
    if _broken:
        pytest.fail(f"a test of tests/unit {_broken[0]}: it belongs in tests/integration or tests/training")
    if _steps > STEPS:
        pytest.fail(f"a test of tests/unit made {_steps} optimizer steps, more than {STEPS}: tests/training")
