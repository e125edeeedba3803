"""The `problems` stage: kinds whose solutions and answers are true, and mirrors of the hub's data sets."""

from __future__ import annotations

import ast
import operator
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stages.core.errors import ConfigError
from stages.core.testing import LocalContext
from stages.lib.data.worked_problems import WORKED_PROBLEMS
from stages.lib.formats.examples import Problem, question, read_problems
from stages.lib.formats.suites import write_data_set
from stages.problems.run import run
from stages.problems.spec import Kind, ProblemsConfig

DEEPSCALER = "agentica-org/DeepScaleR-Preview-Dataset"
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value(expression: str) -> float:
    """The value of an arithmetic expression, by its syntax tree."""

    def of(node: ast.AST) -> float:
        if isinstance(node, ast.BinOp):
            return _OPERATIONS[type(node.op)](of(node.left), of(node.right))
        assert isinstance(node, ast.Constant)
        return node.value

    return of(ast.parse(expression, mode="eval").body)


def start(root: Path, **config: Any) -> LocalContext[ProblemsConfig]:
    ctx = LocalContext(root, ProblemsConfig(**config), node="problems")
    run(ctx)
    return ctx


def rows(ctx: LocalContext[Any], port: str) -> list[Problem]:
    return list(read_problems(ctx.output(port)))


@pytest.mark.parametrize("name", sorted(WORKED_PROBLEMS))
@pytest.mark.parametrize("terms", [(2, 2), (2, 4), (3, 3)])
def test_every_step_of_every_solution_is_true(name: str, terms: tuple[int, int]) -> None:
    kind, rng = Kind(terms=terms, largest=25), random.Random(1)
    for _ in range(300):
        problem, solution, answer = WORKED_PROBLEMS[name](kind, rng)
        assert max(map(int, re.findall(r"\d+", f"{problem} {solution} {answer}"))) <= 25
        assert not re.search(r"(?<![0-9x])-[0-9]", f"{problem} {solution} {answer}")  # nothing is negative
        for step in solution.rstrip(".").split(". "):
            if "<" in step or ">" in step:
                left, right = re.split("[<>]", step)
                assert (int(left) < int(right)) == ("<" in step)
                continue
            sides = [re.sub(r"\bx\b", answer, side) for side in step.split("=")]
            assert len({value(side) for side in sides}) == 1, (problem, step)
        if name in ("sum", "product", "columns"):
            assert value(problem.removeprefix("Compute ").rstrip(".")) == int(answer)
        if name == "equation":
            left, right = problem.removeprefix("Solve ").rstrip(".").replace("x", answer).split("=")
            assert value(left) == value(right)


@pytest.mark.slow  # graders in processes of their own, with SymPy
def test_problems_are_unique_disjoint_and_the_same_again(tmp_path: Path) -> None:
    config = {
        "origin": "machine",
        "heldout": 0.2,
        "rows": 600,
        "kinds": {"sum": {"weight": 3, "largest": 30}, "largest": {"largest": 30}},
    }
    ctx = start(tmp_path / "one", **config)
    train, heldout = rows(ctx, "train"), rows(ctx, "heldout")
    marks = [question(r) for r in train + heldout]
    assert len(set(marks)) == len(marks) == 600
    assert 80 < len(heldout) < 160
    kinds = Counter(r["source"] for r in train + heldout)
    assert 2.2 < kinds["toy-sum"] / kinds["toy-largest"] < 4.0
    assert rows(start(tmp_path / "two", **config), "train") == train


@pytest.mark.slow  # graders in processes of their own, with SymPy
def test_a_kind_that_is_used_up_is_told(tmp_path: Path) -> None:
    ctx = start(tmp_path, origin="machine", heldout=0.3, kinds={"sum": {"terms": [2, 2], "largest": 3}})
    assert ctx.stats["rows"] == 20  # a + b <= 3 in 10 ways, a - b >= 0 in 10
    assert any("sum: no further problem of this kind" in line for line in ctx.logs)


@pytest.mark.slow  # imports reasoning-gym: seconds
def test_kinds_of_reasoning_gym(tmp_path: Path) -> None:
    kinds = {"gcd": {"parameters": {"max_value": 60}}, "sum": {}}
    ctx = start(tmp_path, origin="machine", heldout=0.2, rows=60, kinds=kinds)
    found = [r for r in rows(ctx, "train") if r["source"] == "reasoning-gym/gcd"]
    assert found
    assert all(
        r["license"] == "Apache-2.0" and r["answer"].isdigit() and max(map(int, re.findall(r"\d+", r["problem"]))) <= 60
        for r in found
    )


@pytest.mark.slow  # imports reasoning-gym: seconds
@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"summ": {}}, r"problems.kinds names 'summ'.* did you mean 'sum'\?"),
        ({"gcd": {"parameters": {"nonsense": 1}}}, r"problems.kinds.gcd.parameters: .*nonsense"),
        ({"gcd": {"parameters": {"min_value": 9, "max_value": 1}}}, r"problems.kinds.gcd.parameters: "),
    ],
)
def test_kinds_that_are_none_are_named(tmp_path: Path, kinds: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        start(tmp_path, origin="machine", kinds=kinds)


def test_terms_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="give the fewest"):
        Kind(terms=(3, 2))


def test_problems_of_the_hub(tmp_path: Path) -> None:
    good = [
        {"problem": f"What is {n} + {n}?", "answer": str(2 * n), "solution": f"It is \\boxed{{{2 * n}}}"}
        for n in range(60)
    ]
    boxed = [{"problem": "Half of one?", "answer": "", "solution": "First \\boxed{1}, then \\boxed{\\frac{1}{2}}."}]
    bad = [
        {"problem": "No answer?", "answer": "", "solution": "I do not know."},
        {"problem": "", "answer": "1", "solution": ""},
    ]
    write_data_set(tmp_path / "mirror", DEEPSCALER, {"default": {"train": pa.Table.from_pylist(good + boxed + bad)}})
    ctx = start(tmp_path / "run", sources=[{"data_set": DEEPSCALER}], mirror=str(tmp_path / "mirror"), heldout=0.2)
    assert ctx.stats["removed"] == {"no answer": 1, "no problem": 1}
    assert ctx.stats["answers_extracted"] == 1
    found = {r["problem"]: r["answer"] for port in ("train", "heldout") for r in rows(ctx, port)}
    assert found["Half of one?"] == "\\frac{1}{2}"
    assert found["What is 3 + 3?"] == "6"
    assert len(found) == 61
