"""Run `evaluate_external`: give the harness its data and a command line, read what it wrote, report it.

Before it starts, its version is asked of its own Python, so that a wrong one is told before the first question.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors import safe_open

from stages.core.context import Context
from stages.core.errors import ConfigError, InputError
from stages.core.interpreters import variable
from stages.evaluate_external import scores
from stages.evaluate_external.spec import EvaluateExternalConfig
from stages.lib.engines import process
from stages.lib.evaluation.harnesses import olmes, opencompass, outcomes, qwen25_math
from stages.lib.evaluation.harnesses.outcomes import DataNeed, Place
from stages.lib.evaluation.statistics import aggregates
from stages.lib.evaluation.suite_file import Suite
from stages.lib.formats.reports import EvaluatedModel, Harness, Report, write_report
from stages.lib.formats.suites import DataSet, read_suite

ADAPTERS: Mapping[str, Any] = {each.NAME: each for each in (olmes, qwen25_math, opencompass)}
ASK = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
ASK_SECONDS = 600.0
"""Against a hang alone."""


def run(ctx: Context[EvaluateExternalConfig]) -> None:
    """Write `report`."""
    suite = ctx.config.suite
    adapter = ADAPTERS[suite.harness]
    python = interpreter(ctx.node, suite.harness)
    version = installed(adapter, python, Path(ctx.scratch))
    if suite.harness_version not in (None, version):
        raise ConfigError(
            f"{ctx.node}.suite = '{suite.name}' is of {suite.harness} {suite.harness_version},"
            f" {variable(adapter.NAME)} has {version}: install that version, or change the suite's harness_version"
        )
    mirrors = [(Path(each.path), read_suite(Path(each.path))) for each in ctx.inputs("suites")]
    needs = {entry.task: needed(adapter, suite, entry.task) for entry in suite.tasks}
    data = {task: find(mirrors, need) for task, need in needs.items() if need}
    missing = [task for task, need in needs.items() if need is None or data[task] is None]
    if missing:
        need = needs[missing[0]]
        asked = f"data set {need.ids[0]}" if need else "a data set that this stage does not know how to write"
        names = ", ".join(sorted(d.id for _, listing in mirrors for d in listing.data_sets)) or "nothing"
        raise InputError(f"{ctx.node}: task {missing[0]} of {suite.name} needs {asked}; the suites hold {names}")
    place = _place(ctx, python, mirrors)
    sources = {task: source for task, source in data.items() if source}
    adapter.prepare(suite, _rows(adapter, sources, needs), place)
    environment = process.environment(Path(ctx.scratch), **adapter.environment(place))
    commands = adapter.commands(suite, place)
    for number, (name, words) in enumerate(commands.items()):
        ctx.progress(number, len(commands), "runs")
        ctx.log(f"{suite.harness} {version}: {name}")
        process.run(ctx, suite.harness, words, env=environment, on_line=lambda line: None)
    outcomes.write_version(place.output, suite.harness, version)
    _report(ctx, adapter, version, adapter.read(place.output, suite), sources, needs)


def interpreter(node: str, harness: str) -> str:
    """The harness's own Python. Raises ConfigError, with how to get it, where there is none."""
    name = variable(harness)
    path = os.environ.get(name, "")
    if not os.access(path, os.X_OK):
        state = f"{name} = '{path}' is not an executable file" if path else f"{name} is not set"
        raise ConfigError(
            f"{node}.suite: {harness} is not installed where this runs ({state}): install it as"
            f" containers/{harness}/README.md says, and name its Python there"
        )
    return path


def installed(adapter: Any, python: str, scratch: Path) -> str:
    """The version that a Python has. Raises ConfigError where it has none."""
    record = scratch / "version.json"
    if adapter is qwen25_math:
        words = [python, str(qwen25_math.PROGRAM), str(record), "--files"]
    else:
        words = [python, "-c", ASK, adapter.PACKAGE]
    env = process.environment(scratch)
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env, timeout=ASK_SECONDS)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise ConfigError(
            f"{variable(adapter.NAME)} has no {adapter.NAME} ({said[0][:200]}): see containers/{adapter.NAME}"
        )
    if adapter is not qwen25_math:
        return done.stdout.strip()
    files = outcomes.read_json(record)["files_sha256"]
    return qwen25_math.COMMIT if files == qwen25_math.FILES_SHA256 else f"files {files[:12]}"


def needed(adapter: Any, suite: Suite, task: str) -> DataNeed | None:
    """The data set that a task reads; None where the adapter does not know."""
    entry = next(e for e in suite.tasks if e.task == task)
    name = {olmes: lambda: olmes.data_name(task), opencompass: lambda: opencompass.data_name(entry)}.get(
        adapter, lambda: task
    )()
    return adapter.DATA.get(name)


def find(mirrors: list[tuple[Path, Any]], need: DataNeed) -> tuple[Path, DataSet] | None:
    """The first mirror that has a data set, under any of its names."""
    for folder, listing in mirrors:
        for name in need.ids:
            if data_set := listing.find(name):
                return folder / name, data_set
    return None


def _place(ctx: Context[EvaluateExternalConfig], python: str, mirrors: list[tuple[Path, Any]]) -> Place:
    """Folders with plain names: harnesses read '=' and ',' in a path as settings, and name results after the model."""
    scratch, config = Path(ctx.scratch), ctx.config
    for name in ("data", "output", "mirror"):
        shutil.rmtree(scratch / name, ignore_errors=True)
        (scratch / name).mkdir(parents=True)
    model = scratch / "model"
    model.unlink(missing_ok=True)
    model.symlink_to(Path(ctx.input("model").path).resolve(), target_is_directory=True)
    for folder, listing in mirrors:
        for data_set in listing.data_sets:
            link = scratch / "mirror" / data_set.id
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to((folder / data_set.id).resolve(), target_is_directory=True)
    return Place(
        python=python,
        model=model,
        mirror=scratch / "mirror",
        data=scratch / "data",
        output=scratch / "output",
        gpus=config.gpus,
        batch_size=config.batch_size,
        max_length=config.max_length,
        vllm=config.vllm,
        seed=config.seed,
    )


def _rows(adapter: Any, sources: Mapping[str, tuple[Path, DataSet]], needs: Mapping[str, DataNeed | None]) -> Any:
    """What the adapter writes for its harness: rows of the scored split, for OpenCompass by split."""
    if adapter is olmes:
        return {}
    out: dict[str, Any] = {}
    for task, (folder, data_set) in sources.items():
        need = needs[task]
        assert need is not None
        splits = [need.split, *(["train"] if need.train else [])]
        tables = {split: _split(folder, data_set, need, split) for split in splits}
        out[task] = tables if adapter is opencompass else tables[need.split]
    return out


def _split(folder: Path, data_set: DataSet, need: DataNeed, split: str) -> list[dict[str, Any]]:
    """Rows of one split. Raises InputError where it, or a column, is not there."""
    config = data_set.config_name(need.config)
    if config is None or split not in data_set.rows[config]:
        raise InputError(f"data set {data_set.id} has no split {split} of configuration {need.config or 'default'}")
    table = pq.read_table(folder / config / f"{split}.parquet")
    if lacking := sorted(set(need.required) - set(table.column_names)):
        raise InputError(f"data set {data_set.id}, split {split}, has no column {', '.join(lacking)}")
    return table.to_pylist()


def _report(
    ctx: Context[EvaluateExternalConfig],
    adapter: Any,
    version: str,
    said: Mapping[str, outcomes.Outcome],
    sources: Mapping[str, tuple[Path, DataSet]],
    needs: Mapping[str, DataNeed | None],
) -> None:
    suite, artifact, folder = ctx.config.suite, ctx.input("model"), Path(ctx.output("report"))
    trained_on = tuple(artifact.meta.get("benchmarks", ()))
    data = {
        task: scores.held(data_set, need.config, need.split)
        for task, (_, data_set) in sources.items()
        if (need := needs[task])
    }
    results = list(scores.rows(suite, said, data, trained_on))
    report = Report(
        model=EvaluatedModel(
            node=artifact.node,
            digest=artifact.manifest.digest,
            parameters=parameters(Path(artifact.path)),
            dtype="float16" if adapter is qwen25_math and not ctx.config.vllm else stored_dtype(Path(artifact.path)),
            trained_on=trained_on,
        ),
        harness=Harness(name=suite.harness, version=version),
        seed=ctx.config.seed,
        results=tuple(results),
        aggregates=aggregates([suite.name], results),
    )
    write_report(folder, report)
    (folder / "samples").mkdir(exist_ok=True)
    for task, outcome in said.items():
        name = task.replace(":", "_").replace("/", "_")
        with open(folder / "samples" / f"{suite.name}.{name}.jsonl", "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in outcome.samples)
    ctx.stat(**{f"{s.suite}/{s.name}": round(s.value, 4) for s in results if s.headline})
    ctx.stat(**{f"{suite.name} average": round(report.aggregates[0].value, 4)})
    ctx.stat(comparable_to_paper=all(s.comparable_to_paper for s in results))
    ctx.describe("report", meta={"tasks": len(said)})


def parameters(folder: Path) -> int:
    """Numbers in the weights of a model folder."""
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as weights:
            for name in weights.keys():  # noqa: SIM118 - no mapping
                size = 1
                for side in weights.get_slice(name).get_shape():
                    size *= side
                count += size
    return count


def stored_dtype(folder: Path) -> str:
    """The weights' dtype, as their configuration says."""
    config = outcomes.read_json(folder / "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "unknown")
