"""`ingest` by pieces: the same bytes whatever the workers, pieces that join without a gap, a limit that bounds what is
read, and kills that cost a file.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from stages.collect.spec import CollectConfig
from stages.core.artifacts import RawFiles
from stages.core.errors import ConfigError, InputError
from stages.core.testing import LocalContext, local_artifact
from stages.ingest import read_task, work_units
from stages.ingest.hub_files import files_of
from stages.ingest.readers import READERS, Bad, Record, parted
from stages.ingest.run import _refuse, run
from stages.ingest.spec import Ingest, IngestConfig
from stages.lib.formats.documents import read_documents
from stages.lib.formats.remote_http import HubFile
from stages.lib.formats.sources import RawFile, write_listing
from tests.support.array_cluster import Cluster
from tests.support.examples import max_examples
from tests.support.limits import HANG
from tests.support.paths import ROOT
from tests.support.raw_pages import jsonl, page


def corpus(folder: Path) -> list[RawFile]:
    """Files of every kind, small and, by the measures of `small_pieces`, large ones."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [f"Text number {n} of the corpus, that goes on for some words. " * (1 + n % 7) for n in range(400)]
    rows = [{"text": text, "url": f"u{n}"} if n % 50 else {"other": 1} for n, text in enumerate(texts)]
    (folder / "a.jsonl").write_bytes(jsonl(*rows))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(*rows[:90]), mtime=0))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(jsonl(*rows[:90])))
    pq.write_table(pa.table({"text": texts, "url": ["p"] * 400}), folder / "d.parquet", row_group_size=60)
    (folder / "e.warc.gz").write_bytes(b"".join(gzip.compress(page(n, size=9 + n % 5), mtime=0) for n in range(80)))
    (folder / "f.warc").write_bytes(b"".join(page(n) for n in range(10)))
    files = [RawFile(uri=p.name, format=p.name.split(".")[1], source=p.name[0]) for p in sorted(folder.iterdir())]  # type: ignore[arg-type]
    for n in range(6):
        (folder / f"g{n}.py").write_text(f"x = {n}\n")
        files.append(RawFile(uri=f"g{n}.py", format="code", source="code"))
    write_listing(folder, files)
    return files


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_units, "PART_BYTES", 3_000)
    monkeypatch.setattr(work_units, "TOGETHER_BYTES", 2_000)


def ingest(raw: Path, root: Path, **config: Any) -> LocalContext[IngestConfig]:
    ctx = LocalContext(root, IngestConfig(**config), {"raw": [local_artifact(RawFiles, raw)]})
    run(ctx)
    return ctx


def entries(folder: Path) -> dict[str, Any]:
    """The files of a listing's artifact, as tasks are told of them."""
    return {entry.path: entry.value() for entry in local_artifact(RawFiles, folder).entries()}


def parts(ctx: LocalContext[IngestConfig]) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(ctx.output("documents")).iterdir())}


# --- equal whatever the workers
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 300])
def test_one_worker_two_and_an_array_write_the_same_bytes(
    tmp_path: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    corpus(tmp_path / "raw")
    one = ingest(tmp_path / "raw", tmp_path / "one", limit=limit)
    two = ingest(tmp_path / "raw", tmp_path / "two", workers=2, limit=limit)
    monkeypatch.setenv("MOXIN_ARRAYS", "1")
    config = IngestConfig(workers="slurm", limit=limit)
    three = LocalContext(tmp_path / "three", config, {"raw": [local_artifact(RawFiles, tmp_path / "raw")]})
    cluster = Cluster(3, lost=lambda array, element: (array, element) == (1, 0))
    monkeypatch.setattr(three, "array", lambda place, name, tasks, cpus, memory_gib: cluster.ask(place, name, tasks))
    run(three)
    assert parts(one) == parts(two) == parts(three)
    assert one.stats == two.stats == three.stats
    assert one.meta == two.meta
    assert len(parts(one)) > (10 if limit is None else 4)
    assert one.config.identity() == two.config.identity() == config.identity()
    if limit is None:
        assert one.stats["documents"] == (400 - 8) + 2 * (90 - 2) + 400 + 80 + 10 + 6
        ids = [d["id"] for d in read_documents(one.output("documents"))]
        assert len(set(ids)) == len(ids)


@pytest.mark.slow
def test_ray_writes_the_same_bytes(tmp_path: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    corpus(tmp_path / "raw")
    one = ingest(tmp_path / "raw", tmp_path / "one")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        two = ingest(tmp_path / "raw", tmp_path / "two", workers="ray")
    finally:
        ray.shutdown()
    assert parts(one) == parts(two)
    assert one.stats == two.stats


def test_an_array_without_its_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOXIN_ARRAYS", raising=False)
    corpus(tmp_path / "raw")
    with pytest.raises(ConfigError, match=r"test\.workers = 'slurm' needs the slurm launcher"):
        ingest(tmp_path / "raw", tmp_path / "out", workers="slurm")


def test_a_worker_has_a_core_and_memory_for_the_process_beside_it() -> None:
    assert Ingest.resources(IngestConfig(workers=8)).cpus == 8
    assert Ingest.resources(IngestConfig(workers=8)).memory_gib == 16


# --- pieces
# -------------------------------------------------------------------------------------------------------------


WHOLE = ["packed.jsonl", "marklist.jsonl", "one.warc.gz", "blocks.warc.gz"]
"""What cannot be read in parts although its name says so: the first part has all of it."""


@pytest.mark.parametrize("size", [None, 700, 3_000, 20_000])
@pytest.mark.parametrize(
    "name", ["a.jsonl", "d.parquet", "e.warc.gz", "mark.jsonl", "wide.jsonl", "list.jsonl", "long.jsonl", *WHOLE]
)
def test_the_parts_of_a_file_are_the_file(tmp_path: Path, name: str, size: int | None) -> None:
    """Every record once, with the same id, wherever the cuts fall."""
    corpus(tmp_path)
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "mark.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    (tmp_path / "wide.jsonl").write_text(text, encoding="utf-16")
    (tmp_path / "list.jsonl").write_text("[" + ",".join(text.splitlines()) + "]", encoding="utf-8")
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(text.encode(), mtime=0))
    (tmp_path / "marklist.jsonl").write_text("\ufeff[" + ",\n".join(text.splitlines()) + "]", encoding="utf-8")
    pages = b"".join(page(n) for n in range(80))
    (tmp_path / "one.warc.gz").write_bytes(gzip.compress(pages, mtime=0))
    (tmp_path / "blocks.warc.gz").write_bytes(
        b"".join(gzip.compress(pages[n : n + 9_000], mtime=0) for n in range(0, len(pages), 9_000))
    )
    (tmp_path / "long.jsonl").write_text('{"text": "' + "x" * 5_000 + '"}\n' + text, encoding="utf-8")
    file = RawFile(uri=name, format=name.split(".")[1], source="s")  # type: ignore[arg-type]
    config = IngestConfig(max_record_bytes=4_000) if name == "long.jsonl" else IngestConfig()
    whole = list(READERS[file.format](file, tmp_path, config))
    length = (tmp_path / name).stat().st_size
    edges = [*range(0, length, size or length), length]
    found = [r for a, b in pairwise(edges) for r in READERS[file.format](file, tmp_path, config, (a, b))]
    assert len(whole) > 50
    assert parted(file)
    assert [(r.text, r.at) for r in found if isinstance(r, Record)] == [
        (r.text, r.at) for r in whole if isinstance(r, Record)
    ]
    assert [r.reason for r in found if isinstance(r, Bad)] == [r.reason for r in whole if isinstance(r, Bad)]


def test_pages_of_an_archive_that_was_packed_as_a_whole_have_ids_of_their_own(tmp_path: Path) -> None:
    """fastwarc knows no place within a gzip member: many records have one offset."""
    (tmp_path / "one.warc.gz").write_bytes(gzip.compress(b"".join(page(n) for n in range(80)), mtime=0))
    file = {"uri": "one.warc.gz", "format": "warc", "source": "s"}
    (tmp_path / "out").mkdir()
    assert read_task.read(tmp_path / "out", [file], entries(tmp_path), {})["documents"] == 80
    assert len({document["id"] for document in read_documents(tmp_path / "out")}) == 80


@given(
    st.lists(st.sampled_from([b'{"text": "a"}', b"{", b"", b'{"text": "' + b"b" * 40 + b'"}']), max_size=9),
    st.booleans(),
    st.integers(1, 30),
)
@max_examples(60)
def test_lines_are_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes], ended: bool, size: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    data = b"\n".join(rows) + (b"\n" if ended else b"")
    (folder / "a.jsonl").write_bytes(data)
    file, config = RawFile(uri="a.jsonl", format="jsonl", source="s"), IngestConfig(max_record_bytes=30)
    whole = list(READERS["jsonl"](file, folder, config))
    edges = [*range(0, len(data), size), len(data)]
    found = [r for a, b in pairwise(edges) for r in READERS["jsonl"](file, folder, config, (a, b))]
    assert [getattr(r, "reason", r) for r in found] == [getattr(r, "reason", r) for r in whole]


def files(count: int, format: str = "jsonl", ending: str = "jsonl") -> list[RawFile]:
    return [RawFile.model_validate({"uri": f"f{n}.{ending}", "format": format, "source": "s"}) for n in range(count)]


def test_pieces_are_cut_by_size_and_order_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 1 << 20
    cut = work_units.cut(files(6), [10 * mib, 20 * mib, 30 * mib, 1100 * mib, None, 1 * mib])
    assert [[f.uri for f in share.files] for share in cut] == [
        ["f0.jsonl", "f1.jsonl"],
        ["f2.jsonl"],
        *[["f3.jsonl"]] * 3,
        ["f4.jsonl"],
        ["f5.jsonl"],
    ]
    ranges = [share.part for share in cut if share.part]
    assert [a for a, _ in ranges[1:]] == [b for _, b in ranges[:-1]]
    assert (ranges[0][0], ranges[-1][1]) == (0, 1100 * mib)
    assert [len(share.files) for share in work_units.cut(files(600, "code", "py"), [None] * 600)] == [256, 256, 88]
    assert [share.part for share in work_units.cut(files(1, ending="jsonl.zst"), [9 << 30])] == [
        None
    ]  # a line may cross any two blocks


# --- the limit
# ----------------------------------------------------------------------------------------------------------


def sampled(lengths: list[int], limit: int) -> tuple[dict[int, int], int]:
    """({file: records read}, rounds) when the files hold so many records."""
    read: dict[int, int] = {}
    rounds = 0
    sample = work_units.sample(files(len(lengths)), limit)
    wanted = next(sample, None)
    while wanted is not None:
        rounds += 1
        now = {number: min(lengths[number], most) for number, most in wanted}
        assert not set(now) & set(read), "a file was taken twice"
        read |= now
        try:
            wanted = sample.send(sum(now.values()))
        except StopIteration:
            wanted = None
    return read, rounds


@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=60), st.integers(1, 200_000))
def test_no_more_is_read_than_the_limit_and_no_less_than_short_files_allow(lengths: list[int], limit: int) -> None:
    read, _ = sampled(lengths, limit)
    assert sum(read.values()) <= limit
    if sum(read.values()) < limit:
        assert len(read) == len(lengths), "the limit was not reached, and files were left out"


def test_a_limit_takes_a_few_files_of_anywhere_and_grows_where_they_are_short() -> None:
    read, rounds = sampled([1_000_000] * 5_000, 200_000)
    assert (len(read), rounds, sum(read.values())) == (20, 1, 200_000)
    assert max(read) - min(read) > 3_000  # no beginning of the listing
    read, rounds = sampled([1] * 5_000, 3_000)
    assert (sum(read.values()), len(read)) == (3_000, 3_000)
    assert rounds < 15


def test_files_of_few_records_are_read_together() -> None:
    work = work_units.together(files(500, "code", "py"), [(n, 3) for n in reversed(range(300))])
    assert [(first, len(share.files)) for first, share in work] == [(0, 256), (256, 44)]
    assert [share.records for _, share in work] == [(3,) * 256, (3,) * 44]
    work = work_units.together(files(5), [(0, 10_000), (2, 9_999), (3, 1), (4, 1)])
    assert [(first, [f.uri for f in share.files], share.records) for first, share in work] == [
        (0, ["f0.jsonl"], (10_000,)),
        (2, ["f2.jsonl", "f3.jsonl"], (9_999, 1)),
        (4, ["f4.jsonl"], (1,)),
    ]


def test_a_limit_on_many_small_files_leaves_few_parts(tmp_path: Path) -> None:
    for n in range(100):
        (tmp_path / f"{n:03}.jsonl").write_bytes(jsonl({"text": f"text {n} a"}, {"text": f"text {n} b"}))
    write_listing(tmp_path, [RawFile(uri=f"{n:03}.jsonl", format="jsonl", source="a") for n in range(100)])
    ctx = ingest(tmp_path, tmp_path / "out", limit=100)
    texts = [row["text"] for row in read_documents(ctx.output("documents"))]
    assert (ctx.stats["documents"], len(set(texts))) == (100, 100)
    assert len(parts(ctx)) == 7, "one for each round: 1, 1, 2, 4, 8, 16 and 18 files"


def test_a_limit_bounds_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that are skipped or dropped count: a filter that lets nothing through does not read on."""
    (tmp_path / "a.jsonl").write_bytes(jsonl(*({"text": f"text {n}"} if n % 2 else {"none": n} for n in range(5_000))))
    write_listing(tmp_path, [RawFile(uri="a.jsonl", format="jsonl", source="a")])
    ctx = ingest(tmp_path, tmp_path / "out", limit=100)
    assert (ctx.stats["records"], ctx.stats["documents"], ctx.stats["skipped"]) == (100, 50, {"no field 'text'": 50})
    with pytest.raises(InputError, match=r"no usable document in 1 raw files \(too few words: 5[01]\)|no field"):
        ingest(tmp_path, tmp_path / "rules", limit=101, heuristics="refinedweb", language="none")


# --- kills
# --------------------------------------------------------------------------------------------------------------


def test_a_kill_costs_the_file_at_hand(tmp_path: Path, small_pieces: None) -> None:
    """The stage is killed once it has read some pieces; the next attempt reads the others alone, and no byte
    differs.
    """
    corpus(tmp_path / "raw")
    work = tmp_path / "killed" / "tasks"
    script = (
        "import sys, pathlib; from stages.ingest import work_units; work_units.PART_BYTES, work_units.TOGETHER_BYTES = "
        "3000, 2000\n"
        "from tests.integration.stages.ingest.test_run_pieces import ingest\n"
        "ingest(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "raw"), str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    deadline = time.monotonic() + HANG
    while not list(work.glob("read/000005.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait()
    done = {p: p.stat().st_mtime_ns for p in work.glob("read/*.json")}
    assert len(done) >= 6
    resumed = ingest(tmp_path / "raw", tmp_path / "killed")
    assert all(path.stat().st_mtime_ns == when for path, when in done.items()), "a finished piece was read again"
    whole = ingest(tmp_path / "raw", tmp_path / "whole")
    assert parts(resumed) == parts(whole)
    assert resumed.stats == whole.stats
    assert len(list(work.glob("read/*.json"))) > len(done)


def test_who_served_instead_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").write_bytes(jsonl({"text": "a"}))
    mirror = (tmp_path / "there.jsonl").as_uri()
    write_listing(tmp_path, [RawFile(uri="gone.jsonl", format="jsonl", source="s", mirrors=(mirror,))])
    ctx = ingest(tmp_path, tmp_path / "out")
    assert ctx.stats["served"] == {mirror: 1}
    assert any("1 files were read from" in line for line in ctx.logs)
    original = json.loads((tmp_path / "listing.jsonl").read_text())
    assert original == {"uri": "gone.jsonl", "format": "jsonl", "source": "s", "mirrors": [mirror]}


def test_a_part_is_read_of_a_file_as_long_as_the_one_that_was_cut(tmp_path: Path) -> None:
    """Edges come from whichever address answers first; a later one of another length would lose the lines behind
    them.
    """
    rows = jsonl(*({"text": f"line {n}"} for n in range(40)))
    (tmp_path / "longer.jsonl").write_bytes(rows * 2)
    (tmp_path / "same.jsonl").write_bytes(rows)
    mirrors = [(tmp_path / name).as_uri() for name in ("longer.jsonl", "same.jsonl")]
    file = {"uri": "gone.jsonl", "format": "jsonl", "source": "s", "mirrors": mirrors}
    half = len(rows) // 2
    found = 0
    for number, part in enumerate(((0, half), (half, len(rows)))):
        (tmp_path / str(number)).mkdir()
        numbers = read_task.read(tmp_path / str(number), [file], entries(tmp_path), {}, part=part, size=len(rows))
        assert numbers["served"] == {mirrors[1]: 1}
        found += numbers["documents"]
    assert found == 40
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"longer\.jsonl has .* bytes, and the file was cut into parts as one of"):
        read_task.read(tmp_path / "none", [{**file, "mirrors": mirrors[:1]}], {}, {}, part=(0, 5), size=len(rows))


def test_names_on_the_hub_may_hold_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` writes names as they are, and a revision that is a reference with codes."""
    found = ["hf://datasets/o/n@abc/a #1 100%?.jsonl", "hf://datasets/o/n@refs%2Fconvert%2Fparquet/default/0.parquet"]
    builder = SimpleNamespace(config=SimpleNamespace(data_files={"train": found}))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args, **options: builder)
    files = [HubFile.parse(file.uri) for file in files_of(RawFile(uri="hf://o/n@abc", format="hf", source="s"))]
    assert files == [
        HubFile("o/n", "abc", "a #1 100%?.jsonl"),
        HubFile("o/n", "refs/convert/parquet", "default/0.parquet"),
    ]


def test_a_presigned_address_is_shown_without_its_signature(tmp_path: Path) -> None:
    uri = "https://example.org/a.jsonl?X-Amz-Signature=the-secret"
    ctx = LocalContext(tmp_path, IngestConfig(), {})
    with pytest.raises(InputError, match=r"no record in https://example\.org/a\.jsonl") as told:
        _refuse(ctx, read_task.Numbers(), [RawFile(uri=uri, format="jsonl", source="s")])
    assert "the-secret" not in str(told.value)
    wires = {"raw": [SimpleNamespace(node=SimpleNamespace(name="collect"), port="text")]}
    configs = {
        "ingest": IngestConfig(),
        "collect": CollectConfig(text=({"uri": uri, "format": "jsonl", "source": "s"},)),
    }  # type: ignore[arg-type]
    (probe,) = Ingest.probes(SimpleNamespace(name="ingest", wires=wires), configs)  # type: ignore[arg-type]
    assert probe.what == "https://example.org/a.jsonl"


def test_a_text_may_change_where_it_lies_and_keeps_its_id(tmp_path: Path, small_pieces: None) -> None:
    """Ids come of a record's place, not of how the file was cut."""
    corpus(tmp_path / "raw")
    cut = [d["id"] for d in read_documents(ingest(tmp_path / "raw", tmp_path / "a").output("documents"))]
    work_units.PART_BYTES, before = 1 << 30, work_units.PART_BYTES
    try:
        whole = [d["id"] for d in read_documents(ingest(tmp_path / "raw", tmp_path / "b").output("documents"))]
    finally:
        work_units.PART_BYTES = before
    assert cut == whole
