"""The house rules, measured: sizes, names that must not come back, what lies at the top of stages/, and that nothing
cites a document outside the repository.
"""

from __future__ import annotations

import ast
import functools
import re
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import ROOT

FILE, MEDIAN, FUNCTION, PARAMETERS = 400, 200, 60, 7
"""The longest file, the median file, the longest function (lines), the longest list of parameters."""
NAMES = ("Ask", "Look", "Noise", "Saver", "Sight", "Stretch", "Team", "Visibility", "World")
NAMES += ("batch_rows", "batch_windows", "dialects", "lessons", "micro_rows", "stay_behind")
"""Left for the field's words: attention context, dropout, context phase, checkpointer, ParallelDims,
global_batch_size, ...
"""
NAMES += ("found", "made", "own", "told", "wanted")
"""Variables that do not say what they hold."""
SEARCHES = {
    "minhash": "stages/dedup/minhash.py",  # the bands of MinHash
    "slurm_script": "flows/launch/slurm_scripts.py",  # the header of a Slurm job
    "connection": "stages/core/connection.py",  # how often S3 is asked again
    "attention": "stages/lib/modeling/attention.py",  # the mask between documents
    "lr_scheduler": "stages/lib/training/lr_scheduler.py",
    "vision_table": "flows/report/vision_tables.py",  # Table 8 of the report
    "checkpointer": "stages/lib/training/checkpointer.py",  # saving a checkpoint
    "gpu_price": "infra/gpu_prices.toml",
    "prefect_server": "flows/prefect_server.py",  # starting the server
    # what a second stranger was misled by, under the names of today
    "held_leases": "flows/held_leases.py",  # who renews a lease: it says so
    "takeover": "flows/job_takeover.py",  # a job whose control plane died
    "recompute_cost": "flows/recompute_cost.py",  # what making a result again costs
    "source_checks": "flows/source_checks.py",  # `moxin check --sources`
    "image_decoding": "stages/lib/vision/image_decoding.py",
    "verifier_pool": "stages/lib/verifier/verifier_pool.py",  # processes that check answers
    "mof_classes": "flows/release/mof_classes.py",  # Class I to III of the Model Openness Framework
}
"""Searches by name alone, and what each finds at the first guess: no other file's name answers."""
CITES = re.compile(r"\bfacts/|\bRECIPE(?:\.md)?\s+\d|\bDESIGN\b|\bfindings/|\.\./shared|\b[Ff]indings? \d")
TEXT = {"", ".cfg", ".css", ".example", ".html", ".in", ".js", ".md", ".py", ".sh", ".toml", ".yaml", ".yml"}


def sources() -> list[Path]:
    """Python files that rules on size and names hold for: all but tests."""
    return [p for top in ("flows", "stages", "benchmarks") for p in sorted((ROOT / top).rglob("*.py"))]


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def compiled(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether numba compiles it: a kernel takes arrays one by one."""
    return any("njit" in ast.unparse(d) or "compiled" in ast.unparse(d) for d in node.decorator_list)


def test_a_compiled_kernel_says_of_what_type_its_values_are() -> None:
    """numba's functions have no annotations: their docstrings give types and shapes, or name the one that does."""
    silent = []
    for path in sources():
        text = path.read_text(encoding="utf-8")
        if "njit" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and compiled(node) and not node.name.startswith("_"):
                said = ast.get_docstring(node) or ""
                if not re.search(r"\b(u?int(8|16|32|64)|float(32|64)|integers)\b|: see `", said):
                    silent.append(f"{place(path)} {node.name}")
    assert silent == []


def asked_of_a_person(annotation: ast.expr | None) -> bool:
    """Whether a parameter is an option of a command or a field of a form: people give it by its name."""
    text = ast.unparse(annotation) if annotation else ""
    return bool(re.match(r"(\w+(Option|Argument|Field)$|form\.|Annotated\[.*(typer\.|Field\())", text))


@functools.cache
def facts(path: Path) -> tuple[tuple[str, ...], frozenset[str]]:
    """What of a file is over a measure, and the names that it gives. Once: half of the time is the parser's."""
    text = path.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text)))
    return (*([place(path)] if text.count("\n") > FILE else ()), *_too_large(path, nodes)), frozenset(_names(nodes))


def _too_large(path: Path, nodes: list[ast.AST]) -> Iterator[str]:
    """`function` for its lines, `function()` for its parameters."""
    for node in nodes:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        arguments = [a.arg for a in given if not asked_of_a_person(a.annotation)]
        assert node.end_lineno is not None
        if node.end_lineno - node.lineno + 1 > FUNCTION:
            yield f"{place(path)} {node.name}"
        if len([a for a in arguments if a not in ("self", "cls")]) > PARAMETERS and not compiled(node):
            yield f"{place(path)} {node.name}()"


def _names(nodes: list[ast.AST]) -> Iterator[str]:
    """Classes, functions, parameters, variables, fields."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def measures() -> list[str]:
    return sorted(line for path in sources() for line in facts(path)[0])


def names() -> list[str]:
    return sorted(f"{place(p)} {name}" for p in sources() for name in facts(p)[1] & set(NAMES))


def citations() -> list[str]:
    """Files that cite what is not in the repository."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    cited = []
    for name in tracked:
        path = ROOT / name
        if path.suffix not in TEXT or not path.is_file() or name == place(Path(__file__)):
            continue
        if CITES.search(path.read_text(encoding="utf-8", errors="replace")):
            cited.append(name)
    return sorted(cited)


def test_files_functions_and_parameter_lists_are_short() -> None:
    assert measures() == []


def test_the_median_file_is_short() -> None:
    assert statistics.median(p.read_text(encoding="utf-8").count("\n") for p in sources()) < MEDIAN


def test_names_that_were_left_do_not_come_back() -> None:
    assert names() == []


def test_nothing_cites_a_document_outside_the_repository() -> None:
    assert citations() == []


def test_a_search_by_name_finds_the_file_at_the_first_guess() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "flows", "stages", "infra"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for word, file in SEARCHES.items():
        assert [name for name in tracked if word in Path(name).name and not name.endswith(".md")] == [file]
    options = [p for p in sources() if 'Option("--set"' in p.read_text(encoding="utf-8")]
    assert [place(p) for p in options] == ["flows/cli/common.py"]


def test_the_readme_fits_on_a_screen_above_its_diagram() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.partition("<!-- derived: dag -->")[0].count("\n") <= 30


def test_stages_shows_the_stages_alone() -> None:
    folders = {p.name for p in (ROOT / "stages").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert {p.parent.name for p in (ROOT / "stages").glob("*/spec.py")} == folders - {"core", "lib"}
    files = {p.name for p in (ROOT / "stages").iterdir() if p.is_file()}
    assert files == {"__init__.py", "pipeline.py", "py.typed"}
