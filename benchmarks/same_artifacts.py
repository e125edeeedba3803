"""Whether two commits make the same artifacts: nodes run in two trees, each on the inputs that the first one made.

    git worktree add /tmp/before 9210073 && git worktree add /tmp/after HEAD
    python benchmarks/same_artifacts.py /tmp/before /tmp/after collect ingest_text dedup_text --work /tmp/compared

A node whose stage became different does not make those after it differ: their inputs are the first tree's in both. No
store, no Prefect, no launcher: a stage's `run` in a `LocalContext`. Written against what old trees have, too.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, by its path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_node(node: Any, config: Any, inputs: Path, out: Path) -> dict[str, Any]:
    """Run a node's stage on what `inputs` has of its parents. Returns revision, fields of the key, and ports."""
    from stages.core.testing import LocalContext, local_artifact

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    given: dict[str, list[Any]] = {}
    for port, outputs in node.wires.items():
        for output in outputs:
            parent = output.node if isinstance(output.node, str) else output.node.name
            about = json.loads((inputs / f"{parent}.json").read_text())["ports"][output.port]
            folder = inputs / parent / "out" / output.port
            given.setdefault(port, []).append(local_artifact(output.type, folder, about["facets"], about["meta"]))
    ctx: Any = LocalContext(out, config, given, node=node.name)
    importlib.import_module(f"stages.{node.stage}.run").run(ctx)
    ports = {
        name: {
            "facets": ctx.facets.get(name, {}),
            "meta": ctx.meta.get(name, {}),
            "files": digests(out / "out" / name),
        }
        for name, port in node.ports.items()
        if port.direction == "output"
    }
    return {"revision": node.revision, "fields": config.identity(), "ports": ports}


def run_nodes(arguments: argparse.Namespace, inputs: Path, out: Path) -> None:
    """Run nodes with the modules of the folder that this process is in."""
    sys.path.insert(0, os.getcwd())
    from flows import profiles
    from stages.pipeline import PIPELINE

    configs = profiles.load(arguments.profile, PIPELINE, arguments.set).configs
    for name in arguments.nodes:
        config = configs[name]
        unset = [each.partition(".")[2] for each in arguments.unset if each.startswith(f"{name}.")]
        fields = {field: type(config)().model_dump()[field] for field in unset if hasattr(config, field)}
        row = run_node(PIPELINE[name], config.model_copy(update=fields), inputs, out / name)
        (out / f"{name}.json").write_text(json.dumps(row, default=str))
        print(f"{out.name}: {name}", file=sys.stderr)


def differences(name: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    """A row of the table: what differs between two runs of a node."""
    fields = [
        field
        for field in sorted(before["fields"].keys() | after["fields"].keys())
        if before["fields"].get(field, "absent") != after["fields"].get(field, "absent")
    ]
    revisions = f"{before['revision']}, {after['revision']}"
    cells = []
    for port, old in before["ports"].items():
        files, others = old["files"], after["ports"][port]["files"]
        unlike = sorted(path for path in files.keys() | others.keys() if files.get(path) != others.get(path))
        whole = len(files.keys() | others.keys())
        same = f"all {whole}" if not unlike else f"{whole - len(unlike)} of {whole}, not {', '.join(unlike[:3])}"
        cells.append(
            f"`{port}`: {same}" + ("" if old["facets"] == after["ports"][port]["facets"] else ", facets differ")
        )
    return f"| `{name}` | {revisions} | {', '.join(fields) or 'none'} | {'; '.join(cells)} |"


def main() -> None:
    """Run the nodes in both trees, each in a process of its own, and print what differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("nodes", nargs="+", help="in the order of the DAG, with all that they read")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--set", action="append", default=[], help="node.field=value, in both")
    parser.add_argument("--unset", action="append", default=[], help="node.field: its default, where a tree has it")
    parser.add_argument("--side", choices=("before", "after"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    if arguments.side:
        run_nodes(arguments, work / "before", work / arguments.side)
        return
    for side, tree in (("before", arguments.before), ("after", arguments.after)):
        (work / side).mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        environment["NUMBA_CACHE_DIR"] = str(work / "kernels")
        command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--side", side, "--work", str(work)]
        subprocess.run(command, cwd=tree, env=environment, check=True)
    print("| node | revisions | fields of the key that differ | files with the same bytes |\n| --- | --- | --- | --- |")
    for name in arguments.nodes:
        both = (json.loads((work / side / f"{name}.json").read_text()) for side in ("before", "after"))
        print(differences(name, *both))


if __name__ == "__main__":
    main()
