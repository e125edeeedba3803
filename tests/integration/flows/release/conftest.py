"""Fixtures of the tests of a model's chain."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.ledger import Ledger
from tests.support.bench import Bench
from tests.support.probe_pipeline import copy_ledger


@pytest.fixture
def finished(finished_run: Ledger, ledger: Ledger, tmp_path: Path) -> Bench:
    """Everything of the small pipeline has run once."""
    copy_ledger(finished_run, ledger)
    return Bench(ledger, tmp_path)
