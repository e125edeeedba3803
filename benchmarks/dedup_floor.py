"""Where `dedup` spends its time, and what no arrangement of its steps can do without: microseconds of processor for
each document of a corpus (`benchmarks.data` makes one), in this process.

python -m benchmarks.dedup_floor --corpus /tmp/data-benchmark/corpus-150000 --scratch /tmp/scratch [--documents 20000]
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import shutil
from pathlib import Path

from benchmarks.data import dedup_run, timed
from benchmarks.data_truth import batches
from stages.dedup.minhash import Signer
from stages.lib.data import workers
from stages.lib.formats.documents import DocumentWriter, read_batches

ROWS = 8192
"""Documents that are read together, as the stage does."""


def parts(corpus: Path, scratch: Path, documents: int) -> dict[str, float]:
    """What cannot be left out, each alone, in seconds of processor: documents are read, signed, and written again."""
    work = batches(corpus, documents)
    signers = {count: Signer("characters", 13, count, *bands, 1) for count, bands in ((128, (18, 7)), (1, (1, 1)))}
    rows = list(read_batches(corpus, None, ROWS))

    def write() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        with DocumentWriter(scratch) as writer:
            for batch in rows:
                writer.add_batch(batch)

    def digest() -> None:
        for source, ends in work:
            view = memoryview(source.data)
            for low, high in itertools.pairwise(ends.tolist()):
                hashlib.sha256(view[low:high]).digest()

    return {
        "sign, 128 permutations": timed(lambda: [signers[128].sign(*part) for part in work]),
        "of it without the minima: 1 permutation": timed(lambda: [signers[1].sign(*part) for part in work]),
        "SHA-256 of each text": timed(digest),
        "read the texts": timed(lambda: sum(batch.num_rows for batch in read_batches(corpus, ["text"], ROWS))),
        "read all columns": timed(lambda: sum(batch.num_rows for batch in read_batches(corpus, None, ROWS))),
        "write all documents": timed(write),
    }


def main() -> None:
    """Measure, and print a line for each part and each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True, help="a folder of its own: it is emptied")
    parser.add_argument("--documents", type=int, default=20_000, help="how many the corpus holds")
    options = parser.parse_args()
    rows = parts(options.corpus, options.scratch / "written", options.documents)
    runs, plain = [], workers.Pool.map
    for number in range(3):
        workers.Pool.map = plain  # type: ignore[method-assign]  # each run puts its watch around it
        runs.append(dedup_run(options.corpus, options.scratch / f"run-{number}"))
    best = min(runs, key=lambda run: run["cpu"])
    rows |= {"the whole stage": best["cpu"]} | {f"step {name}": cpu for name, cpu in best["steps"].items()}
    for name, cpu in rows.items():
        print(f"| {name} | {1e6 * cpu / options.documents:.1f} us |")


if __name__ == "__main__":
    main()
