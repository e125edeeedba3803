"""datatrove's NGramsDecontFilter on a corpus, for `benchmarks.contamination`. Runs in an environment of its own.

python benchmarks/contamination_peer.py FOLDER ITEMS DOCUMENTS

ITEMS: a JSON list of texts, indexed by the filter's own normalisation, tokenizer and hash (13-grams). Prints
{"version", "speed"}: MB/s of one core, without reading.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq


def main(folder: Path, items: Path, documents: int) -> None:
    """Index, filter, print."""
    from datatrove.data import Document
    from datatrove.pipeline.decont import NGramsDecontConfig, NGramsDecontFilter
    from datatrove.utils.text import ngrams, simplify_text

    config = NGramsDecontConfig(n_grams=13)
    index = Path(tempfile.mkdtemp())
    machine = NGramsDecontFilter(str(index), config=config)
    hashes = set()
    for text in json.loads(items.read_text(encoding="utf-8")):
        tokens = machine.tokenizer.word_tokenize(simplify_text(text, config.norm_config))
        hashes.update(machine.hash_func(" ".join(gram)) for gram in ngrams(tokens, 13))
    np.array(sorted(hashes), dtype=config.hash_config.np_descr).tofile(index / "items.index.hashes")
    texts: list[str] = []
    for path in sorted(folder.glob("part-*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(columns=["text"]):
            texts += batch.column(0).to_pylist()
    chosen = [Document(text=text, id=str(n)) for n, text in enumerate(texts[:documents])]
    machine.filter(chosen[0])  # loads the index
    started = time.process_time()
    for document in chosen:
        machine.filter(document)
    seconds = time.process_time() - started
    size = sum(len(document.text.encode()) for document in chosen)
    print(json.dumps({"version": version("datatrove"), "speed": size / 1e6 / seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
