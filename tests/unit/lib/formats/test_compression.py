"""`stages.lib.formats.compression`: every way to pack and to begin a text, whole or cut, in bounded memory."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import InputError
from stages.ingest.readers import READERS, Bad, Record
from stages.ingest.spec import IngestConfig
from stages.lib.formats import compression
from stages.lib.formats.compression import Damaged, decoded, lines_of, text_of, unpacked, utf8
from stages.lib.formats.sources import RawFile
from tests.support.examples import max_examples
from tests.support.raw_pages import jsonl, page


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}
NOISE = b"".join((n * 2654435761 % 2**32).to_bytes(4, "big") for n in range(40_000))


def plain(data: bytes, name: str) -> bytes:
    return unpacked(io.BufferedReader(io.BytesIO(data)), name).read()  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", PACKERS)
def test_members_are_read_one_after_another_by_name_and_by_first_bytes(ending: str) -> None:
    pack = PACKERS[ending]
    for name in (f"a.jsonl.{ending}", "a.jsonl"):
        assert plain(pack(NOISE), name) == NOISE
        assert plain(pack(NOISE[:9]) + pack(b"") + pack(NOISE), name) == NOISE[:9] + NOISE
    assert plain(NOISE, "a.jsonl") == NOISE


@pytest.mark.parametrize("ending", PACKERS)
def test_a_file_that_is_cut_or_changed_says_so(ending: str) -> None:
    whole = PACKERS[ending](NOISE[:5_000]) * 2
    for cut in [1, 2, 3, 4, 5, 8, 12, *range(20, len(whole) // 2 - 1, 61)]:
        with pytest.raises(Damaged):
            plain(whole[:-cut], f"a.{ending}")
    with pytest.raises(Damaged):
        plain(NOISE, f"a.{ending}")


@max_examples(150)
@given(
    st.sampled_from(sorted(PACKERS)),
    st.binary(max_size=400),
    st.integers(0, 399),
    st.binary(max_size=12),
    st.integers(0, 12),
)
def test_no_packed_bytes_end_otherwise(ending: str, content: bytes, place: int, other: bytes, removed: int) -> None:
    """Bytes put in, taken out and exchanged anywhere: text, or Damaged; a change is never taken for the whole."""
    whole = PACKERS[ending](content)
    changed = whole[:place] + other + whole[place + removed :]
    with suppress(Damaged):
        plain(changed, f"a.{ending}")


def long_window(log: int, content: bytes = b"a" * 1000) -> bytes:
    machine = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(1, window_log=log)
    ).compressobj()
    return machine.compress(content) + machine.flush()


@pytest.mark.parametrize("log", [10, 27, 28, 31])
def test_windows_up_to_two_gibibytes(log: int) -> None:
    assert plain(long_window(log), "a.zst") == b"a" * 1000


def test_a_window_that_is_too_large_is_named_before_memory_is_taken() -> None:
    frame = bytearray(long_window(31))
    assert frame[5] >> 3 == 31 - 10  # RFC 8878, 3.1.1.1.2: exponent and mantissa
    frame[5] = 22 << 3
    with pytest.raises(Damaged, match="a zstd frame has a window of 4096 MiB; 2048 MiB are the most that is taken"):
        plain(bytes(frame), "a.zst")


def test_frames_that_hold_no_content_are_passed_over() -> None:
    skipped = (0x184D2A53).to_bytes(4, "little") + (70_000).to_bytes(4, "little") + b"x" * 70_000
    assert plain(skipped + zstd(NOISE) + skipped, "a.zst") == NOISE
    with pytest.raises(Damaged, match="inside a zstd frame"):
        plain(zstd(NOISE) + skipped[:-1], "a.zst")


@pytest.mark.parametrize("ending", PACKERS)
def test_a_bomb_is_read_in_bounded_memory(ending: str) -> None:
    """200 MB of zeros in a few kilobytes."""
    machine: Any = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}[ending]
    bomb = machine(bytes(10_000_000)) * 20
    tracemalloc.start()
    try:
        stream, size = unpacked(io.BufferedReader(io.BytesIO(bomb)), f"a.{ending}"), 0  # type: ignore[arg-type]
        while piece := stream.read(1 << 16):
            size += len(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == 200_000_000
    assert peak < 20_000_000


@pytest.mark.parametrize("name", ["a.jsonl.lz4", "a.zip", "a.7z", "a.jsonl.br", "a.tar", "a.Z", "a.jsonl.lzo"])
def test_other_ways_to_pack_are_named(name: str) -> None:
    with pytest.raises(
        InputError,
        match=f"{name} is packed as .{name.rpartition('.')[2].lower()}, which is not taken apart here: pack it as .zst",
    ):
        plain(b"", name)


def test_other_ways_to_pack_are_told_by_their_first_bytes() -> None:
    with pytest.raises(Damaged, match=r"it is packed as \.zip"):
        plain(b"PK\x03\x04rest", "a.jsonl")


# --- how text begins --------------------------------------------------------------------------------------------------

TEXT = "größe 中文 🙂\r\nsecond\n\n  third"
MARKED = {
    name: getattr(codecs, f"BOM_{name.upper().replace('UTF-', 'UTF').replace('-', '_')}") + TEXT.encode(name)
    for name in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
}
MARKED["utf-8"] = codecs.BOM_UTF8 + TEXT.encode()
MARKED["none"] = TEXT.encode()


@pytest.mark.parametrize("data", MARKED.values(), ids=MARKED)
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_every_mark_is_taken_away(tmp_path: Path, data: bytes, ending: str) -> None:
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(PACKERS[ending[1:]](data) if ending else data)
    assert utf8(io.BytesIO(data)).read() == TEXT.encode()
    assert decoded(data) == text_of(path) == TEXT
    assert list(lines_of(path)) == ["größe 中文 🙂", "second", "third"]


def test_half_a_character_is_no_text() -> None:
    for name in ("utf-16-le", "utf-32-be"):
        assert utf8(io.BytesIO(MARKED[name][:-1])).read().endswith(b"\xff")
    assert (
        b"\xed\xa0\x80" in utf8(io.BytesIO(codecs.BOM_UTF16_LE + b"\x00\xd8a\x00")).read()
    )  # half a pair: its line is no UTF-8


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_and_code_with_a_mark(tmp_path: Path, encoding: str) -> None:
    rows = [{"text": "größe"}, {"text": "zwei"}]
    (tmp_path / "a.jsonl").write_bytes(
        ("\n" + "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)).encode(encoding)
    )
    (tmp_path / "b.json").write_bytes(("\n" + json.dumps(rows, ensure_ascii=False, indent=1)).encode(encoding))
    (tmp_path / "c.py").write_bytes("x = 'ß'\n".encode(encoding))
    assert read(tmp_path, "a.jsonl") == [Bad("empty line", "a.jsonl:1"), Record("größe"), Record("zwei")]
    assert read(tmp_path, "b.json") == [Record("größe"), Record("zwei")]
    assert read(tmp_path, "c.py", "code") == [Record("x = 'ß'\n", "c.py")]


def read(folder: Path, uri: str, format: str = "jsonl", **config: Any) -> list[Record | Bad]:
    file = RawFile.model_validate({"uri": uri, "format": format, "source": "s"})
    return list(READERS[format](file, folder, IngestConfig(**config)))


def test_a_json_list_is_read_an_element_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "x" * n} for n in range(1, 2_000, 7)] + [5, {"text": "end"}]))
    found = read(tmp_path, "a.json")
    assert [len(r.text) for r in found if isinstance(r, Record)] == [*range(1, 2_000, 7), 3]
    assert [r.reason for r in found if isinstance(r, Bad)] == ["not a JSON object"]
    for content, reason in (
        ('[{"text": "a"}, {"te', "not JSON"),
        ('[{"text": "a"}] rest', "not JSON"),
        ('[{"text": "a"} "b" ]', "not a JSON object"),
        ("[" * 100_000, "not JSON"),
    ):
        (tmp_path / "b.json").write_text(content)
        assert [r.reason for r in read(tmp_path, "b.json") if isinstance(r, Bad)] == [reason], content[:20]
    (tmp_path / "c.json").write_text('[{"text": "a"}, {"text": "' + "x" * 300_000 + '"}, {"text": "b"}]')
    assert read(tmp_path, "c.json", max_record_bytes=1_000) == [
        Record("a"),
        Bad("too long", "c.json, element 2, and what follows"),
    ]


# --- whatever a file holds
# ----------------------------------------------------------------------------------------------

WHOLE = {
    "jsonl": jsonl(*({"text": f"text {n}"} for n in range(9))),
    "jsonl.gz": gzip.compress(jsonl(*({"text": f"text {n}"} for n in range(9)))),
    "jsonl.zst": zstd(jsonl(*({"text": f"text {n}"} for n in range(9)))),
    "warc": b"".join(page(n, size=2) for n in range(4)),
    "warc.gz": b"".join(gzip.compress(page(n, size=2)) for n in range(4)),
}


@max_examples(80)
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 60), st.binary(max_size=30)), min_size=1, max_size=4),
    st.booleans(),
)
def test_no_file_stops_a_reader(
    tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[tuple[int, int, bytes]], doubled: bool
) -> None:
    """Cut, changed and joined inputs: records that were there, or reasons; nothing else, and it ends."""
    folder = tmp_path_factory.mktemp("fuzz")
    data = WHOLE[kind]
    for place, removed, other in changes:
        at = place % (len(data) + 1)
        data = data[:at] + other + data[at + removed :]
    (folder / f"a.{kind}").write_bytes(data * (1 + doubled))
    found = read(folder, f"a.{kind}", kind.partition(".")[0], max_record_bytes=1 << 20)
    assert len(found) <= 40
    assert found or not data.strip()


def test_the_bound_is_what_the_message_names() -> None:
    assert compression.WINDOW == 2048 << 20
