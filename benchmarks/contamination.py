"""The scan for evaluation items against a peer, on one corpus of real text, in one run.

    python -m benchmarks.contamination --folder /tmp/data-benchmark --peer PEERS/bin/python [--documents 30000]

The corpus is that of `benchmarks.data`. Every tenth document is not scanned: the first 60 words of each, in another
order, are an item, so that the table's words are those of real text; every hundredth of the others gives an item that
is in the corpus (and in as many documents as hold the same text).
Prints one Markdown table: text read a second of one core (`time.process_time` of the process that works, the better of
two after the first), for the scan alone and for the stage as it is run, with reading Parquet and writing. PEERS is an
environment with data-peers.txt: datatrove's NGramsDecontFilter, on fewer documents, with an index of the same items.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.data_corpus import build
from stages.contamination.run import run
from stages.contamination.spec import ContaminationConfig
from stages.core.artifacts import Documents, EvalSuite
from stages.core.testing import LocalContext, local_artifact
from stages.lib.formats.documents import DocumentWriter, read_documents
from stages.lib.formats.overlap import ItemOverlap, items_path, parse_items
from stages.lib.formats.suites import DataSet, Suite, write_data_set, write_suite

DATA_SET = "benchmark/items"
WORDS = 60
PEER_DOCUMENTS = 500
"""What takes the peer some seconds."""


def prepare(corpus: Path, folder: Path) -> tuple[Path, Path, int]:
    """Write what is scanned and the suite; returns their folders and how many items lie in the corpus."""
    scanned, suite = folder / "scanned", folder / "suite"
    absent, planted, rng = [], [], random.Random(1)
    scanned.mkdir(parents=True)
    with DocumentWriter(scanned) as writer:
        for number, document in enumerate(read_documents(corpus)):
            words = document["text"].split()
            if number % 10 == 0:
                absent.append(" ".join(rng.sample(words[:WORDS], len(words[:WORDS]))))
                continue
            writer.add(**document)
            if number % 100 == 1 and len(words) >= WORDS:
                planted.append(" ".join(words[-WORDS:]))
    table = pa.table({"text": [*planted, *absent]})
    rows = write_data_set(suite, DATA_SET, {"default": {"test": table}})
    write_suite(suite, Suite(data_sets=(DataSet(id=DATA_SET, origin="folder", rows=rows),)))
    (folder / "items.json").write_text(json.dumps([*planted, *absent]), encoding="utf-8")
    return scanned, suite, len(planted)


def scan_alone(scanned: Path, index: Path, how: dict[str, Any]) -> float:
    """MB/s of one core of the scan, over batches that are in memory."""
    from stages.contamination.scan import Scanner, load_index
    from stages.contamination.training_texts import read_texts, tasks_of
    from stages.core.testing import local_artifact

    entries = local_artifact(Documents, scanned).entries()
    batches = [b for task in tasks_of("documents", "corpus", entries) for b in read_texts("documents", task)]
    loaded = load_index({path.name: path for path in index.iterdir()})
    best, size = float("inf"), 0
    for _ in range(3):
        scanner = Scanner(loaded, tuple(how["anchors"]), how["least"], how["skips"])
        started = time.process_time()
        for ids, column in batches:
            scanner.add(ids, column)
        best, size = min(best, time.process_time() - started), scanner.bytes
    return size / 1e6 / best


def stage(rule: str, scanned: Path, suite: Path, folder: Path) -> tuple[float, float, list[ItemOverlap]]:
    """MB/s of one core of the whole stage and of the scan alone, and the items."""
    inputs = {"suites": [local_artifact(EvalSuite, suite)], "documents": [local_artifact(Documents, scanned)]}
    best, ctx = float("inf"), None
    for attempt in range(2):
        ctx = LocalContext(folder / f"{rule}-{attempt}", ContaminationConfig(rule=rule), inputs)  # type: ignore[arg-type]
        started = time.process_time()
        run(ctx)
        best = min(best, time.process_time() - started)
    assert ctx is not None
    how = {"anchors": (13, 8), "least": 13, "skips": None}
    if rule == "llama2":
        how = {"anchors": (10, 1), "least": 11, "skips": 4}
    alone = scan_alone(scanned, next((ctx.root / "tasks").glob("index.stage.*")), how)
    data = (ctx.output("overlap") / items_path(DATA_SET)).read_bytes()
    return ctx.stats["bytes"] / 1e6 / best, alone, parse_items(data, "items")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--peer", help="Python of an environment with data-peers.txt")
    parser.add_argument("--documents", type=int, default=30_000)
    options = parser.parse_args()
    folder = options.folder / f"contamination-{os.getpid()}"
    scanned, suite, planted = prepare(build(options.folder, options.documents), folder)
    rows = []
    for rule in ("gpt3", "llama2"):
        whole, alone, items = stage(rule, scanned, suite, folder)
        hits = sum(bool(item.matches) for item in items[:planted])
        others = sum(bool(item.matches) for item in items[planted:])
        rows.append([f"moxin, {rule}, the scan", f"{alone:.0f}", f"{hits} of {planted}", str(others)])
        rows.append([f"moxin, {rule}, the stage", f"{whole:.0f}", f"{hits} of {planted}", str(others)])
    if options.peer:
        script = Path(__file__).with_name("contamination_peer.py")
        arguments = [options.peer, str(script), str(scanned), str(folder / "items.json"), str(PEER_DOCUMENTS)]
        peer = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        rows.append([f"datatrove {peer['version']}, NGramsDecontFilter", f"{peer['speed']:.2f}", "", ""])
    print(f"- {platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    head = ["what", "MB/s of one core", "planted items found", "other items with an overlap"]
    rows[:0] = [head, ["---", "---:", "---:", "---:"]]
    print()
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()
