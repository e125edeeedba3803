"""A sample by row groups: spread over the corpus, of what is wanted and little more, and nothing else is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.artifacts import Documents
from stages.core.testing import local_artifact
from stages.lib.data import group_sampling
from stages.lib.data.group_sampling import read_groups, row_groups, spread
from stages.lib.formats.documents import SCHEMA
from stages.lib.formats.parquet_parts import PartWriter


@given(st.lists(st.integers(1, 1000), max_size=200), st.floats(0, 250_000))
def test_what_is_taken_reaches_what_is_wanted_and_not_much_more(weights: list[int], wanted: float) -> None:
    found = spread(weights, wanted)
    taken = sum(weights[n] for n in found)
    assert found == sorted(set(found))
    assert taken >= min(wanted, sum(weights))
    if wanted >= sum(weights):
        assert found == list(range(len(weights)))


def test_groups_of_one_size_are_spread_evenly_and_without_a_period() -> None:
    """Of 10,000 groups some 500: each tenth gives a tenth, each residue modulo 32 its share (chi-squared, 5 sigma)."""
    found = np.array(spread([1000] * 10_000, 500_000))
    assert 500 <= len(found) <= 570
    assert np.ptp(np.bincount(found // 1000, minlength=10)) <= 3
    counts = np.bincount(found % 32, minlength=32)
    expected = len(found) / 32
    assert abs(float(((counts - expected) ** 2 / expected).sum()) - 31) < 5 * 62**0.5


def test_only_the_groups_and_columns_that_are_asked_for_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    with PartWriter(tmp_path, SCHEMA, row_group_bytes=200_000, part_bytes=1 << 30) as writer:
        for n in range(300):
            noise = "".join(map(chr, rng.integers(32, 127, 4000)))
            writer.append((f"d{n}", noise, "s", noise, ""), 8000)
    groups = row_groups(local_artifact(Documents, tmp_path).entries())
    assert len(groups) > 10
    assert sum(group.rows for group in groups) == 300
    read = [0]
    plain = group_sampling.open_file

    def counting(entry: Any) -> Any:
        stream = plain(entry)

        class Raw:
            def __getattr__(self, name: str) -> Any:
                return getattr(stream, name)

            def read(self, size: int = -1) -> bytes:
                data = stream.read(size)
                read[0] += len(data)
                return data

            closed = property(lambda self: stream.closed)

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *error: object) -> None:
                stream.close()

        return Raw()

    monkeypatch.setattr(group_sampling, "open_file", counting)
    chosen = groups[3:9:2]
    tables = list(read_groups(chosen, ["text"]))
    whole = pq.read_table(tmp_path / "part-00000.parquet", columns=["text"])
    starts = np.cumsum([0, *(group.rows for group in groups)])
    for table, n in zip(tables, (3, 5, 7), strict=True):
        assert table.column("text").to_pylist() == whole.column("text").to_pylist()[starts[n] : starts[n + 1]]
    assert read[0] < 1.3 * sum(group.size for group in chosen) / 2 + 100_000
    assert read[0] < (tmp_path / "part-00000.parquet").stat().st_size / 4
