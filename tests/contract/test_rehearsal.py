"""Every stage of every profile can be rehearsed: bounded work, the same kinds of everything, and no field forgotten."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Literal, cast, get_args

import pytest
from pydantic import BaseModel

from flows import profiles
from flows.rehearsal.derive import Machine, derive
from stages.core.shrinking import LEVELS, Grows, Level, Shrinks
from stages.pipeline import PIPELINE

MACHINES = {
    "gpus": (Machine(cores=64, memory_gib=512, cards=8), False),
    "none": (Machine(cores=2, memory_gib=16, cards=0), False),
    "processors": (Machine(cores=2, memory_gib=16, cards=0), True),
}
AS_THEY_ARE = ("seed", "threads", "batch_size")
"""Of whatever stage: which ones, how fast, how many at one time."""
NO_WORK: dict[str, list[str]] = {
    "one item, not how many": [
        "BenchmarksConfig.largest",
        "BenchmarksConfig.terms",
        "CapabilityConfig.classes",
        "ConversationsConfig.labels",
        "ConversationsConfig.max_characters",
        "ImageDataConfig.grid",
        "ImageDataConfig.rows_per_scene",
        "ImageDataConfig.size",
        "IngestConfig.max_record_bytes",
        "Kind.largest",
        "Kind.parameters",
        "Kind.terms",
        "PreferencesConfig.labels",
        "PreferencesConfig.max_characters",
        "TaskEntry.num_fewshot",
        "TokenizerConfig.max_piece",
        "EvaluateConfig.max_length",
    ],
    "when something is done, or kept, and no work by itself": [
        "TrainingLoopConfig.keep_checkpoints",
        "TrainingLoopConfig.keep_every",
        "SpikePolicy.after",
        "SpikePolicy.before",
        "SpikePolicy.tries",
        "SkipPolicy.skips",
        "SkipPolicy.window",
    ],
    "a limit of one program": [
        "ExecuteCodeConfig.disk_mib",
        "ExecuteCodeConfig.memory_mib",
        "ExecuteCodeConfig.output_kib",
        "ExecuteCodeConfig.processes",
        "ExecuteCodeConfig.seconds",
    ],
    "of a recipe": [
        "ContaminationConfig.common",
        "ContaminationConfig.min_words",
        "ContaminationConfig.run",
        "ContaminationConfig.skips",
        "DedupConfig.bands",
        "DedupConfig.min_characters",
        "DedupConfig.rows",
        "QualityConfig.word_ngrams",
        "TaskEntry.k",
    ],
    "what is done at one time": [
        "GrpoConfig.concurrent_responses",
        "GrpoConfig.max_tokens_per_gpu",
        "TuningConfig.eval_tokens",
    ],
    "of towers whose weights are given": [
        "ImageFeaturesConfig.image_size",
        "TowerShape.heads",
        "TowerShape.hidden",
        "TowerShape.intermediate",
        "TowerShape.layers",
        "TowerShape.patch",
    ],
    "settled by the model's `rehearsed`": [
        "ModelShape.heads",
        "ParallelSizes.data",
        "PretrainConfig.tokens",
        "RawSource.take",
        "SupervisedConfig.max_rows",
    ],
    "bounded otherwise: by the one value that it may have, by the questions": [
        "ParallelSizes.context",
        "EvaluateVlmConfig.pictures",
    ],
}
"""Whole numbers without a rule, by why none is needed. A new field either shrinks or is named here."""


def numbers(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[tuple[str, list[Any]]]:
    """Each field that holds whole numbers, as Model.field of the model that declares it first, with its metadata, of a
    model and of those within.
    """
    if model in seen:
        return
    seen.add(model)
    for name, info in model.model_fields.items():
        declares = [base for base in model.__mro__ if name in inspect.get_annotations(base)][-1]
        annotations: list[Any] = [info.annotation]
        for annotation in annotations:
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                yield from numbers(annotation, seen)
            elif annotation is int:
                yield f"{declares.__name__}.{name}", info.metadata
            if not (isinstance(annotation, type) and annotation is Literal):
                annotations += [one for one in get_args(annotation) if not isinstance(one, str)]


def test_every_count_of_work_says_how_it_shrinks() -> None:
    seen: set[type[BaseModel]] = set()
    without: set[str] = set()
    for node in PIPELINE:
        for name, metadata in numbers(node.config_type, seen):
            ruled = any(isinstance(rule, Shrinks | Grows) for rule in metadata)
            if not ruled and name.rpartition(".")[2] not in AS_THEY_ARE:
                without.add(name)
    named = {name for names in NO_WORK.values() for name in names}
    new = without - named
    assert not new, f"{', '.join(sorted(new))}: say beside it how it shrinks (Shrinks), or in NO_WORK why it need not"
    assert not named - without, f"named, and not there or bounded now: {sorted(named - without)}"


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text within a configuration, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in cast("dict[str, Any]", value).items():
            yield from texts(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(cast("list[Any]", value)):
            yield from texts(inner, f"{path}.{number}")


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", profiles.names())
def test_the_rehearsal_of_every_profile_is_small_and_of_the_same_kind(name: str, level: Level, machine: str) -> None:
    profile = profiles.load(name, PIPELINE)
    rehearsal = derive(profile, PIPELINE, level, *MACHINES[machine])
    for node in PIPELINE:
        before, after = profile.configs[node.name], rehearsal.profile.configs[node.name]
        texts_of = [set(texts(config.model_dump(mode="json"))) for config in (before, after)]
        changed = {path for path, _ in texts_of[0] ^ texts_of[1]}
        assert changed <= {".device", ".precision"}, f"{node.name}: {changed}"
        if changed:
            assert rehearsal.stand_ins[node.name]
        assert node.processes(after) is node.processes(before)
        _bounded(node.name, after, level)
        _scored_as_before(node.name, before, after)
        if node.name not in rehearsal.out_of_reach:
            node.check_resources(node.name, after, rehearsal.profile.resources[node.name])
    assert rehearsal.profile.launchers == profile.launchers
    assert not (rehearsal.out_of_reach and machine == "gpus")


def _bounded(node: str, config: Any, level: Level) -> None:
    """That the work of a node is small, by sums of its own."""
    wiring = level == "wiring"
    if hasattr(config, "steps"):
        assert 1 <= config.steps <= (5 if wiring else 12)
        assert config.checkpoint_every < max(2, config.steps)
        assert not wiring or config.shape.parameters(32_000) < 5_000_000
    if hasattr(config, "context_phases"):
        assert sum(phase.steps for phase in config.context_phases) <= 3 * len(config.context_phases)
        assert not wiring or config.longest <= 544
    if hasattr(config, "max_rows"):
        assert config.epochs * config.max_rows / config.global_batch_size <= (5 if wiring else 12)
    for source in getattr(config, "sources", ()):
        assert getattr(source, "cap", 1) <= 400
        assert getattr(source, "first", 1) <= 400
        assert getattr(source, "every", 1000) >= 1000
    for suite in getattr(config, "suites", ()):
        assert all(task.repeats <= max((2, *task.k)) for task in suite.tasks), node
        for task in suite.tasks:
            batch = 0 if wiring or task.max_new_tokens is None else config.batch_size
            assert task.limit <= max(4, batch), node
    if hasattr(config, "limit"):
        assert config.limit <= 2000
    if hasattr(config, "max_tokens") and hasattr(config, "sequence_length"):
        assert config.max_tokens <= 2_000_000


def _scored_as_before(node: str, before: Any, after: Any) -> None:
    """That each pass@k of a suite, which its table may print, is still made, and of enough answers."""
    for old, new in zip(getattr(before, "suites", ()), getattr(after, "suites", ()), strict=True):
        assert [task.k for task in new.tasks] == [task.k for task in old.tasks], node
        assert all(task.repeats >= max(task.k, default=1) for task in new.tasks), node
