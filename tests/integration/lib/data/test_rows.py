"""Rows of data set files (stages/lib/data/rows.py), here and from a hub on loopback, as `HubDataSet` hands them on."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core.errors import InputError
from stages.core.testing import LocalContext
from stages.lib.data import probe
from stages.lib.data.hub import HubDataSet, table
from stages.lib.data.mixture import draw_mixture
from stages.lib.data.mixture_spec import MixtureSource
from stages.lib.data.rows import FileRows
from stages.lib.formats.examples import read_problems
from stages.lib.formats.sources import RawFile
from stages.problems.run import run
from stages.problems.spec import ProblemsConfig
from tests.support import loopback_hub
from tests.support.hub_sets import card
from tests.support.limits import HANG
from tests.support.loopback_hub import Hub, Repository, jsonl

PROGRAM = """
import json, sys
from pathlib import Path
from stages.core.errors import StageError
from stages.lib.data.hub import HubDataSet
try:
    rows = HubDataSet("a/b", Path(sys.argv[1]), revision="c" * 40).splits("default")["train"]
    print(json.dumps([len(rows), list(rows), list(rows.select([1, 2]))]))
except StageError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
FIRST: list[dict[str, Any]] = [
    {"id": 1, "messages": [{"role": "user", "content": "ä"}], "meta": {"score": 1}},
    {"id": 2, "messages": [], "meta": None},
]
SECOND: list[dict[str, Any]] = [
    {
        "id": "3",
        "messages": [{"role": "user", "content": "b", "weight": 0.5}],
        "meta": {"tags": ["x"], "score": "high"},
        "more": {"deep": [{"k": 1}]},
    }
]
SHARDS = {"data/train-0.jsonl": codecs.BOM_UTF8 + jsonl(FIRST), "data/train-1.jsonl.gz": gzip.compress(jsonl(SECOND))}


def from_hub(root: Path, files: dict[str, bytes]) -> Any:
    with Hub(
        {"a/b": Repository("c" * 40, {"README.md": card({"default": {"train": "data/train-*"}}), **files})}
    ) as hub:
        command = [sys.executable, "-c", PROGRAM, str(root / "cache")]
        done = subprocess.run(
            command, env=hub.environment(root / "home"), capture_output=True, text=True, check=False, timeout=HANG
        )
        assert hub.strange == []
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def mirror(root: Path, files: dict[str, bytes], front: str = "") -> HubDataSet:
    for name, data in {**files, "README.md": f"---\nlicense: mit\n{front}---\n".encode()}.items():
        (root / "a/b" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "a/b" / name).write_bytes(data)
    return HubDataSet("a/b", root / "cache", mirror=str(root))


def test_the_first_rows_are_read_where_they_are_and_no_file_behind_them(tmp_path: Path) -> None:
    mirror(tmp_path, {"data/train-0.jsonl": jsonl(FIRST)})
    here, gone = ((tmp_path / "a/b/data" / name).as_uri() for name in ("train-0.jsonl", "train-1.jsonl"))
    files = [RawFile(uri=uri, format="jsonl", source="hub") for uri in (here, gone)]
    rows = FileRows("a/b", files, tmp_path / "fetched", promised=7)
    head = rows.head(2)
    assert (len(head), list(head), list(head.select([1]))) == (2, FIRST, FIRST[1:])
    assert list(rows.head(1)) == FIRST[:1]
    assert not (tmp_path / "fetched").exists()
    with pytest.raises(InputError, match="train-1"):
        rows.head(3)


@pytest.mark.parametrize(("first", "taken"), [(2, [0, 1]), (None, [0, 1, 2, 3])])
def test_a_mixture_is_drawn_of_the_first_rows_alone(tmp_path: Path, first: int | None, taken: list[int]) -> None:
    mirror(tmp_path, {"data/train-0.jsonl": jsonl([{"n": n} for n in range(4)])})
    ctx: Any = LocalContext(tmp_path / "run", ProblemsConfig())
    source = MixtureSource(data_set="a/b", first=first)
    (drawn,) = draw_mixture(ctx, [source], str(tmp_path), 0)
    assert [row["n"] for row in drawn.rows] == taken
    assert drawn.provenance()["taken"] == len(taken)
    assert ("first" in source.model_dump()) == (first is not None), "keys from before it was there stay"


@pytest.mark.slow
def test_shards_of_a_hub_with_differing_nested_columns_a_mark_and_a_packing_are_read_as_they_are(
    tmp_path: Path,
) -> None:
    rows = FIRST + SECOND
    assert from_hub(tmp_path, SHARDS) == [3, rows, rows[1:]]


@pytest.mark.slow
def test_bytes_that_are_not_those_promised_are_the_fault_of_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = loopback_hub._reply

    def flipped(ask: Any, status: int, data: bytes, head: Any, cut: bool = False) -> None:
        data = data.replace(b'"id": 2', b'"id" 2:') if ask.path.startswith("/cdn/") else data
        right(ask, status, data, head, cut)

    monkeypatch.setattr(loopback_hub, "_reply", flipped)
    kind, line = from_hub(tmp_path, {"data/train-0.jsonl": jsonl(FIRST)})
    assert kind == "InfraError", "no bad data: the file's digest is another one"
    assert line.startswith("data set a/b, configuration default, split train: raw file hf://datasets/a/b@")
    assert "another SHA-256" in line


def test_the_same_shards_of_a_mirror(tmp_path: Path) -> None:
    rows = mirror(tmp_path, SHARDS).splits("default")["train"]
    assert list(rows) == FIRST + SECOND
    assert [row["id"] for row in rows.select([0, 2]).select([1])] == ["3"]


def test_rows_are_chosen_over_files_and_row_groups(tmp_path: Path) -> None:
    (tmp_path / "a/b/data").mkdir(parents=True)
    for part in range(3):
        more = {"other": [{"x": part}] * 10} if part == 1 else {}
        pq.write_table(
            pa.table({"n": list(range(10 * part, 10 * part + 10)), **more}),
            tmp_path / f"a/b/data/train-{part}.parquet",
            row_group_size=4,
        )
    rows = mirror(tmp_path, {}).splits("default")["train"]
    assert [row["n"] for row in rows] == list(range(30))
    chosen = [0, 3, 4, 9, 20, 29]
    assert [row["n"] for row in rows.select(chosen)] == chosen
    assert (len(rows), len(rows.select(chosen))) == (30, 6)
    assert next(iter(rows.select([12]))) == {"n": 12, "other": {"x": 1}}
    assert table(rows).column("n").to_pylist() == list(range(30))
    assert table(rows).column("other").null_count == 20


CLASSES = (
    "dataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n        names:\n          '0': 'no'\n"
    "          '1': 'yes'\n  - name: text\n    dtype: string\n"
)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_names_of_classes_become_their_numbers_as_datasets_has_them(tmp_path: Path, ending: str) -> None:
    values = [{"label": "yes", "text": "a"}, {"label": "no", "text": "b"}]
    data = jsonl(values) if ending == "jsonl" else loopback_hub.parquet(values)
    rows = mirror(tmp_path, {f"train.{ending}": data}, CLASSES).splits("default")["train"]
    assert isinstance(rows, FileRows)
    upstream = datasets.load_dataset(str(tmp_path / "a/b"), cache_dir=str(tmp_path / "upstream"))["train"]
    assert list(rows) == list(upstream) == [{"label": 1, "text": "a"}, {"label": 0, "text": "b"}]
    assert table(rows).to_pylist() == list(rows)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"a": 1', "train.jsonl:2 cannot be used: not JSON"),
        (b"[1]", "train.jsonl:2 cannot be used: not a JSON object"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: bytes, told: str) -> None:
    rows = mirror(tmp_path, {"train.jsonl": b'{"a": 1}\n' + line + b"\n"}).splits("default")["train"]
    with pytest.raises(InputError, match=r"^data set a/b, configuration default, split train: file://") as error:
        len(rows)
    assert str(error.value).endswith(told)


def problems_of(tmp_path: Path, problems: list[bytes]) -> LocalContext[ProblemsConfig]:
    """The `problems` stage over a mirror with these lines."""
    mirror(tmp_path, {"train.jsonl": b"\n".join(problems)})
    config = {"sources": [{"data_set": "a/b"}], "mirror": str(tmp_path), "heldout": 0.2, "embedding": "ngrams"}
    ctx = LocalContext(
        tmp_path / "run", ProblemsConfig.model_validate({**config, "max_similarity": 1.0}), node="problems"
    )
    run(ctx)
    return ctx


def test_a_broken_line_costs_its_row_and_is_counted_where_rows_are_drawn(tmp_path: Path) -> None:
    lines = [b'{"problem": "What is %d + %d?", "answer": "%d"}' % (n, n, 2 * n) for n in range(20)]
    lines[3], lines[7], lines[11] = lines[3][:-9], b"[1]", lines[11][:20]
    ctx = problems_of(tmp_path / "few", lines)
    (source,) = ctx.stats["sources"]
    assert (source["rows"], source["taken"]) == (17, 17)
    assert source["skipped"] == {"not JSON": 2, "not a JSON object": 1}
    assert any(
        "2 rows skipped, not JSON, first file://" in line and line.endswith("train.jsonl:4") for line in ctx.logs
    )
    assert sum(sum(1 for _ in read_problems(ctx.output(port))) for port in ("train", "heldout")) == 17
    with pytest.raises(InputError, match=r"11 of its 20 rows are bad \(11 not JSON, first file://.*train\.jsonl:1\)$"):
        problems_of(tmp_path / "many", [b"{"] * 11 + lines[12:] + [lines[0]])


def test_a_source_whose_first_lines_are_broken_is_opened_as_a_run_does_and_they_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def opened(name: str, lines: list[bytes], row_type: str | None = "problem") -> str:
        mirror(tmp_path / name, {"train.jsonl": b"\n".join(lines)})
        request = {"data_set": "a/b", "config": "default", "split": "train", "revision": None}
        return probe.open_one({**request, "mirror": str(tmp_path / name), "row_type": row_type})

    row = b'{"problem": "What is 1 + 1?", "answer": "2"}'
    assert opened("whole", [row]) == "split train, columns problem, answer"
    told = opened("broken", [row[:-9], b"[1]", row[:20], row])
    counts = r"2 not JSON, first file://.*train\.jsonl:1, 1 not a JSON object, first file://.*train\.jsonl:2"
    assert re.fullmatch(f"split train, columns problem, answer; 3 bad lines passed over: {counts}", told)
    with pytest.raises(InputError, match=r"train\.jsonl:1 cannot be used: not JSON$"):
        opened("exact", [row[:-9], row], None)  # nothing is drawn of it: the run refuses it
    with pytest.raises(InputError, match=r"^split 'train' has no row, 1 bad lines passed over: 1 not JSON, first "):
        opened("none", [row[:-9]])
    with pytest.raises(InputError, match=r"^no row among the first 64 lines: 64 not JSON, first .*train\.jsonl:1$"):
        opened("many", [b"{"] * 64 + [row])


@pytest.mark.parametrize("form", ["lines", "list"])
def test_what_utf8_cannot_hold_costs_its_row_and_is_counted(tmp_path: Path, form: str) -> None:
    problems = [
        b'{"problem": "What is %d + %d?", "answer": "%d", "source": "%b"}'
        % (n, n, 2 * n, b"s\\ud800" if n == 7 else b"s")
        for n in range(20)
    ]
    problems[3] = problems[3].replace(b"What", b"\xff")
    problems[5] = problems[5].replace(b"What", b"\\ud800")
    mirror(tmp_path, {"train.json": b"\n".join(problems) if form == "lines" else b"[" + b",\n".join(problems) + b"]"})
    config = ProblemsConfig.model_validate(
        {
            "sources": [{"data_set": "a/b"}],
            "mirror": str(tmp_path),
            "heldout": 0.2,
            "embedding": "ngrams",
            "max_similarity": 1.0,
        }
    )
    ctx = LocalContext(tmp_path / "run", config, node="problems")
    run(ctx)
    assert ctx.stats["removed"] == {"invalid characters": 2}
    found = [row for port in ("train", "heldout") for row in read_problems(ctx.output(port))]
    assert len(found) == 18
    assert {row["source"] for row in found} == {"a/b/s", "a/b/s?"}


def test_a_packed_file_that_is_cut_is_named_and_so_are_rows_that_the_card_promises(tmp_path: Path) -> None:
    packed = gzip.compress(jsonl([{"a": n} for n in range(1000)]))
    with pytest.raises(InputError, match=r"split train: file://.*train\.jsonl\.gz cannot be used: "):
        len(mirror(tmp_path / "1", {"train.jsonl.gz": packed[:-100]}).splits("default")["train"])
    promise = (
        "dataset_info:\n  features:\n  - name: a\n    dtype: int64\n  splits:\n  - name: train\n    num_bytes: 1\n   "
        " num_examples: 999\n"
    )
    with pytest.raises(InputError, match=r"^data set a/b, .* its files hold 1000 rows, and its card says 999$"):
        len(mirror(tmp_path / "2", {"train.jsonl.gz": packed}, promise).splits("default")["train"])


def test_other_kinds_are_loaded_by_datasets(tmp_path: Path) -> None:
    rows = mirror(tmp_path, {"train.csv": b"problem,answer\nx,1\ny,2\n"}).splits("default")["train"]
    assert not isinstance(rows, FileRows)
    assert list(rows.select([1])) == [{"problem": "y", "answer": 2}]
    assert table(rows).num_rows == 2
