"""Bad input at full size through the real stages: bounded memory, everything counted, an end.

    python -m benchmarks.data_bad --folder FOLDER [--only junk,bomb] [--scale 0.01] [--recipes slimpajama,dclm]

Makes each input (nothing is downloaded), sends it through `ingest` and then through `dedup` by each recipe, every run
in a process of its own, and prints one Markdown table: seconds of processor of the stage, peak memory of its process
(VmHWM), and what was counted. At scale 1 it takes about a quarter of an hour of one core and 12 GB of disk; inputs and
outputs are removed as it goes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import peak_kib
from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.context import LocalArtifact
from stages.core.errors import StageError
from stages.core.testing import LocalContext

MEGABYTE = 1 << 20
GOOD = (
    "What comes after the bad is read: a text that is long enough for every filter, in words that nobody else uses"
    " here. " * 3
)
"""One good document stands beside what is no document at all, so that dedup has something to do."""


def write_lines(path: Path, texts: Iterable[str]) -> None:
    """JSON lines of texts that need no escape."""
    with open(path, "w", encoding="utf-8") as stream:
        stream.writelines(f'{{"text": "{text}"}}\n' for text in texts)


def make_junk(folder: Path, scale: float) -> dict[str, Any]:
    """1 GB of random bytes that calls itself JSON lines, and the same as WARC and as Parquet."""
    chance = random.Random(1)
    with open(folder / "junk.jsonl", "wb") as stream:
        for _ in range(max(1, int(1024 * scale))):
            stream.write(chance.randbytes(MEGABYTE))
    os.link(folder / "junk.jsonl", folder / "junk.warc")
    os.link(folder / "junk.jsonl", folder / "junk.parquet")
    write_lines(folder / "good.jsonl", [GOOD])
    return {}


def make_bomb(folder: Path, scale: float) -> dict[str, Any]:
    """10 MB that become one line of 10 GB, and as much in one record of a WARC."""
    size = max(1, int(10 * 1024 * scale))
    zeros = b"0" * MEGABYTE
    with gzip.open(folder / "bomb.jsonl.gz", "wb", compresslevel=6) as stream:
        stream.write(b'{"text": "')
        for _ in range(size):
            stream.write(zeros)
        stream.write(b'"}\n' + json.dumps({"text": GOOD}).encode() + b"\n")
    with open(folder / "bomb.warc.gz", "wb") as out:
        with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=6) as stream:
            stream.write(head(size * MEGABYTE))
            for _ in range(size):
                stream.write(zeros)
            stream.write(b"\r\n\r\n")
        page = html(0)
        out.write(gzip.compress(head(len(page)) + page + b"\r\n\r\n"))
    return {}


def head(declared: int | str) -> bytes:
    """The header of a WARC response that claims a length."""
    fields = (
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a/\r\nContent-Type: application/http;"
        " msgtype=response\r\n"
    )
    return f"{fields}Content-Length: {declared}\r\n\r\n".encode()


def html(number: int) -> bytes:
    """A page with its HTTP header."""
    chance = random.Random(number)
    words = " ".join(f"word{chance.randrange(50_000)}" for _ in range(120))
    page = f"<html><body><p>Page {number}. {words}.</p></body></html>"
    return f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{page}".encode()


def make_lies(folder: Path, scale: float) -> dict[str, Any]:
    """WARCs of 20,000 pages, plain and compressed, in which every tenth record claims a length that it has not."""
    lies: dict[str, Callable[[int], int | str]] = {
        "longer": lambda n: n + 5000,
        "shorter": lambda n: n // 2,
        "terabyte": lambda n: 1 << 40,
        "nothing": lambda n: 0,
        "negative": lambda n: -1,
        "word": lambda n: "many",
        "beyond": lambda n: 1 << 70,
    }
    for kind, (name, lie) in enumerate(lies.items()):
        for ending in ("warc", "warc.gz"):
            with open(folder / f"{name}.{ending}", "wb") as stream:
                for number in range(max(20, int(20_000 * scale))):
                    page = html(number + 100_000 * kind)
                    record = head(lie(len(page)) if number % 10 == 9 else len(page)) + page + b"\r\n\r\n"
                    stream.write(gzip.compress(record, 1) if ending.endswith("gz") else record)
    return {}


def make_words(folder: Path, scale: float) -> dict[str, Any]:
    """Ten million documents of one word, a third of them different."""
    count = int(10_000_000 * scale)
    write_lines(folder / "words.jsonl", (f"word{n % (count // 3 or 1)}" for n in range(count)))
    return {"min_characters": 0}


def make_identical(folder: Path, scale: float) -> dict[str, Any]:
    """A million documents of 2 kB, all the same."""
    text = " ".join(html(1).decode().split()[8:]) * 2
    write_lines(folder / "identical.jsonl", (text[:2000] for _ in range(int(1_000_000 * scale))))
    return {}


def make_template(folder: Path, scale: float) -> dict[str, Any]:
    """A million documents of 2 kB that differ in a number at their end: one cluster of everything."""
    text = " ".join(html(1).decode().split()[8:]) * 2
    write_lines(folder / "template.jsonl", (f"{text[:1990]} {n}" for n in range(int(1_000_000 * scale))))
    return {}


def make_large(folder: Path, scale: float) -> dict[str, Any]:
    """24 documents of 100 MB: 16 that have nothing in common, and 8 that differ from one of those in one place."""
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz      ", np.uint8)
    size = int(100_000_000 * scale)
    with open(folder / "large.jsonl", "wb") as stream:
        for number in range(24):
            text = letters[np.random.default_rng(number % 16).integers(0, 32, size, np.uint8)].tobytes()
            if number >= 16:
                text = text[: size // 2] + b"changed here" + text[size // 2 :]
            stream.write(b'{"text": "' + text + b'"}\n')
    return {"max_record_bytes": 128 * MEGABYTE}


CASES: dict[str, Callable[[Path, float], dict[str, Any]]] = {
    "junk": make_junk,
    "bomb": make_bomb,
    "lies": make_lies,
    "words": make_words,
    "identical": make_identical,
    "template": make_template,
    "large": make_large,
}


def artifact(folder: Path, type: str) -> LocalArtifact:
    """An input as a stage sees it; its files are not hashed, which would read them whole."""
    files = tuple(
        FileEntry(path=path.name, size=path.stat().st_size, sha256="0" * 64, object=str(path))
        for path in sorted(folder.iterdir())
    )
    return LocalArtifact(folder, ArtifactManifest(type=type, digest="0" * 64, facets={}, files=files), "bad")


def ingest(folder: Path, settings: dict[str, Any]) -> LocalContext[Any]:
    """Run `ingest` on the files of FOLDER/raw."""
    from stages.ingest.run import run
    from stages.ingest.spec import IngestConfig
    from stages.lib.formats.sources import RawFile, write_listing

    files = [
        RawFile(uri=path.as_uri(), format=path.name.split(".")[1], source="s")  # type: ignore[arg-type]
        for path in sorted((folder / "raw").iterdir())
    ]
    (folder / "listing").mkdir(exist_ok=True)
    write_listing(folder / "listing", files)
    known = {name: value for name, value in settings.items() if name in IngestConfig.model_fields}
    ctx = LocalContext(
        folder / "ingest",
        IngestConfig(max_bad_fraction=1.0, **known),
        {"raw": [artifact(folder / "listing", "RawFiles")]},
    )
    run(ctx)
    return ctx


def dedup(folder: Path, recipe: str, settings: dict[str, Any]) -> LocalContext[Any]:
    """Run `dedup` on what `ingest` wrote."""
    from stages.dedup.run import run
    from stages.dedup.spec import DedupConfig

    known = {name: value for name, value in settings.items() if name in DedupConfig.model_fields}
    source = artifact(folder / "ingest" / "out" / "documents", "Documents")
    ctx = LocalContext(folder / "dedup", DedupConfig(recipe=recipe, **known), {"sources": [source]})  # type: ignore[arg-type]
    run(ctx)
    return ctx


def measured(stage: str, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Run a stage in this process: what it counted, CPU seconds, peak MB."""
    started = time.process_time()
    row: dict[str, Any] = {}
    try:
        ctx = ingest(folder, settings) if stage == "ingest" else dedup(folder, stage, settings)
        names = (
            ("documents", "text_bytes", "skipped")
            if stage == "ingest"
            else ("funnel", "cluster_sizes", "candidate_pairs", "verified_pairs")
        )
        row |= {name: ctx.stats[name] for name in names if name in ctx.stats}
    except StageError as error:
        row["error"] = f"{type(error).__name__}: {error}"
    row["seconds"] = round(time.process_time() - started, 1)
    row["peak"] = round(peak_kib() * 1024 / 1e6)
    return row


def counted(row: dict[str, Any]) -> str:
    """What a stage said, in one cell."""
    if "error" in row:
        return row["error"].replace("|", "/")
    if "funnel" in row:
        cells = {reason: f"{counts['documents']:,}" for reason, counts in row["funnel"].items()}
    else:
        cells = {"documents": f"{row['documents']:,}"} | {reason: f"{n:,}" for reason, n in row["skipped"].items()}
    return ", ".join(f"{reason} {n}" for reason, n in cells.items())


def run_case(name: str, folder: Path, scale: float, recipes: list[str]) -> None:
    """Make one input, run the stages on it, print its rows."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "raw").mkdir(parents=True)
    settings = CASES[name](folder / "raw", scale)
    size = sum({path.stat().st_ino: path.stat().st_size for path in (folder / "raw").iterdir()}.values())
    documents = ""
    for stage in ("ingest", *recipes):
        command = [
            sys.executable,
            "-m",
            "benchmarks.data_bad",
            "--folder",
            str(folder),
            "--stage",
            stage,
            "--settings",
            json.dumps(settings),
        ]
        started = time.monotonic()
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        row = (
            json.loads(done.stdout.splitlines()[-1])
            if done.returncode == 0
            else {"error": done.stderr[-1500:], "seconds": "", "peak": ""}
        )
        print(f"{name} {stage}: {json.dumps(row)} wall {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        if stage == "ingest":
            documents = f"{row.get('documents', 0):,}"
            shutil.rmtree(folder / "raw")
        amount = f"{size / 1e6:,.0f} MB" if stage == "ingest" else ""
        print(
            f"| {name if stage == 'ingest' else ''} | {amount} | {documents} | {stage} | {row['seconds']} |"
            f" {row['peak']} | {counted(row)} |",
            flush=True,
        )
        shutil.rmtree(folder / "dedup", ignore_errors=True)
        if "error" in row and stage == "ingest":
            break
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", default=",".join(CASES), help="of " + ", ".join(CASES))
    parser.add_argument("--recipes", default="slimpajama,dclm")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        print(json.dumps(measured(given.stage, given.folder, json.loads(given.settings))))
        return
    print(
        "| input | size | documents | stage | CPU s | peak MB | counted |\n| --- | ---: | ---: | --- | ---: | ---: |"
        " --- |",
        flush=True,
    )
    for name in given.only.split(","):
        run_case(name, given.folder / name, given.scale, [name for name in given.recipes.split(",") if name])


if __name__ == "__main__":
    main()
