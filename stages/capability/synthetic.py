"""Benchmarks made of this run's own documents: for a pipeline that has to run where no benchmark can be had."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable

import pyarrow as pa

from stages.capability.benchmarks import SCHEMAS, BenchmarkData
from stages.capability.questions import MMLU_SUBJECTS, OPTIONS, TASKS, Labels, Maker, Row
from stages.capability.spec import CapabilityConfig
from stages.core.context import Context
from stages.core.errors import InputError
from stages.lib.data.documentation_facts import extract_facts as read
from stages.lib.data.licenses import licenses
from stages.lib.formats.corpus import stored_documents

FEW = 25
"""Rows of the split that few-shot examples are drawn from, where it is not the training split: the most that Table 3
asks for.
"""
FEWEST = 8
"""Training questions for each task without which a suite is of no use."""


def gather(ctx: Context[CapabilityConfig], data_sets: Iterable[str]) -> list[BenchmarkData]:
    """Test questions of some documents, all others of the rest. Raises InputError when the documents hold too
    little.
    """
    config = ctx.config
    documents = [document for artifact in ctx.inputs("documents") for document in stored_documents(artifact.entries())]
    test = read(d for d in documents if in_test(d["text"], config.test_share))
    train = read(d for d in documents if not in_test(d["text"], config.test_share))
    labels = Labels.of(train, config.classes)
    if min(len(labels.sections), len(labels.roles), len(labels.kinds)) < OPTIONS:
        raise InputError(
            f"{ctx.node}: {len(documents)} documents have {len(labels.sections)} sections, {len(labels.roles)} Sphinx"
            f" roles and {len(labels.kinds)} types of parameters, a question needs {OPTIONS}: bring documentation, or"
            f" set {ctx.node}.origin to 'hub'"
        )
    license = licenses(d["license"] for d in documents)
    gathered = {id: BenchmarkData(id, license=license) for id in data_sets}
    for number, (id, config_name, make, scored) in enumerate(TASKS):
        ctx.progress(number, len(TASKS), "tasks")
        if id not in gathered:
            continue
        rows = list(itertools.islice(make(Maker(train, labels, config.seed + number)), config.train_questions + FEW))
        test_rows = list(itertools.islice(make(Maker(test, labels, config.seed + 100 + number)), config.test_questions))
        if len(rows) < FEW + FEWEST or not test_rows:
            raise InputError(
                f"{ctx.node}: the documents yield {len(rows)} training and {len(test_rows)} test questions for {id}"
                f" {config_name}, {FEW + FEWEST} and 1 are needed: bring more documentation, or leave it out of"
                f" {ctx.node}.benchmarks"
            )
        few, train_rows = rows[:FEW], rows[FEW:]
        gathered[id].train.extend(train_rows)
        gathered[id].test.extend(test_rows)
        gathered[id].configs.update(
            _configs(id, config_name, {"train": train_rows, "few": few, "scored": test_rows}, scored)
        )
    return list(gathered.values())


def in_test(text: str, share: float) -> bool:
    """Whether test questions are made of a document. By its text, not its id: two copies of a text fall on the same
    side.
    """
    digest = hashlib.sha256(b"capability" + text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _configs(id: str, name: str, rows: dict[str, list[Row]], scored: str) -> dict[str, dict[str, pa.Table]]:
    """The splits that the data set has on the hub and the harness reads."""
    if id == "cais/mmlu":
        return {
            subject: {
                split: _table(id, [r for r in rows[part] if r["subject"] == subject])
                for split, part in (("dev", "few"), ("validation", "few"), ("test", "scored"))
            }
            for subject in MMLU_SUBJECTS
        }
    splits = {"train": rows["train"], "validation": rows["few"]} | {scored: rows["scored"]}
    return {name: {split: _table(id, part) for split, part in splits.items()}}


def _table(id: str, rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMAS[id])
