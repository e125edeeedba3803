"""Classes of the Model Openness Framework: the facts of the framework's own tool, at the revision that is named in
infra/openness.toml.
"""

from __future__ import annotations

from typing import Any

import pytest

from flows.release import mof_classes
from stages.core.errors import InputError

NAMES = [component.name for component in mof_classes.facts().component]
REQUIRED = {c.name: c.level for c in mof_classes.facts().component if c.required}


def of(*without: str, licenses: dict[str, str] | None = None, **shared: str) -> dict[str, Any]:
    """A mof.yml with all components but some; licenses: by component, else MIT."""
    rows = []
    for name in NAMES:
        if name not in without:
            license = (licenses or {}).get(name, None if shared else "MIT")
            rows.append({"name": name, "component_path": "x"} | ({"license": license} if license is not None else {}))
    return {
        "framework": dict(mof_classes.facts().framework),
        "release": {
            "name": "m",
            "license": {kind: {"name": name} for kind, name in shared.items()},
            "components": rows,
        },
    }


def test_the_components_are_the_frameworks() -> None:
    """17 components; 6, 4 and 4 that the classes ask for, 3 that are optional."""
    assert len(set(NAMES)) == 17
    assert sorted(REQUIRED.values()) == [1] * 4 + [2] * 4 + [3] * 6
    assert {c.name: c.level for c in mof_classes.facts().component if not c.required} == {
        "Sample model outputs": 3,
        "Supporting libraries and tools": 2,
        "Model metadata": 1,
    }
    assert {c.kind for c in mof_classes.facts().component} == {"code", "data", "document"}


@pytest.mark.parametrize(
    ("without", "level"),
    [
        ((), 1),
        (("Technical report",), 1),  # the paper stands in
        (("Research paper",), 2),
        (("Research paper", "Technical report"), 0),
        (("Datasets",), 2),
        (("Model parameters (Intermediate)", "Data preprocessing code"), 2),
        (("Evaluation data",), 3),
        (("Inference code", "Datasets"), 3),
        (("Model card",), 0),
        (("Model card", "Datasets"), 0),
        (("Sample model outputs", "Supporting libraries and tools", "Model metadata"), 1),
    ],
)
def test_a_class_is_reached_when_all_below_it_is_there(without: tuple[str, ...], level: int) -> None:
    openness = mof_classes.classify(of(*without))
    assert openness.level == level
    assert set(openness.missing) <= set(without)
    assert bool(openness.missing) == (level != 1)


def test_what_is_missing_is_of_the_next_class_alone() -> None:
    openness = mof_classes.classify(of("Datasets", "Evaluation data", licenses={"Training code": "LicenseRef-mine"}))
    assert openness.title == "Class III: open model"
    assert openness.missing == {
        "Evaluation data": "not there",
        "Training code": "there, under LicenseRef-mine, which is no open licence",
    }
    assert openness.lacking[1] == {"Datasets": "not there"}


def test_licences_by_kind_and_for_all() -> None:
    assert mof_classes.classify(of(distribution="Apache-2.0")).level == 1
    assert mof_classes.classify(of(code="MIT", data="CC-BY-4.0", document="CC-BY-4.0")).level == 1
    only_code = mof_classes.classify(of(code="MIT"))
    assert only_code.level == 0
    assert only_code.missing["Model card"] == "there, under no licence"
    assert mof_classes.classify(of(distribution="MIT", licenses={"Datasets": mof_classes.UNLICENSED})).level == 2


@pytest.mark.parametrize(
    ("expression", "is_open"),
    [
        ("MIT", True),
        ("apache-2.0", True),
        ("ODC-By-1.0", True),
        ("CC-BY-SA-4.0", True),
        ("CC-BY-NC-4.0", False),
        ("LicenseRef-mine", False),
        ("MIT OR CC-BY-NC-4.0", True),
        ("MIT AND CC-BY-NC-4.0", False),
        ("(MIT OR CC-BY-NC-4.0) AND CC0-1.0", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", True),
        ("OpenMDW-1.0", True),
        ("NOASSERTION", False),
        ("all rights reserved", False),
        ("MIT AND", False),
        ("", False),
    ],
)
def test_open_by_spdx(expression: str, is_open: bool) -> None:
    assert mof_classes.is_open(expression) is is_open


def test_licences_as_the_hub_spells_them() -> None:
    assert [
        mof_classes.spdx(name) for name in ("odc-by", "apache-2.0", "cc-by-sa-3.0", "other", "unknown", "llama3")
    ] == [
        "ODC-By-1.0",
        "Apache-2.0",
        "CC-BY-SA-3.0",
        "",
        "",
        "",
    ]


@pytest.mark.parametrize("value", [{}, {"release": {}}, {"release": {"components": [1]}}, {"release": None}])
def test_what_is_no_mof_yml(value: Any) -> None:
    with pytest.raises(InputError, match=r"mof\.yml is not of the Model Openness Framework"):
        mof_classes.classify(value)
