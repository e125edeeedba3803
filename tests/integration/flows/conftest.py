"""Fixtures of the tests of the execution."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.core.ledger import Ledger
from tests.support.bench import Bench
from tests.support.probe_pipeline import copy_ledger


@pytest.fixture
def bench(ledger: Ledger, tmp_path: Path) -> Bench:
    return Bench(ledger, tmp_path)


@pytest.fixture
def finished(finished_run: Ledger, ledger: Ledger, tmp_path: Path) -> Bench:
    """Everything has run once."""
    copy_ledger(finished_run, ledger)
    return Bench(ledger, tmp_path)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads such as the flow's tasks run in."""
    with ThreadPoolExecutor(4) as pool:
        yield pool
