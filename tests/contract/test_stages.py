"""What every stage keeps, whoever adds it: one light spec, a `run`, described fields, a README that names its ports."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from stages.core.stage import Facets, Stage
from stages.pipeline import PIPELINE
from tests.support.paths import ROOT

STAGES = sorted(path.parent.name for path in (ROOT / "stages").glob("*/spec.py"))
NODES = {stage: [node.name for node in PIPELINE if node.stage == stage] for stage in STAGES}

#: What a spec may bring in besides the standard library: pydantic and what it needs itself.
LIGHT = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection", "stages"}
CORE = {"pydantic", "boto3", "botocore", "stages"}


def stage_class(stage: str) -> type[Stage[Any]]:
    """The stage class of a spec. Fails unless there is exactly one."""
    module = importlib.import_module(f"stages.{stage}.spec")
    found = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Stage) and v.__module__ == module.__name__
    ]
    assert len(found) == 1, f"stages/{stage}/spec.py defines {len(found)} stages, not one"
    return found[0]


def readme(stage: str) -> str:
    return (ROOT / "stages" / stage / "README.md").read_text(encoding="utf-8")


def models_in(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and every model that its fields hold."""
    yield model
    for info in model.model_fields.values():
        hints = [info.annotation]
        while hints:
            hint = hints.pop()
            hints.extend(get_args(hint))
            if isinstance(hint, type) and issubclass(hint, BaseModel) and hint is not model:
                yield from models_in(hint)


def test_every_stage_is_found() -> None:
    assert set(STAGES) >= {node.stage for node in PIPELINE}


# --- spec.py ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_spec_defines_one_stage_that_says_what_it_does(stage: str) -> None:
    cls = stage_class(stage)
    assert cls.stage == stage
    assert cls.revision >= 1
    assert (cls.__doc__ or "").strip().splitlines()[0].endswith(".")
    assert any(port.direction == "output" for port in cls.ports.values())


def test_specs_and_the_pipeline_import_nothing_heavy() -> None:
    """In a process of its own, so that nothing is there already."""
    names = [*(f"stages.{stage}.spec" for stage in STAGES), "stages.pipeline"]
    code = (
        "import importlib, json, sys\n"
        "brought = {}\n"
        f"for name in {names!r}:\n"
        "    before = set(sys.modules)\n"
        "    importlib.import_module(name)\n"
        "    brought[name] = sorted({module.partition('.')[0] for module in set(sys.modules) - before})\n"
        "print(json.dumps(brought))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name, modules in json.loads(out).items():
        heavy = {m for m in modules if m not in LIGHT and m not in sys.stdlib_module_names and not m.startswith("_")}
        assert not heavy, f"{name} imports {', '.join(sorted(heavy))}: import it in run.py instead"


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_is_described_and_nothing_unknown_is_taken(stage: str) -> None:
    for model in models_in(stage_class(stage).config_type):
        assert model.model_config.get("extra") == "forbid", f"{model.__name__} takes unknown keys"
        assert model.model_config.get("frozen"), f"{model.__name__} can be changed"
        for name, info in model.model_fields.items():
            assert info.description, f"{model.__name__}.{name} of stage {stage} has no description"


@pytest.mark.parametrize("stage", STAGES)
def test_the_defaults_are_a_valid_configuration(stage: str) -> None:
    config_type = stage_class(stage).config_type
    config = config_type()
    assert config_type.model_validate(config.model_dump(mode="json")) == config
    assert set(config.identity()) <= set(config_type.model_fields)
    assert stage_class(stage).resources(config).cpus > 0


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("known", [False, True])
def test_predicted_facets_are_those_of_the_type(stage: str, known: bool) -> None:
    cls = stage_class(stage)
    numbers = {"vocab_size", "sequence_length", "context_length"}

    def facets_of(names: frozenset[str]) -> Mapping[str, str | int]:
        return {name: 300 if name in numbers else f"some {name}" for name in names} if known else {}

    inputs: dict[str, Sequence[Facets]] = {
        port.name: [facets_of(port.type.facets)] * (2 if port.many else 1)
        for port in cls.ports.values()
        if port.direction == "input"
    }
    for port, facets in cls.facets(cls.config_type(), inputs).items():
        assert cls.ports[port].direction == "output"
        assert set(facets) <= cls.ports[port].type.facets, (
            f"{stage}.{port} is no {sorted(set(facets) - cls.ports[port].type.facets)}"
        )


# --- run.py, README.md ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_run_takes_the_context_and_nothing_else(stage: str) -> None:
    tree = ast.parse((ROOT / "stages" / stage / "run.py").read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    assert len(found) == 1, f"stages/{stage}/run.py has no function 'run'"
    (argument,) = found[0].args.args
    assert argument.arg == "ctx"
    assert (
        ast.unparse(argument.annotation or ast.Constant(None)) == f"Context[{stage_class(stage).config_type.__name__}]"
    )
    assert ast.unparse(found[0].returns or ast.Constant(0)) == "None"


@pytest.mark.parametrize("stage", STAGES)
def test_a_readme_documents_every_port_with_its_type(stage: str) -> None:
    text = readme(stage)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for port in stage_class(stage).ports.values():
        named = [row for row in rows if f"`{port.name}`" in row.split("|")[1]]
        assert any(port.type.__name__ in row for row in named), (
            f"stages/{stage}/README.md does not document the port {port.name}"
        )


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_readme_says_to_run_can_be_selected(stage: str) -> None:
    selections = re.findall(r"moxin run [^\n]*--select ([\w+,]+)", readme(stage))
    assert selections, f"stages/{stage}/README.md does not say how to run it"
    if not NODES[stage]:
        pytest.skip("no node of it is wired yet")
    for selection in selections:
        assert {node.stage for node in PIPELINE.select(selection)} & {stage}


@pytest.mark.parametrize("path", ["README.md", *(f"stages/{stage}/README.md" for stage in STAGES)])
def test_links_lead_somewhere(path: str) -> None:
    file = ROOT / path
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text(encoding="utf-8")):
        assert (file.parent / target).exists(), f"{path} links to {target}, which is not there"


# --- layering ---------------------------------------------------------------------------------------------------------


def test_the_core_imports_pydantic_and_boto3_alone() -> None:
    for path in (ROOT / "stages" / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in names:
                top = name.partition(".")[0]
                assert top in CORE or top in sys.stdlib_module_names, f"stages/core/{path.name} imports {name}"
                assert top != "stages" or name == "stages" or name.startswith("stages.core"), (
                    f"stages/core/{path.name} imports {name}"
                )


def test_import_linter_keeps_every_stage_apart() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    apart = next(c["modules"] for c in contracts if c["type"] == "independence")
    assert sorted(apart) == [f"stages.{stage}" for stage in STAGES], (
        "pyproject.toml, 'A stage never imports another stage': list every stage"
    )
