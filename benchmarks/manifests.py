"""What an artifact of very many files costs a plan, a request and the start of a stage.

    python -m benchmarks.manifests [--files 100000]

Needs `moxin up` (or a store of your own, as for any command). Files are listed, none is stored: a deep look for them is
the listing of as many objects and is not measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import time
from collections.abc import Callable
from typing import Any

from flows.cli.common import open_ledger
from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.index import write_index
from stages.core.keys import artifact_digest
from stages.core.ledger import Ledger
from stages.core.messages import Attempt, CodeRef, InputRef, StageResult

PREFIX = "objects/benchmark-manifests"


def listing(count: int) -> list[FileEntry]:
    """Entries as tasks leave them: parts of 200 MB with the sums of their blocks and their row groups."""
    detail = json.dumps({"groups": [[8000, 16 << 20]] * 32}, separators=(",", ":"))
    return [
        FileEntry(
            path=f"part-{n:06d}.parquet", size=200_000_000, sha256=hashlib.sha256(str(n).encode()).hexdigest(),
            object=f"work/dedup/{'0' * 64}/keep.files/{n:06d}.01234567/part-00000.parquet", blocks="01234567" * 12,
            detail=detail,
        )
        for n in range(count)
    ]  # fmt: skip


def timed(what: str, act: Callable[[], Any]) -> Any:
    """Do it; print wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = act()
    print(f"| {what} | {time.perf_counter() - wall:.2f} | {time.process_time() - cpu:.2f} |")
    return value


def measure(ledger: Ledger, count: int) -> None:
    """Print a table."""
    files = listing(count)
    print("| what | seconds | CPU seconds |\n| --- | ---: | ---: |")
    root = timed(f"write the index of {count:,} files", lambda: write_index(ledger.store, PREFIX, files))
    digest = artifact_digest("Documents", {}, index=root.digest)
    manifest = ArtifactManifest(type="Documents", digest=digest, facets={}, index=root)
    inputs = tuple(
        InputRef(node=f"source_{n}", key="1" * 64, port="documents", manifest=manifest.reference()) for n in range(2)
    )
    attempt = Attempt(
        run_id="r", epoch=1, started_at="", ended_at="", wall_seconds=1, cpu_seconds=1, peak_rss_bytes=1, bytes_in=0,
        bytes_out=0, resumed_from=None,
    )  # fmt: skip
    result = StageResult(
        key="0" * 64, node="b", stage="dedup", revision=1, config={}, identity={}, inputs={"sources": inputs},
        outputs={"documents": manifest}, code=CodeRef(source_digest="s"), attempt=attempt, metrics_object=None,
    )  # fmt: skip
    body = result.model_dump_json()
    timed("a plan looks for what the manifest names", lambda: ledger.missing_objects(result))
    timed("a manifest with two such inputs is parsed", lambda: StageResult.model_validate_json(body))
    entries = timed("a stage lists the files of such an input", lambda: ledger.input_entries(inputs[0]))
    assert entries == files
    refs = json.dumps([ref.model_dump(mode="json") for ref in inputs])
    print(f"\nManifest {len(body):,} bytes; of a request, both inputs: {len(refs):,} bytes.")
    print(f"Index: {root.pages} pages; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB.")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=100_000)
    options = parser.parse_args()
    with open_ledger() as ledger:
        try:
            measure(ledger, options.files)
        finally:
            ledger.store.delete(row.key for row in ledger.store.list(f"{PREFIX}/"))


if __name__ == "__main__":
    main()
