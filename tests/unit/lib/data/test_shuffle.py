"""`stages.lib.data.shuffle`: every record comes out once, in its partition and in order, whatever is merged and however
many files there are.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import InputError
from stages.lib.data import shuffle, spills, stored_array
from stages.lib.data.shuffle import Cut, Layout, Records, Spiller, gather, read, read_all
from stages.lib.data.workers import Pool, Result
from tests.support.examples import max_examples
from tests.support.paths import ROOT

PLAIN = Layout((("<u8", 1), ("<u2", 3)))
RUNS = Layout((("<u4", 1),), payload=True)


def some_records(number: int, places: list[int], layout: Layout) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Records that say which they are: columns and payload of a task's `Spiller.add`."""
    count, first = len(places), number * 1000
    if not layout.payload:
        numbers = np.arange(first, first + count, dtype=np.uint64) << np.uint64(40)
        return [numbers, np.arange(3 * count, dtype=np.uint16).reshape(-1, 3)], {}
    texts = [b"x" * (n * 37 % 1500) + str(first + n).encode() for n in range(count)]
    ends = np.cumsum([5, *map(len, texts)])  # other bytes may lie before them
    return [np.arange(first, first + count, dtype=np.uint32)], {
        "source": np.frombuffer(b"other" + b"".join(texts), np.uint8),
        "ends": ends,
    }


def spill(folder: Path, number: int, places: list[int], payload: bool, cut: list[int], held: int) -> int:
    layout = RUNS if payload else PLAIN
    spiller = Spiller(folder, "rows", layout, Cut(*cut), held=held)
    for start in range(0, len(places), 50):
        columns, more = some_records(number + start, places[start : start + 50], layout)
        spiller.add(np.array(places[start : start + 50]), *columns, **more)
    return spiller.close()


def rows(records: Records) -> list[Any]:
    """As plain values."""
    columns = [column.tolist() for column in records.columns]
    if len(records.ends) > 1:
        columns.append(
            [records.source[a:b].tobytes() for a, b in zip(records.ends[:-1], records.ends[1:], strict=True)]
        )
    return [list(row) for row in zip(*columns, strict=True)]


def shuffled(root: Path, every: list[list[int]], partitions: int, fan: int, payload: bool, held: int) -> Any:
    root.mkdir(exist_ok=True)
    pool, cut = Pool(root), Cut.into(partitions, fan)
    tasks = [
        {"number": n, "places": p, "payload": payload, "cut": [cut.partitions, cut.per_block], "held": held}
        for n, p in enumerate(every)
    ]
    results: list[Result] = pool.map("spill", spill, tasks)
    return gather(pool, "rows", [result.files for result in results], cut, fan=fan)


@max_examples(15)
@given(
    st.lists(st.lists(st.integers(0, 12), max_size=120), max_size=9),
    st.sampled_from([2, 3, 512]),
    st.booleans(),
    st.sampled_from([1, 3000, 1 << 20]),
)
def test_every_record_comes_out_once_in_its_partition_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, every: list[list[int]], fan: int, payload: bool, held: int
) -> None:
    layout = RUNS if payload else PLAIN
    wanted: list[list[Any]] = [[] for _ in range(13)]
    for number, places in enumerate(every):
        for start in range(0, len(places), 50):
            columns, more = some_records(number + start, places[start : start + 50], layout)
            if "ends" in more:
                more["source"], more["ends"] = more["source"][5:], more["ends"] - 5
            for place, row in zip(places[start : start + 50], rows(Records(columns, **more)), strict=True):
                wanted[place].append(row)
    found = shuffled(tmp_path_factory.mktemp("shuffle"), every, 13, fan, payload, held)
    for partition in range(13):
        assert rows(read_all(found.source(partition), layout)) == wanted[partition]


def test_chunks_are_bounded_and_a_large_record_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spills, "CHUNK_BYTES", 4000)
    found = shuffled(tmp_path, [[0] * 50, [1] * 50], 2, 512, True, 1 << 20)
    chunks = list(read(found.source(1)))
    assert sum(map(len, chunks)) == 50
    assert len(chunks) > 5
    assert all(len(chunk) == 1 or len(chunk.source) <= 4000 for chunk in chunks)
    assert any(len(chunk.source) > 1000 for chunk in chunks)


def test_what_is_dropped_is_left_out(tmp_path: Path) -> None:
    """Merged or not, records whose number is marked do not come out."""
    for fan in (2, 512):
        pool, cut = Pool(tmp_path / str(fan)), Cut.into(3, fan)
        tasks = [
            {"number": n, "places": [0, 1, 2, 1], "payload": True, "cut": [3, cut.per_block], "held": 1 << 20}
            for n in range(5)
        ]
        marks = np.zeros(4004, np.int8)
        marks[[1, 2001, 4000]] = 1
        marks = stored_array.store(pool, "marks", marks)
        results = pool.map("spill", spill, tasks)
        spans = [(1000 * n, 1000 * n + 4) for n in range(5)]
        found = gather(pool, "rows", [r.files for r in results], cut, fan=fan, drop=shuffle.Drop(marks, 0, spans))
        left = [row[0] for p in range(3) for row in rows(read_all(found.source(p), RUNS))]
        assert sorted(left) == sorted(
            set(range(0, 5000, 1)) & {1000 * n + k for n in range(5) for k in range(4)} - {1, 2001, 4000}
        )


def test_damage_is_named(tmp_path: Path) -> None:
    found = shuffled(tmp_path, [[0, 1, 1]], 2, 512, False, 1 << 20)
    path = next(tmp_path.rglob("rows-00000"))
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    with pytest.raises(InputError, match="rows-00000 cannot be read: it ends early"):
        read_all(found.source(1), PLAIN)
    path.write_bytes(b"x" + data[1:])
    with pytest.raises(InputError, match="rows-00000 cannot be read: no file of a shuffle"):
        read_all(found.source(1), PLAIN)


def test_a_byte_that_changed_anywhere_is_named(tmp_path: Path) -> None:
    """A reader of small ranges has no other check than the file's own."""
    found = shuffled(tmp_path, [[0, 1, 1]], 2, 512, True, 1 << 20)
    path = next(tmp_path.rglob("rows-00000"))
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])
        with pytest.raises(InputError, match="rows-00000 cannot be read"):
            [read_all(found.source(p), RUNS) for p in range(2)]


@pytest.mark.slow  # a process of its own
def test_many_shards_with_a_limit_of_open_files(tmp_path: Path) -> None:
    """More tasks and partitions than a merge takes, and that more than the 64 open files that are allowed: nothing else
    changes.
    """
    script = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from tests.unit.lib.data.test_shuffle import *
places = [[(n * 7 + k * 31) % 130 for k in range(4)] for n in range(120)]
found = shuffled(Path(sys.argv[1]), places, 130, 100, False, 1 << 20)
total = 0
for partition in range(0, 130, 5):
    wanted = sum(row.count(partition) for row in places)
    assert len(read_all(found.source(partition), PLAIN)) == wanted, partition
    total += wanted
print(total, len(found.runs))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "work")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 50
