"""The stage `evaluate_external` on made questions: a model folder, a mirror, and a context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.core.artifacts import EvalSuite, Model
from stages.core.testing import LocalContext, local_artifact
from stages.evaluate_external.spec import EvaluateExternalConfig
from stages.lib.formats.suites import DataSet, Suite, split_fingerprints, write_data_set, write_suite

AMC = [{"question": f"What is ${n}+{n + 1}$?", "answer": float(2 * n + 1)} for n in range(4)]
PIQA = [{"goal": f"hold {n + 2} pens", "sol1": "use a cup", "sol2": "use a sieve", "label": n % 2} for n in range(3)]
BLANKS = [
    {"sentence": f"The cup {n} fits the box since the _ is small.", "option1": "cup", "option2": "box", "answer": a}
    for n, a in enumerate("121")
]
DATA: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {
    "math-ai/amc23": {"default": {"test": AMC}},
    "baber/piqa": {"default": {"train": PIQA, "validation": PIQA}},
    "allenai/winogrande": {"winogrande_xl": {"validation": BLANKS}},
}


def mirror(folder: Path, origin: str = "hub") -> Path:
    """The data sets as an EvalSuite holds them."""
    sets = []
    for name, configs in DATA.items():
        tables = {c: {s: pa.Table.from_pylist(rows) for s, rows in splits.items()} for c, splits in configs.items()}
        counts = write_data_set(folder, name, tables)
        sets.append(DataSet(id=name, origin=origin, rows=counts, fingerprint=split_fingerprints(tables)))  # type: ignore[arg-type]
    write_suite(folder, Suite(data_sets=tuple(sets)))
    return folder


def context(root: Path, model: Path, folder: Path, **config: Any) -> LocalContext[EvaluateExternalConfig]:
    """A context of the stage. config: fields of its configuration."""
    inputs = {
        "model": [local_artifact(Model, model)],
        "suites": [local_artifact(EvalSuite, folder)],
    }
    return LocalContext(root, EvaluateExternalConfig.model_validate(config), inputs)
