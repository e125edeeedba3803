"""The data stages on two Ray nodes, one of them killed in the middle: the same bytes as in one process.

    python -m benchmarks.ray_nodes [--documents 40000]     # the same in little, with two nodes and in CI: tests/fault/test_ray_nodes.py

Starts two raylets on this machine as separate processes (two "nodes" of one core), runs `dedup` with `workers = "ray"`, kills the
second node's processes once a first shard is done, and compares the output with that of one process.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from stages.core.artifacts import Documents
from stages.core.testing import LocalContext, local_artifact
from stages.dedup.run import run
from stages.dedup.spec import DedupConfig
from stages.formats.documents import write_documents

PORT = 26379


def corpus(folder: Path, documents: int, parts: int = 12) -> list[Path]:
    """Random texts, a quarter of them near copies, in so many artifacts (each is a shard)."""
    rng = random.Random(1)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20_000)]
    found: list[Path] = []
    texts: list[str] = []
    for part in range(parts):
        rows = []
        for _ in range(documents // parts):
            words = rng.choices(vocabulary, k=200)
            if texts and rng.random() < 0.25:
                words = rng.choice(texts).split(" ")
                place = rng.randrange(180)
                words[place : place + 5] = rng.choices(vocabulary, k=5)
            rows.append(" ".join(words))
        texts = rows
        found.append(folder / f"in-{part:02d}")
        found[-1].mkdir(parents=True)
        write_documents(found[-1], ({"id": f"{part}-{n}", "text": t, "source": "s"} for n, t in enumerate(rows)))
    return found


def digests(folder: Path) -> dict[str, str]:
    """Of the output's files."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def deduplicate(root: Path, sources: list[Path], workers: int | str) -> dict[str, str]:
    """Run the stage; digests of its output."""
    config = DedupConfig.model_validate({"recipe": "dclm", "workers": workers})
    ctx = LocalContext(root, config, {"sources": [local_artifact(Documents, path) for path in sources]})
    started = time.monotonic()
    run(ctx)
    print(f"workers = {workers}: {time.monotonic() - started:.1f} s, {ctx.stats['documents']} of {ctx.stats['funnel']['in']['documents']} documents left", flush=True)
    return digests(ctx.output("documents"))


def start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """One node, in the foreground of a process group of its own."""
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1", "--disable-usage-stats", *arguments]
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_after_first(work: Path, node: subprocess.Popen[bytes]) -> None:
    """Kill a node, with all that it started, once two shards are signed."""
    while len(list(work.glob("sign/*/receipt.json"))) < 2:
        time.sleep(0.01)
    os.killpg(node.pid, 9)
    print(f"killed the second node with {len(list(work.glob('sign/*/receipt.json')))} shards signed", flush=True)


def main() -> None:
    """Run it both ways and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=40_000)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="ray-nodes-"))
    sources = corpus(root, options.documents)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    nodes = [start(["--head", f"--port={PORT}", "--include-dashboard=false", "--object-store-memory=100000000"], environment)]
    try:
        time.sleep(20)
        nodes.append(start([f"--address=127.0.0.1:{PORT}", "--object-store-memory=100000000"], environment))
        os.environ["RAY_ADDRESS"] = f"127.0.0.1:{PORT}"
        import ray  # type: ignore[import-not-found]

        ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
        while len([n for n in ray.nodes() if n["Alive"]]) < 2:
            time.sleep(0.5)
        print(f"{len(ray.nodes())} nodes, {ray.cluster_resources().get('CPU')} cores", flush=True)
        watcher = threading.Thread(target=kill_after_first, args=(root / "ray" / "scratch", nodes[1]), daemon=True)
        watcher.start()
        two = deduplicate(root / "ray", sources, "ray")
        one = deduplicate(root / "one", sources, 1)
        watcher.join(1)
        alive = len([n for n in ray.nodes() if n["Alive"]])
        print(f"{alive} node alive at the end; {len(one)} output files; equal: {one == two}")
        ray.shutdown()
        if one != two or watcher.is_alive():
            sys.exit("the results differ, or no node was killed")
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, 9)


if __name__ == "__main__":
    main()
