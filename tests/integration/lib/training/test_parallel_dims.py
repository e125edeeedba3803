"""`stages.lib.training.parallel_dims`: processes that are not ready at the same time."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.lib.training import parallel_dims
from stages.lib.training.parallel_dims import distributed
from tests.support.distributed import run_processes


def _sum_of_ranks(ctx: Any) -> None:
    if os.environ["RANK"] == "1":
        time.sleep(ctx.config)
    with distributed(ctx, torch.device("cpu")) as dims:
        ctx.metric(1, total=dims.all_reduce(dims.rank + 1.0)[0])


def test_a_process_that_is_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than an exchange may take: what each does before the first one takes them unequally long."""
    monkeypatch.setattr(parallel_dims, "TIMEOUT", timedelta(seconds=8))
    rows, outcome = run_processes(_sum_of_ranks, tmp_path, 2, 10, {})
    assert (outcome, [row["total"] for row in rows]) == ("done", [3.0])
