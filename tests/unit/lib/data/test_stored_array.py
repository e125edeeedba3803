"""`stages.lib.data.stored_array`: a range of a stored array is that range, whatever blocks and files it lies in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.lib.data import stored_array
from stages.lib.data.workers import Pool

RANGES = [(0, 1000), (0, 0), (5, 6), (127, 129), (250, 600), (990, 1000), (256, 512)]


def test_ranges_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_array, "BLOCK", 64)
    monkeypatch.setattr(stored_array, "SEGMENT", 256)
    values = np.random.default_rng(0).integers(0, 1 << 32, 1000, dtype=np.uint32)
    found = stored_array.store(Pool(tmp_path), "values", values)
    assert len(found.files) == 4
    for low, high in RANGES:
        part = found.part(low, high)
        assert len(part["files"]) <= 1 + (high - low) // 256 + 1
        assert np.array_equal(stored_array.read(part), values[low:high])
        assert stored_array.read(part).dtype == np.uint32


def test_an_empty_array_is_one(tmp_path: Path) -> None:
    found = stored_array.store(Pool(tmp_path), "values", np.empty(0, np.int8))
    assert stored_array.read(found.part(0, 0)).tolist() == []
