"""Inputs that are large in one way or bad all through: bounded memory, everything counted, an end.

Each case runs in a process of its own that reports its peak memory; the sizes are scaled down for CI, the bounds with
them.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.limits import HANG
from tests.support.paths import ROOT

SCRIPT = """
import json, pathlib, sys
from benchmarks.memory import peak_kib
from tests.integration.stages import test_data_at_scale as cases
result = getattr(cases, "case_" + sys.argv[1])(pathlib.Path(sys.argv[2]))
print(json.dumps({**result, "peak": peak_kib() >> 10}))
"""


def measured(case: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What a case returns when run by itself, with `peak`, MiB."""
    command = [sys.executable, "-c", SCRIPT, case.__name__.removeprefix("case_"), str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def deduplicated(folder: Path, texts: Iterator[str], **config: Any) -> dict[str, Any]:
    from stages.core.artifacts import Documents
    from stages.core.testing import LocalContext, local_artifact
    from stages.dedup.run import run
    from stages.dedup.spec import DedupConfig
    from stages.lib.formats.documents import write_documents

    (folder / "in").mkdir()
    write_documents(folder / "in", ({"id": str(n), "text": t, "source": "s"} for n, t in enumerate(texts)))
    ctx = LocalContext(folder, DedupConfig(**config), {"sources": [local_artifact(Documents, folder / "in")]})
    run(ctx)
    return {
        "funnel": {reason: row["documents"] for reason, row in ctx.stats["funnel"].items()},
        "sizes": ctx.stats["cluster_sizes"],
    }


def ingested(folder: Path, name: str, format: str, **config: Any) -> dict[str, Any]:
    from stages.core.artifacts import RawFiles
    from stages.core.errors import InputError
    from stages.core.testing import LocalContext, local_artifact
    from stages.ingest.run import run
    from stages.ingest.spec import IngestConfig
    from stages.lib.formats.sources import RawFile, write_listing

    write_listing(folder, [RawFile(uri=name, format=format, source="s")])  # type: ignore[arg-type]
    ctx = LocalContext(
        folder / "out", IngestConfig(max_bad_fraction=1.0, **config), {"raw": [local_artifact(RawFiles, folder)]}
    )
    try:
        run(ctx)
    except InputError as error:
        return {"error": str(error)}
    return {"documents": ctx.stats["documents"], "skipped": ctx.stats["skipped"]}


def case_one_word(folder: Path) -> dict[str, Any]:
    """Documents of one word, a third of them different."""
    return deduplicated(folder, (f"word{n % 40_000}" for n in range(120_000)), min_characters=0)


def test_documents_of_one_word(tmp_path: Path) -> None:
    found = measured(case_one_word, tmp_path)
    assert found["funnel"] == {"in": 120_000, "exact duplicate": 80_000, "out": 40_000}
    assert found["peak"] < 500


def case_identical(folder: Path) -> dict[str, Any]:
    text = "the same text again and again, long enough to be kept by every filter that there is " * 4
    return deduplicated(folder, (text for _ in range(20_000)))


def test_all_documents_identical(tmp_path: Path) -> None:
    found = measured(case_identical, tmp_path)
    assert found["funnel"] == {"in": 20_000, "exact duplicate": 19_999, "out": 1}
    assert found["peak"] < 500


def case_nearly_identical(folder: Path) -> dict[str, Any]:
    text = "a page of a template whose words are the same on each of very many pages of a large site; " * 5
    return deduplicated(folder, (f"{text}{n}" for n in range(8_000)))


def test_all_documents_nearly_identical(tmp_path: Path) -> None:
    """One cluster of everything: work stays linear, since connected pairs are not compared."""
    found = measured(case_nearly_identical, tmp_path)
    assert found["funnel"] == {"in": 8_000, "near duplicate": 7_999, "out": 1}
    assert found["sizes"] == {"8000": 1}
    assert found["peak"] < 500


def case_large_documents(folder: Path) -> dict[str, Any]:
    """Two of 8 MB that differ in one place, one of 8 MB that has nothing to do with them."""
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz     \n", np.uint8)
    one, other = (letters[np.random.default_rng(n).integers(0, 32, 8 << 20)].tobytes().decode() for n in range(2))
    return deduplicated(folder, iter([one, one[: 4 << 20] + "changed here" + one[4 << 20 :], other]))


def test_documents_of_many_megabytes(tmp_path: Path) -> None:
    """The sets are compared in several passes over hash ranges; memory is a few times the text."""
    found = measured(case_large_documents, tmp_path)
    assert found["funnel"] == {"in": 3, "near duplicate": 1, "out": 2}
    assert found["peak"] < 700


def case_junk(folder: Path) -> dict[str, Any]:
    (folder / "junk.jsonl").write_bytes(random.Random(1).randbytes(20 << 20))
    return ingested(folder, "junk.jsonl", "jsonl")


def test_a_shard_of_binary_junk(tmp_path: Path) -> None:
    found = measured(case_junk, tmp_path)
    assert "no usable document" in found["error"]
    assert "invalid UTF-8" in found["error"]
    assert found["peak"] < 300


def case_bomb(folder: Path) -> dict[str, Any]:
    """A fifth of a megabyte that becomes a line of 200, and a document after it."""
    with gzip.open(folder / "bomb.jsonl.gz", "wb", compresslevel=6) as stream:
        for _ in range(200):
            stream.write(b"0" * (1 << 20))
        stream.write(b'\n{"text": "what comes after is read"}\n')
    return ingested(folder, "bomb.jsonl.gz", "jsonl", max_record_bytes=8 << 20)


def test_a_gzip_bomb(tmp_path: Path) -> None:
    found = measured(case_bomb, tmp_path)
    assert found["skipped"] == {"too long": 1}
    assert found["documents"] == 1
    assert found["peak"] < 300


def record(body: bytes, declared: int) -> bytes:
    head = (
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a/\r\nContent-Type: application/http;"
        f" msgtype=response\r\nContent-Length: {declared}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def case_lying_lengths(folder: Path) -> dict[str, Any]:
    page = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html><body><p>A page with enough words to be a"
        b" text.</p></body></html>"
    )
    true = record(page, len(page))
    (folder / "lies.warc").write_bytes(true + record(page, 1 << 40) + true + record(page, len(page) + 5000))
    return ingested(folder, "lies.warc", "warc", max_record_bytes=8 << 20)


def test_a_warc_with_lying_lengths(tmp_path: Path) -> None:
    """A record that claims a terabyte is passed over with what it swallows; nothing is allocated for it."""
    found = measured(case_lying_lengths, tmp_path)
    assert found["documents"] >= 1
    assert sum(found["skipped"].values()) >= 1
    assert found["peak"] < 300


@pytest.mark.parametrize("recipe", ["dclm", "dclm-suffix-array", "the-stack"])
def test_odd_documents_pass_every_recipe(tmp_path: Path, recipe: str) -> None:
    """No text, no letters, one line of a megabyte, only line feeds, only punctuation."""
    texts = ["", " ", "\n" * 50_000, "!?" * 50_000, "x" * (1 << 20), "漢" * 100_000, "a b c " * 100_000, "\x00" * 1000]
    found = deduplicated(tmp_path, iter(texts), recipe=recipe)["funnel"]
    changed = found.pop("paragraphs seen before", 0) + found.pop("repeated substrings", 0)
    assert found.pop("in") == sum(found.values()) == len(texts)
    assert changed <= len(texts)


@pytest.mark.parametrize(("case", "documents", "skipped"), [("lies", 14 * 18, 14 * 2), ("bomb", 2, 2)])
def test_the_full_sizes_are_the_same_cases(tmp_path: Path, case: str, documents: int, skipped: int) -> None:
    """`benchmarks/data_bad.py`, small: of 20 pages in each of 14 archives 2 lie about their length."""
    from benchmarks import data_bad

    (tmp_path / "raw").mkdir()
    settings = data_bad.CASES[case](tmp_path / "raw", 0.001 if case == "lies" else 0.01)
    row = data_bad.measured("ingest", tmp_path, settings)
    assert (row["documents"], sum(row["skipped"].values())) == (documents, skipped), data_bad.counted(row)
