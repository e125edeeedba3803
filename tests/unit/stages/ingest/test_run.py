"""The `ingest` stage: every raw format into documents; what is unusable is counted by reason, and its place is
named.
"""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from botocore.exceptions import ClientError, EndpointConnectionError
from hypothesis import given
from hypothesis import strategies as st

from stages.core.artifacts import RawFiles
from stages.core.errors import InfraError, InputError
from stages.core.testing import LocalContext, local_artifact
from stages.ingest.readers import DAMAGED, READERS, Bad, Reader, Record, lines
from stages.ingest.run import run
from stages.ingest.spec import IngestConfig
from stages.lib.formats import remote, source_credentials
from stages.lib.formats.documents import read_documents
from stages.lib.formats.sources import RawFile, write_listing
from tests.support.raw_pages import jsonl, page

TEXTS = ["plain", "größe 中文 🙂", "tab\tand \u2028 separators", "NUL \x00 too", "  edges  "]


def read(folder: Path, uri: str, format: str = "jsonl", **config: Any) -> tuple[list[Record], list[Bad]]:
    file = RawFile.model_validate({"uri": uri, "format": format, "source": "s"})
    found = list(READERS[format](file, folder, IngestConfig(**config)))
    return [r for r in found if isinstance(r, Record)], [r for r in found if isinstance(r, Bad)]


def ingest(folder: Path, files: list[RawFile], **config: Any) -> LocalContext[IngestConfig]:
    write_listing(folder, files)
    ctx = LocalContext(folder / "run", IngestConfig(**config), {"raw": [local_artifact(RawFiles, folder)]})
    run(ctx)
    return ctx


# --- the formats ----------------------------------------------------------------------------------------------------


LIES: dict[str, Any] = {
    "longer": lambda n: n + 5000,
    "swallowing one": lambda n: n + 40,
    "shorter": lambda n: n // 2,
    "beyond": lambda n: 1 << 30,
    "terabyte": lambda n: 1 << 40,
    "nothing": lambda n: 0,
    "negative": lambda n: -1,
    "no number": lambda n: "many",
    "no integer of the machine": lambda n: 1 << 70,
}


def lying(number: int, lie: Any) -> bytes:
    """A page whose record claims another length."""
    whole = page(number)
    start = whole.index(b"\r\n\r\n") + 4
    true = len(whole) - start - 4
    assert f"Content-Length: {true}\r\n\r\n".encode() in whole
    return whole.replace(f"Content-Length: {true}\r\n\r\n".encode(), f"Content-Length: {lie(true)}\r\n\r\n".encode(), 1)


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_length_that_is_not_true_costs_its_record(tmp_path: Path, name: str, lie: Any) -> None:
    """All others are found, each once, wherever the liars are; and every liar is counted."""
    records = [lying(n, lie) if n in (1, 4, 5, 9) else page(n) for n in range(10)]
    (tmp_path / name).write_bytes(b"".join(gzip.compress(r) if name.endswith("gz") else r for r in records))
    good, bad = read(tmp_path, name, "warc", max_record_bytes=1 << 29)
    assert [r.url.rpartition("/")[2] for r in good] == [str(n) for n in (0, 2, 3, 6, 7, 8)]
    assert len(bad) == 4, bad
    assert {b.reason for b in bad} <= {DAMAGED, "too long"}
    assert all(len(r.text) < 2 * len(good[0].text) for r in good)


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_a_true_long_record_is_passed_over_whatever_it_holds(tmp_path: Path, name: str) -> None:
    """A page that quotes an archive is no archive."""
    quoting = page(1, size=3000)
    quoting = quoting.replace(b"Words of page number", b"\r\n\r\nWARC/1.1\r\n\r\n....", 1)  # of the same length
    records = [page(0), quoting, page(2)]
    (tmp_path / name).write_bytes(b"".join(gzip.compress(r) if name.endswith("gz") else r for r in records))
    good, bad = read(tmp_path, name, "warc", max_record_bytes=100_000)
    assert [r.url.rpartition("/")[2] for r in good] == ["0", "2"]
    assert [b.reason for b in bad] == ["too long"]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_json_lines_plain_and_compressed(tmp_path: Path, ending: str) -> None:
    body = jsonl(*({"text": text, "url": f"u{n}", "license": "MIT"} for n, text in enumerate(TEXTS)))
    pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.ZstdCompressor().compress}[ending]
    (tmp_path / f"a.{ending}").write_bytes(pack(body))
    (tmp_path / f"frames.{ending}").write_bytes(pack(body) + pack(body))  # members, or frames, one after another
    good = [Record(text, f"u{n}", "MIT") for n, text in enumerate(TEXTS)]
    assert read(tmp_path, f"a.{ending}") == (good, [])
    assert read(tmp_path, f"frames.{ending}") == (good * 2, [])
    assert read(tmp_path, (tmp_path / f"a.{ending}").as_uri()) == (good, [])


def test_parquet(tmp_path: Path) -> None:
    columns = {
        "content": TEXTS,
        "address": [f"u{n}" for n in range(5)],
        "license": ["MIT"] * 4 + [None],
        "other": range(5),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
    good, bad = read(tmp_path, "a.parquet", "parquet", text_field="content", url_field="address")
    assert good == [Record(text, f"u{n}", "MIT" if n < 4 else "") for n, text in enumerate(TEXTS)]
    assert bad == []


def test_code(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("print('ß')\n", encoding="utf-8")
    ctx = ingest(tmp_path, [RawFile(uri="src/a.py", format="code", source="stack", license="PSF-2.0")])
    (document,) = read_documents(ctx.output("documents"))
    assert {k: v for k, v in document.items() if k != "id"} == {
        "text": "print('ß')\n",
        "source": "stack",
        "url": "src/a.py",
        "license": "PSF-2.0",
    }


def test_a_hub_data_set_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_bytes(
        jsonl(*({"text": text, "url": "u"} for text in TEXTS[:3]), {"text": None})
    )
    (tmp_path / "data" / "train2.json").write_bytes(json.dumps([{"text": "listed", "meta": {"other": [1]}}]).encode())
    uri = f"hf://{tmp_path}/data@local"
    good, bad = read(tmp_path, uri, "hf")
    assert good == [*(Record(text, "u") for text in TEXTS[:3]), Record("listed")]
    assert bad == [Bad("'text' is not a string", f"{(tmp_path / 'data' / 'train.jsonl').as_uri()}:4")]
    with pytest.raises(InputError, match="name a revision"):
        read(tmp_path, f"hf://{tmp_path}/data", "hf")
    with pytest.raises(InputError, match="has no split 'validation', only train"):
        read(tmp_path, f"{uri}?split=validation", "hf")
    with pytest.raises(InputError, match="cannot be used: BuilderConfig 'x' not found"):
        read(tmp_path, f"{uri}?config=x", "hf")
    with pytest.raises(InputError, match="cannot be used: there is no folder /no/such/folder"):
        read(tmp_path, "hf:///no/such/folder@local", "hf")


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_warc(tmp_path: Path, name: str) -> None:
    records = [
        page(0, type="warcinfo"),
        page(1),
        page(2, status="404 Not Found"),
        page(3, kind="image/png"),
        page(4),
        page(5, size=3000),
    ]
    packed = [gzip.compress(r) if name.endswith("gz") else r for r in records]
    (tmp_path / name).write_bytes(b"".join(packed))
    good, bad = read(tmp_path, name, "warc", max_record_bytes=100_000)
    assert [r.url for r in good] == ["https://example.org/1", "https://example.org/4"]
    assert all(r.text.startswith("Words of page number") and "Home" not in r.text for r in good)
    offsets = np.cumsum([0, *map(len, packed)])
    assert bad == [
        Bad("not status 200", f"{name}@{offsets[2]}"),
        Bad("not HTML", f"{name}@{offsets[3]}"),
        Bad("too long", f"{name}@{offsets[5]}"),
    ]
    everything, _ = read(tmp_path, name, "warc", main_content=False)
    assert "Home" in everything[0].text


def test_warc_charsets_are_detected(tmp_path: Path) -> None:
    latin = page(1, kind="text/html; charset=iso-8859-1 (latin)").replace(b"Words", b"W\xf6rte")
    (tmp_path / "a.warc").write_bytes(latin)
    (good,), bad = read(tmp_path, "a.warc", "warc")
    assert good.text.startswith("Wörte of page")
    assert bad == []


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_a_truncated_warc_is_named_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    """What was whole is kept; one record says where it broke. Every cut inside the last record is tried in steps."""
    packed = [gzip.compress(page(n)) if name.endswith("gz") else page(n) for n in range(3)]
    whole, last = b"".join(packed), len(packed[-1])
    for cut in range(1, last, 3):
        (tmp_path / name).write_bytes(whole[:-cut])
        good, bad = read(tmp_path, name, "warc")
        assert [r.url for r in good[:2]] == ["https://example.org/0", "https://example.org/1"]
        assert [b.reason for b in bad] == [DAMAGED], cut
        assert bad[0].place.startswith(name)
        assert "@" in bad[0].place
    (tmp_path / name).write_bytes(whole)
    assert read(tmp_path, name, "warc")[1] == []


def test_other_damage_of_a_warc(tmp_path: Path) -> None:
    packed = [gzip.compress(page(n)) for n in range(3)]
    broken = bytearray(b"".join(packed))
    middle = len(packed[0]) + len(packed[1]) // 2
    broken[middle : middle + 20] = b"\xff" * 20
    for name, content, kept, place in (
        ("middle.warc.gz", bytes(broken), 2, "middle.warc.gz after record @0: Gzip decompression error: data error"),
        ("magic.warc", b"no archive\n" * 50, 0, "magic.warc after record @0: Invalid WARC header"),
        ("magic.warc.gz", b"no archive\n" * 50, 0, "magic.warc.gz after record @0: Invalid WARC header"),
        ("junk.warc.gz", b"".join(packed) + b"junk" * 9, 3, "junk.warc.gz after record @"),
    ):
        (tmp_path / name).write_bytes(content)
        good, bad = read(tmp_path, name, "warc")
        assert (len(good), [b.reason for b in bad]) == (kept, [DAMAGED]), name
        assert bad[0].place.startswith(place)
    for name, content in (("empty.warc.gz", b""), ("info.warc.gz", gzip.compress(page(0, type="warcinfo")))):
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path, name, "warc") == ([], [Bad("no response record", name)])


BAD_LINES = {
    b"not json": "not JSON",
    b'{"text": "a"': "not JSON",
    b"[" * 100_000: "not JSON",
    b"": "empty line",
    b"  ": "empty line",
    b"[1]": "not a JSON object",
    b'"text"': "not a JSON object",
    b'{"other": 1}': "no field 'text'",
    b'{"text": 5}': "'text' is not a string",
    b'{"text": null}': "'text' is not a string",
    b'{"text": ["a"]}': "'text' is not a string",
    b'{"text": " \\n"}': "empty text",
    b'{"text": "\xff"}': "invalid UTF-8",
    b'{"text": "\\ud800"}': "invalid UTF-8",
}


def test_bad_lines_are_counted_by_reason_and_named(tmp_path: Path) -> None:
    good = jsonl({"text": "good"})
    (tmp_path / "a.jsonl").write_bytes(b"".join(good + line + b"\n" for line in BAD_LINES) + b'{"text": "no newline"}')
    records, bad = read(tmp_path, "a.jsonl")
    assert [b.reason for b in bad] == list(BAD_LINES.values())
    assert [b.place for b in bad] == [f"a.jsonl:{2 * n + 2}" for n in range(len(BAD_LINES))]
    assert len(records) == len(BAD_LINES) + 1
    ctx = ingest(tmp_path, [RawFile(uri="a.jsonl", format="jsonl", source="s")])
    reasons = list(BAD_LINES.values())
    assert ctx.stats["skipped"] == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    assert ctx.stats["records"] == 2 * len(BAD_LINES) + 1
    assert ctx.stats["documents"] == len(BAD_LINES) + 1
    assert "warning: skipped, not JSON: a.jsonl:2" in ctx.logs
    assert sum("not JSON" in line for line in ctx.logs) == 3  # three examples of each reason


def test_an_address_that_utf8_cannot_hold_does_not_stop_the_stage(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "t", "url": "\\ud800x", "license": ["MIT"]}\n')
    ctx = ingest(tmp_path, [RawFile(uri="a.jsonl", format="jsonl", source="s")])
    (document,) = read_documents(ctx.output("documents"))
    assert (document["url"], document["license"]) == ("?x", "MIT")


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_truncated_and_damaged_compression(tmp_path: Path, ending: str) -> None:
    """Also a cut at the end of a line, and in the frame's last bytes: nothing is lost unnoticed."""
    rng = np.random.default_rng(0)
    body = jsonl(*({"text": "".join(map(chr, rng.integers(97, 123, 2000)))} for _ in range(200)))
    pack = gzip.compress if ending == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    packed, name = pack(body), f"a.jsonl{ending}"
    for cut in (1, 4, 9, len(packed) // 3, len(packed) - 20, len(packed) - 5):
        (tmp_path / name).write_bytes(packed[:-cut])
        good, bad = read(tmp_path, name)
        assert [b.reason for b in bad] == [DAMAGED], cut
        assert bad[0].place.startswith(f"{name} after line {len(good)}: ")
    assert len(read(tmp_path, name)[0]) == 0
    (tmp_path / name).write_bytes(packed[: len(packed) // 2])
    assert len(read(tmp_path, name)[0]) > 40  # what was read before is kept
    (tmp_path / name).write_bytes(body)  # wrong magic
    assert [b.reason for b in read(tmp_path, name)[1]] == [DAMAGED]
    for place in range(200, len(packed), 20_000):
        (tmp_path / name).write_bytes(packed[:place] + b"\xff" * 400 + packed[place + 400 :])
        good, bad = read(tmp_path, name)
        assert bad, place
        assert {b.reason for b in bad} <= {DAMAGED, "not JSON", "invalid UTF-8", "not a JSON object", "no field 'text'"}


def test_damaged_parquet(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, 500))) for _ in range(300)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=100, compression="zstd")
    whole = (tmp_path / "a.parquet").read_bytes()
    middle = len(whole) // 2
    for content in (
        b"",
        b"no parquet",
        b"PAR1 nonsense PAR1",
        whole[:middle],
        whole[:-60] + b"\xff" * 40 + whole[-20:],  # the footer
        whole[:middle] + b"x" * 1000 + whole[middle + 1000 :],
    ):
        (tmp_path / "b.parquet").write_bytes(content)
        _, bad = read(tmp_path, "b.parquet", "parquet")
        assert [b.reason for b in bad] == [DAMAGED]
        assert bad[0].place.startswith("b.parquet")
        assert "\n" not in bad[0].place


def test_parquet_rows_that_are_no_text(tmp_path: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 1, 3, 5], np.int32).tobytes())
    strings = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xff\xfebb")])
    pq.write_table(pa.table({"text": strings}), tmp_path / "a.parquet")
    assert read(tmp_path, "a.parquet", "parquet") == (
        [Record("a"), Record("bb")],
        [Bad("invalid UTF-8", "a.parquet:2")],
    )
    pq.write_table(pa.table({"text": [1, 2], "words": ["a", None]}), tmp_path / "b.parquet")
    assert [b.reason for b in read(tmp_path, "b.parquet", "parquet")[1]] == ["'text' is not a string"] * 2
    assert read(tmp_path, "b.parquet", "parquet", text_field="words")[1] == [
        Bad("'words' is not a string", "b.parquet:2")
    ]
    with pytest.raises(InputError, match=r"b\.parquet has no column 'body'; it has: text, words"):
        read(tmp_path, "b.parquet", "parquet", text_field="body")


def test_code_that_is_no_text(tmp_path: Path) -> None:
    for content, reason, place in (
        (b"\x7fELF\0", "binary", "f"),
        (b"ab\xff", "invalid UTF-8", "f@2"),
        (b" \n", "empty text", "f"),
        (b"x" * 101, "too long", "f"),
    ):
        (tmp_path / "f").write_bytes(content)
        assert read(tmp_path, "f", "code", max_record_bytes=100) == ([], [Bad(reason, place)])


# --- bounded memory -------------------------------------------------------------------------------------------------


class LongLine(io.RawIOBase):
    """50 MB without a newline, then a short line, made as they are read."""

    def __init__(self) -> None:
        self.left = 50_000_000

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.left <= 0:
            end, self.left = (b"\n{}\n", -1) if self.left == 0 else (b"", -1)
            buffer[: len(end)] = end
            return len(end)
        size = min(len(buffer), self.left)
        buffer[:size] = b"x" * size
        self.left -= size
        return size


def test_a_line_of_50_mb_is_passed_over_in_bounded_memory() -> None:
    tracemalloc.start()
    try:
        found = list(lines(io.BufferedReader(LongLine(), 1 << 16), 1_000_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == [(1, None), (2, b"{}\n")]
    assert peak < 5_000_000


def test_a_line_of_50_mb_is_counted(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as stream:
        stream.write(jsonl({"text": "first"}) + b'{"text": "' + b"x" * 50_000_000 + b'"}\n' + jsonl({"text": "last"}))
    good, bad = read(tmp_path, "a.jsonl.gz", max_record_bytes=1_000_000)
    assert [r.text for r in good] == ["first", "last"]
    assert bad == [Bad("too long", "a.jsonl.gz:2")]


@given(
    st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=8), st.integers(1, 9), st.booleans()
)
def test_lines_are_cut_where_split_would(content: list[bytes], limit: int, ended: bool) -> None:
    data = b"\n".join(content) + (b"\n" if ended and content else b"")
    wanted = data.split(b"\n") if data else []
    if data.endswith(b"\n"):
        wanted.pop()
    found = list(lines(io.BytesIO(data), limit))
    assert [number for number, _ in found] == list(range(1, len(wanted) + 1))
    for (_, line), expected in zip(found, wanted, strict=True):
        assert line is None if len(expected) > limit else line is not None and line.rstrip(b"\n") == expected


# --- the stage ------------------------------------------------------------------------------------------------------


def test_the_same_listing_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_bytes(jsonl(*({"text": f"text {n}"} for n in range(500))))
    (tmp_path / "raw" / "b.py").write_text("x = 1")
    files = [RawFile(uri="a.jsonl", format="jsonl", source="a"), RawFile(uri="b.py", format="code", source="b")]
    write_listing(tmp_path / "raw", files)
    written = []
    for name in ("one", "two"):
        raw = local_artifact(RawFiles, tmp_path / "raw")
        ctx = LocalContext(tmp_path / name, IngestConfig(), {"raw": [raw]})
        run(ctx)
        written.append((ctx.output("documents") / "part-00000.parquet").read_bytes())
    assert written[0] == written[1]
    ids = [d["id"] for d in read_documents(ctx.output("documents"))]
    assert len(set(ids)) == 501
    assert ctx.stats["per_source"] == {"a": 500, "b": 1}
    size = ctx.stats["text_bytes"]
    assert ctx.meta["documents"] == {"documents": 501, "text_bytes": size, "per_license": {"": 501}}


def test_too_little_that_is_usable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": "good"}, {"t": 1}, {"t": 1}, [1]))
    files = [RawFile(uri="a.jsonl", format="jsonl", source="s")]
    with pytest.raises(InputError) as error:
        ingest(tmp_path, files)
    assert (
        str(error.value)
        == "test: 3 of 4 records are unusable (no field 'text': 2, first a.jsonl:2, not a JSON object: 1, first"
        " a.jsonl:4), more than max_bad_fraction 0.5: mend the source, or raise the limit"
    )
    assert ingest(tmp_path, files, max_bad_fraction=0.75).stats["documents"] == 1


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^test: no usable document in 0 raw files \(the listing is empty\)$"):
        ingest(tmp_path, [])
    (tmp_path / "a.jsonl").write_bytes(b"")
    with pytest.raises(InputError, match=r"^test: no usable document in 1 raw files \(no record in a.jsonl\)$"):
        ingest(tmp_path, [RawFile(uri="a.jsonl", format="jsonl", source="s")])


@pytest.mark.parametrize("format", ["jsonl", "parquet", "warc", "code"])
def test_a_missing_file_is_named(tmp_path: Path, format: str) -> None:
    with pytest.raises(InputError, match=r"^raw file no/such\.file is not there$"):
        read(tmp_path, "no/such.file", format)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"^raw file folder is no file but a folder"):
        read(tmp_path, "folder", format)


def test_addresses_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the listing names a path outside its artifact"):
        read(tmp_path, "../outside.jsonl")
    with pytest.raises(InputError, match="no way to read 'ftp://' addresses of format jsonl"):
        read(tmp_path, "ftp://host/a.jsonl")


@pytest.mark.parametrize(
    ("raised", "error", "says"),
    [
        (
            ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject"),
            InputError,
            "raw file s3://b/k.jsonl is not there",
        ),
        (
            ClientError({"Error": {"Code": "AccessDenied"}}, "GetObject"),
            InputError,
            r"raw file s3://b/k.jsonl is refused \(AccessDenied\)",
        ),
        (
            ClientError({"Error": {"Code": "SlowDown"}}, "GetObject"),
            InfraError,
            "raw file s3://b/k.jsonl cannot be read: at byte 0, after 7 tries",
        ),
        (EndpointConnectionError(endpoint_url="x"), InfraError, "raw file s3://b/k.jsonl cannot be read"),
    ],
)
def test_object_stores_that_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, error: type[Exception], says: str
) -> None:
    class Client:
        def get_object(self, Bucket: str, Key: str) -> Any:
            assert (Bucket, Key) == ("b", "k.jsonl")
            raise raised

    monkeypatch.setattr(source_credentials, "s3_client", Client)
    monkeypatch.setattr(remote, "PAUSES", (0.0,) * 6)
    with pytest.raises(error, match=says):
        read(tmp_path, "s3://b/k.jsonl")


def test_every_format_has_a_reader() -> None:
    from typing import get_args

    from stages.lib.formats.sources import Format

    readers: dict[str, Reader] = READERS
    assert set(readers) == set(get_args(Format))
