"""One peer's near-duplicate detection on a corpus, for `benchmarks.data`. Runs in an environment of its own:
data-peers.txt.

    python benchmarks/data_peers.py NAME FOLDER DOCUMENTS

Every peer gets the same shingles (character 13-grams of SlimPajama's normalization, made by Python, which none of them
can do without) and 128 permutations; LSH as it has it at 0.8. Prints {"cpu", "signing", "pairs"} as JSON.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import contextlib
import itertools
import json
import os
import string
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TABLE = str.maketrans("", "", string.punctuation)


def _used() -> float:
    """Processor seconds of this process and of its children that ended."""
    return sum(os.times()[:4])


def read(folder: Path, documents: int) -> list[str]:
    texts: list[str] = []
    for path in sorted(folder.glob("part-*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(columns=["text"]):
            texts += batch.column(0).to_pylist()
            if len(texts) >= documents:
                return texts[:documents]
    return texts


def grams(text: str) -> list[str]:
    clean = " ".join(text.lower().translate(TABLE).split())
    return list({clean[i : i + 13] for i in range(max(1, len(clean) - 12))})


def datasketch(texts: list[str]) -> tuple[float, list[tuple[int, int]]]:
    import xxhash
    from datasketch import MinHash, MinHashLSH

    started = time.process_time()
    every = MinHash.bulk(([g.encode() for g in grams(t)] for t in texts), num_perm=128, hashfunc=xxhash.xxh32_intdigest)
    signing = time.process_time() - started
    index = MinHashLSH(num_perm=128, params=(18, 7))
    pairs = []
    for number, minhash in enumerate(every):
        pairs += [(other, number) for other in index.query(minhash)]
        index.insert(number, minhash)
    return signing, pairs


def rensa(texts: list[str]) -> tuple[float, list[tuple[int, int]]]:
    from rensa import RMinHash, RMinHashLSH

    started = time.process_time()
    every = []
    for text in texts:
        minhash = RMinHash(num_perm=128, seed=1)
        minhash.update(grams(text))
        every.append(minhash)
    signing = time.process_time() - started
    index = RMinHashLSH(threshold=0.8, num_perm=128, num_bands=16)
    pairs = []
    for number, minhash in enumerate(every):
        pairs += [(other, number) for other in index.query(minhash)]
        index.insert(number, minhash)
    return signing, pairs


def gaoya(texts: list[str]) -> tuple[float, list[tuple[int, int]]]:
    from gaoya.minhash import MinHashStringIndex

    index = MinHashStringIndex(
        hash_size=32,
        jaccard_threshold=0.8,
        num_bands=18,
        band_size=7,
        num_hashes=126,
        analyzer="char",
        ngram_range=(13, 13),
        lowercase=True,
    )
    clean = [" ".join(t.lower().translate(TABLE).split()) for t in texts]
    started = time.process_time()
    for number, text in enumerate(clean):
        index.insert_document(number, text)
    signing = time.process_time() - started
    pairs = [(min(n, o), max(n, o)) for n, text in enumerate(clean) for o in index.query(text) if o != n]
    return signing, pairs


def datatrove(texts: list[str]) -> tuple[float, list[tuple[int, int]]]:
    """Its signature step alone: word 13-grams, 9 x 13 bands, English tokenizer, as in its SlimPajama example."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature

    step = MinhashDedupSignature(
        output_folder="/tmp", config=MinhashConfig(n_grams=13, num_buckets=9, hashes_per_bucket=13)
    )
    started = time.process_time()
    bands: list[dict[bytes, int]] = [{} for _ in range(9)]
    pairs, signed = [], []
    for text in texts:
        shingles = step.get_shingles(text)
        signed.append(step.get_signature(shingles) if len(shingles) else None)
    signing = time.process_time() - started
    for number, signature in enumerate(signed):
        for band, values in zip(bands, signature or [], strict=False):
            other = band.setdefault(repr(values).encode(), number)
            if other != number:
                pairs.append((other, number))
    return signing, pairs


def text_dedup(texts: list[str]) -> tuple[float, list[tuple[int, int]]]:
    """Its whole MinHash deduplication, sets compared too: words by five, 18 x 7, one process. Its words are not those
    of the others, and what it finds are clusters: pairs are of each document and its cluster's first.
    """
    from text_dedup import minhash
    from text_dedup.config import Config

    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({"text": texts}), f"{folder}/texts.parquet")
        settings = f"""
            [input]
            input_type = "local_files"
            [input.read_arguments]
            path = "parquet"
            split = "train"
            data_files = ["{folder}/texts.parquet"]
            cache_dir = "{folder}/cache"
            [algorithm]
            algorithm_name = "minhash"
            text_column = "text"
            num_perm = 128
            bands = 18
            rows = 7
            ngram_size = 5
            threshold = 0.8
            check_false_positive = true
            num_proc = 1
            [output]
            output_dir = "{folder}/out"
            [debug]
            """
        Path(folder, "config.toml").write_text(textwrap.dedent(settings))
        with contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
            config = Config()
            data, _, _ = minhash.load_and_preprocess(config)
            started = _used()
            signed = minhash.fingerprint(config, data)
            signing = _used() - started
            assigned = minhash.assign(config, data, minhash.cluster(config, signed))
            verified, clusters = minhash.check_false_positives(config, assigned)
            kept = minhash.remove_duplicates(config, verified)
            minhash.save_dataset(config, final_data=kept, clusters=clusters)
    return signing, [(first, number) for number, first in clusters.items()]


def warc(file: Path, pages: int) -> dict[str, float]:
    """Processor seconds of datatrove's reader of web archives, alone and with its extractor: the best of three."""
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.readers import WarcReader

    def read() -> int:
        return sum(1 for _ in WarcReader(str(file.parent), glob_pattern=file.name).run())

    few = max(1, pages // 20)

    def extract() -> int:
        reader = WarcReader(str(file.parent), glob_pattern=file.name, limit=few)
        return sum(1 for _ in Trafilatura(favour_precision=True, timeout=10).run(reader.run()))

    seconds = {}
    for name, function in (("datatrove's reader alone", read), ("datatrove's reader and trafilatura", extract)):
        costs = []
        for _ in range(3 if function is read else 1):
            started = _used()
            count = function()
            costs.append(_used() - started)
        print(f"{name}: {count} of {pages} pages", file=sys.stderr)
        seconds[name] = min(costs) * (1 if function is read else pages / few)
    return seconds


if __name__ == "__main__":
    name, folder, documents = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if name == "warc":
        print(json.dumps(warc(folder, documents)))
        sys.exit()
    content = read(folder, documents)
    globals()[name](content[:20])  # what is made once: compiled code, language models
    begin = _used()
    signing, pairs = globals()[name](content)
    cpu = _used() - begin
    size = sum(len(t.encode()) for t in content)
    unique = sorted({(int(a), int(b)) for a, b in pairs if a != b})
    print(
        json.dumps({"cpu": cpu, "signing": signing, "bytes": size, "pairs": list(itertools.islice(unique, 2_000_000))})
    )
