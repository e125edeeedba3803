"""The data stages against their peers, on one corpus of real text, in one run.

    python -m benchmarks.data --folder /tmp/data-benchmark --peers PEERS/bin/python [--documents 100000]

Makes the corpus (`data_corpus`, from Debian's packages; nothing else is downloaded), then prints one Markdown table:
CPU of one core (`time.process_time` of the process that works), peak memory, recall and precision against exact Jaccard
similarities at 0.8, and the ratio to the best peer, where PEERS is there: an environment with data-peers.txt.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data_corpus import build, fetch
from benchmarks.data_truth import Truth, batches, edges_of, equal_texts, same_cluster
from benchmarks.memory import peak_kib
from stages.core.artifacts import Documents, Tokenizer
from stages.core.testing import LocalContext, local_artifact
from stages.dedup.bloom_filter import BloomFilter
from stages.dedup.bloom_size import BYTES_PER_NGRAM
from stages.dedup.minhash import Signer
from stages.lib.formats.documents import DocumentWriter

PEERS = {"datasketch": 4000, "rensa": 20_000, "gaoya": 20_000, "datatrove": 2000, "text_dedup": 4000}
"""Peers, and how many documents each gets: what takes it about half a minute. text-dedup has a Python of its own."""
HTML_PAGES = 5000
"""Pages that are extracted, from all packages alike."""


def size_of(work: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Megabytes of text."""
    return sum(int(ends[-1] - ends[0]) for _, ends in work) / 1e6


def timed(work: Any) -> float:
    """CPU seconds of the second of two calls (the first compiles), the better of two."""
    work()
    best = float("inf")
    for _ in range(2):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def measure_kernels(corpus: Path, documents: int) -> dict[str, dict[str, float]]:
    """Signing, Bloom filter and substrings alone: documents and MB a second of one core."""
    work = batches(corpus, documents)
    count, size = sum(len(ends) - 1 for _, ends in work), size_of(work)
    rows = {}
    for name, arguments in (
        ("sign slimpajama (128 permutations, 18 x 7)", ("characters", 13, 128, 18, 7, 1)),
        ("sign dclm (words, 128)", ("words", 5, 128, 18, 7, 1)),
        ("sign the-stack (tokens, 256)", ("token set", 1, 256, 25, 10, 1)),
    ):
        signer = Signer(*arguments)  # type: ignore[arg-type]
        rows[name] = timed(lambda signer=signer: [signer.sign(*part) for part in work])

    def bloom() -> None:
        machine = BloomFilter(int(size * 1e6) // BYTES_PER_NGRAM)
        for part in work:
            machine.filter(*part)

    rows["BFF old-both"] = timed(bloom)
    return {name: {"docs/s": count / cpu, "MB/s": size / cpu} for name, cpu in rows.items()}


def measure_substrings(corpus: Path) -> dict[str, float]:
    """Suffix array, longest common prefixes and cutting of 16 MB."""
    from stages.dedup.suffix_array import repetitions

    source = np.concatenate([s[e[0] : e[-1]] for s, e in batches(corpus, 8000)])[: 16 << 20].copy()
    return {"MB/s": len(source) / 1e6 / timed(lambda: repetitions(source, 100))}


def measure_scorer(corpus: Path, folder: Path) -> dict[str, dict[str, float]]:
    """The collapsed classifier and fastText on the same texts; the largest difference of a score."""
    from stages.lib.data.workers import Pool
    from stages.quality import run as quality
    from stages.quality import training
    from stages.quality.fasttext_scorer import Scorer
    from stages.quality.spec import QualityConfig

    root = folder / "quality"
    inputs = {}
    for port, keep in (("documents", lambda n: n % 2), ("positives", lambda n: not n % 2)):
        (root / port).mkdir(parents=True, exist_ok=True)
        with DocumentWriter(root / port) as writer:
            for n, (source, ends) in enumerate(batches(corpus, 4000)):
                for d in range(len(ends) - 1):
                    if keep(d):
                        writer.add(f"{n}-{d}", source[ends[d] : ends[d + 1]].tobytes().decode(), "s")
        inputs[port] = [local_artifact(Documents, root / port)]
    with Pool(root / "work") as pool:
        ctx = LocalContext(root, QualityConfig(buckets=200_000), inputs)
        model, _ = training.fitted(root, **quality.sample(ctx, pool))
    scorer = Scorer.of(model)
    assert scorer is not None
    work = batches(corpus, 8000)
    texts = [s[a:b].tobytes().decode() for s, e in work for a, b in itertools.pairwise(e)]
    collapsed = np.concatenate([scorer.score(*part) for part in work])
    started = time.process_time()
    plainly = training.scores(model, texts)
    plain = time.process_time() - started
    return {
        "score, collapsed": {"MB/s": size_of(work) / timed(lambda: [scorer.score(*part) for part in work])},
        "score, fastText": {
            "MB/s": size_of(work) / plain,
            "largest difference (but at 0.5)": float(np.abs(collapsed - plainly)[np.abs(plainly - 0.5) > 2e-5].max()),
        },
    }


def measure_tokens(corpus: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Encoding by the fast encoder and the reference, and packing of its ids."""
    from stages.core import task_objects
    from stages.core.uploads import Sums
    from stages.lib.data.workers import Pool
    from stages.tokenize import packing
    from stages.tokenize.encoder import Encoder
    from stages.tokenize.streams import Encoded, Stream
    from stages.tokenizer.run import run
    from stages.tokenizer.spec import TokenizerConfig

    root = folder / "tokens"
    ctx = LocalContext(
        root,
        TokenizerConfig(vocab_size=16_000, sample_bytes=8_000_000),
        {
            "documents": [
                local_artifact(
                    Documents, corpus, meta={"text_bytes": sum(p.stat().st_size * 4 for p in corpus.glob("part-*"))}
                )
            ]
        },
    )
    run(ctx)
    encoder = Encoder(local_artifact(Tokenizer, ctx.output("tokenizer")).path)
    texts = [s[a:b].tobytes().decode() for s, e in batches(corpus, 6000) for a, b in itertools.pairwise(e)]
    size = sum(len(t.encode()) for t in texts) / 1e6
    few = texts[:600]
    slow = timed(lambda: encoder.reference(few)) / (sum(len(t.encode()) for t in few) / 1e6)
    rows = {
        "encode, fastokens": {"MB/s": size / timed(lambda: encoder.encode(texts))},
        "encode, tokenizers": {"MB/s": 1 / slow},
    }
    ids = np.random.default_rng(0).integers(3, 16_000, 100 << 20, dtype=np.uint16)
    (root / "ids").write_bytes(ids.tobytes())
    (entry,) = local_artifact(Documents, root).entries("ids")

    def pack() -> None:
        shutil.rmtree(root / "work", ignore_errors=True)  # with its receipts: nothing would be done again
        with Pool(root / "work") as pool:
            stream = Stream([Encoded(entry, len(ids))], len(ids))
            packing.shuffle(pool, "train", [stream], packing.Windows(2000, "uint16", 16_000, 1))

    plain, task_objects.file_sums = (
        task_objects.file_sums,
        lambda path: Sums("0" * 64, ""),
    )  # the store's client has them
    rows["pack and shuffle"] = {"MB/s": ids.nbytes / 1e6 / timed(pack)}
    task_objects.file_sums = plain
    return rows


def measure_extraction(folder: Path, peers: str | None) -> dict[str, dict[str, float]]:
    """The whole `ingest` stage on a compressed WARC file of Debian's pages, resiliparse alone on the same pages in
    memory, and datatrove's reader on the same file, alone and with its extractor. The best of three each.
    """
    from resiliparse.extract.html2text import extract_plain_text

    from stages.core.artifacts import RawFiles
    from stages.ingest import bounded_process
    from stages.ingest.run import run
    from stages.ingest.spec import IngestConfig
    from stages.lib.formats.sources import RawFile, write_listing

    paths = sorted(path for path in fetch(folder).rglob("*.html") if path.is_file() and not path.is_symlink())
    pages = [path.read_bytes() for path in paths[:: max(1, len(paths) // HTML_PAGES)]]
    texts, root = [page.decode("utf-8", "replace") for page in pages], folder / "extraction"
    raw = root / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    with open(raw / "pages.warc.gz", "wb") as stream:
        for number, page in enumerate(pages):
            http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(page) + page
            head = (
                "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI:"
                f" https://debian.invalid/{number}\r\nWARC-Record-ID: <urn:uuid:{uuid.UUID(int=number)}>\r\nWARC-Date:"
                " 2024-01-01T00:00:00Z\r\nContent-Type: application/http; msgtype=response\r\nContent-Length:"
                f" {len(http)}\r\n\r\n"
            )
            stream.write(gzip.compress(head.encode() + http + b"\r\n\r\n", mtime=0))
    write_listing(raw, [RawFile(uri="pages.warc.gz", format="warc", source="debian")])

    def ingest() -> None:
        shutil.rmtree(root / "run", ignore_errors=True)  # with its receipts: nothing would be read again
        run(LocalContext(root / "run", IngestConfig(), {"raw": [local_artifact(RawFiles, raw)]}))
        bounded_process.shared().close()  # its time counts from here on: the children's that have ended

    size = sum(map(len, pages)) / 1e6
    work: dict[str, Any] = {
        "extract, ingest from WARC": ingest,
        "extract, resiliparse alone": lambda: [extract_plain_text(text, main_content=True) for text in texts],
    }
    best = {name: min(_with_children(function) for _ in range(3)) for name, function in work.items()}
    if peers:
        command = [
            peers,
            str(Path(__file__).parent / "data_peers.py"),
            "warc",
            str(raw / "pages.warc.gz"),
            str(len(pages)),
        ]
        best |= json.loads(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
        )
    alone = best["extract, resiliparse alone"]
    return {
        name: {"MB/s of HTML": size / cpu, "pages/s": len(pages) / cpu, "times resiliparse": cpu / alone}
        for name, cpu in best.items()
    }


def _with_children(function: Any) -> float:
    """Processor seconds of this process and of its children that ended."""

    def spent() -> float:
        return sum(
            u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        )

    started = spent()
    function()
    return spent() - started


def dedup_run(corpus: Path, root: Path, recipe: str = "slimpajama") -> dict[str, Any]:
    """The whole stage in this process, its CPU by step, and the documents that it removed as near duplicates."""
    from stages.dedup.run import run
    from stages.dedup.spec import DedupConfig
    from stages.lib.data import workers

    steps: dict[str, float] = {}
    plain = workers.Pool.map

    def watched(self: Any, name: str, *arguments: Any) -> Any:
        started = time.process_time()
        results = plain(self, name, *arguments)
        steps[name] = steps.get(name, 0.0) + time.process_time() - started
        return results

    workers.Pool.map = watched  # type: ignore[method-assign]
    ctx = LocalContext(
        root, DedupConfig.model_validate({"recipe": recipe}), {"sources": [local_artifact(Documents, corpus)]}
    )
    started = time.process_time()
    run(ctx)
    cpu = time.process_time() - started
    return {
        "cpu": cpu,
        "steps": steps,
        "peak": peak_kib() / 1024,
        "documents": ctx.stats["funnel"]["in"]["documents"],
        "bytes": ctx.stats["funnel"]["in"]["bytes"],
        "candidates": ctx.stats["candidate_pairs"],
        "verified": ctx.stats["verified_pairs"],
    }


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the corpus and scratch")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--peers", help="the Python of an environment with data-peers.txt")
    parser.add_argument("--text-dedup", help="the Python, 3.12 or newer, of an environment with text-dedup and pyarrow")
    parser.add_argument("--scale", default="10000,100000,1000000", help="sizes of the scaling table; empty: none")
    parser.add_argument("--only", default="kernels,extraction,quality,dedup,scale", help="parts to run")
    parser.add_argument("--dedup-run", nargs=2, metavar=("CORPUS", "ROOT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.dedup_run:
        print(json.dumps(dedup_run(Path(options.dedup_run[0]), Path(options.dedup_run[1]))))
        return
    print(
        f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}, load"
        f" {os.getloadavg()[0]:.1f}\n"
    )
    corpus = build(options.folder, options.documents)
    parts = options.only.split(",")
    if "kernels" in parts:
        _table(measure_kernels(corpus, 20_000))
    if "extraction" in parts:
        _table(measure_extraction(options.folder, options.peers))
    if "quality" in parts:
        _table(
            {
                "substrings (suffix array)": measure_substrings(corpus),
                **measure_scorer(corpus, options.folder),
                **measure_tokens(corpus, options.folder),
            }
        )
    if "dedup" in parts:
        _compare(corpus, options)
    if "scale" in parts:
        for size in (int(n) for n in options.scale.split(",") if n):
            row = _in_process(build(options.folder, size), options.folder / f"run-{size}")
            steps = " ".join(f"{name} {cpu:.1f}" for name, cpu in row["steps"].items())
            print(
                f"| {row['documents']} | {row['bytes'] / 1e6:.0f} MB | {row['cpu']:.1f} s |"
                f" {row['documents'] / row['cpu']:.0f} docs/s | {row['peak']:.0f} MB | {steps} |",
                flush=True,
            )


def _compare(corpus: Path, options: argparse.Namespace) -> None:
    """Ours on everything, peers on what they can do in half a minute; recall and precision on the same documents."""
    root = options.folder / f"compared-{options.documents}"
    row = _in_process(corpus, root)
    edges = edges_of(root)
    print(
        f"ours, whole stage: {row['documents']} documents, {row['cpu']:.1f} s CPU, {row['documents'] / row['cpu']:.0f}"
        f" docs/s, {row['bytes'] / 1e6 / row['cpu']:.1f} MB/s, peak {row['peak']:.0f} MB; by step: {row['steps']};"
        f" {row['candidates']} candidates, {row['verified']} verified"
    )
    truth = Truth(corpus, row["documents"])
    all_true = truth.pairs(corpus)
    right = sum(truth.similar(a, b) for a, b in edges.tolist())
    connected = np.concatenate([edges, equal_texts(truth.texts)])
    print(
        f"ours: recall {same_cluster(all_true, connected, row['documents']):.4f} of {len(all_true)} pairs at 0.8,"
        f" precision {right / max(1, len(edges)):.4f} of {len(edges)} verified pairs",
        flush=True,
    )
    for name, documents in PEERS.items():
        if not (python := options.text_dedup if name == "text_dedup" else options.peers):
            continue
        command = [python, str(Path(__file__).parent / "data_peers.py"), name, str(corpus), str(documents)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            print(f"{name}: failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
            continue
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        true = {(a, b) for a, b in all_true if b < documents}
        pairs = [tuple(pair) for pair in answer["pairs"]]
        right = sum(truth.similar(*pair) for pair in pairs)
        recall = same_cluster(true, np.array(pairs, np.int64).reshape(-1, 2), documents)
        print(
            f"| {name} | {documents} | {documents / answer['signing']:.0f} docs/s signing |"
            f" {documents / answer['cpu']:.0f} docs/s | {answer['bytes'] / 1e6 / answer['cpu']:.2f} MB/s | recall"
            f" {recall:.3f} of {len(true)} | precision {right / max(1, len(pairs)):.3f} |",
            flush=True,
        )


def _in_process(corpus: Path, root: Path) -> dict[str, Any]:
    """`dedup_run` in a process of its own, for its peak memory."""
    shutil.rmtree(root, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.data", "--folder", str(root), "--dedup-run", str(corpus), str(root)]
    return json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
    )


def _table(rows: dict[str, dict[str, float]]) -> None:
    for name, values in rows.items():
        print(
            f"| {name} | "
            + " | ".join(
                f"{value:.3g} {unit}" if value < 1 else f"{value:,.1f} {unit}" for unit, value in values.items()
            )
            + " |",
            flush=True,
        )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
