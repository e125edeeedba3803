"""Files that are derived from the pipeline, and the check that none is stale: prefect.yaml, bake file, diagram."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from flows import bake, cost, deploy, environments, memory, profiles, scale_tables
from flows.data_files import require_checkout
from stages.core.errors import StageError
from stages.core.files import ROOT
from stages.pipeline import PIPELINE

MODULES = ("flows", "stages/core", "stages/lib")
"""Folders whose README lists their modules."""


def embed(name: str, path: Path, body: str) -> str:
    """The text of a Markdown file with `body` between `<!-- derived: name -->` and `<!-- /derived -->`."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    block = re.compile(rf"(<!-- derived: {name} -->\n).*?(<!-- /derived -->)", re.DOTALL)
    return block.sub(lambda match: match.group(1) + body + match.group(2), text)


def diagram() -> str:
    """The DAG as a Mermaid flowchart, which code hosts draw."""
    lines = ["```mermaid", "flowchart LR"]
    lines += [f"  {' & '.join(node.parents)} --> {node.name}" for node in PIPELINE if node.parents]
    return "\n".join([*lines, "```"]) + "\n"


def stage_table() -> str:
    """Stages with what they do, as a Markdown table."""
    rows = ["| stage | nodes | what |", "| --- | --- | --- |"]
    for stage in dict.fromkeys(node.stage for node in PIPELINE):
        nodes = [node for node in PIPELINE if node.stage == stage]
        summary = (type(nodes[0]).__doc__ or "").strip().splitlines()[0]
        rows.append(f"| [{stage}](../stages/{stage}/README.md) | {', '.join(n.name for n in nodes)} | {summary} |")
    return "\n".join(rows) + "\n"


def memory_tables() -> str:
    """The memory of every training node of the profiles that plan for GPUs, as Markdown."""
    out: list[str] = []
    for name in profiles.names():
        profile = profiles.load(name, PIPELINE)
        gpu = cost.prices_of(profile)["gpu"]
        if any(one.card for one in memory.of_profile(profile, PIPELINE, 1.0).values()):
            out.append(
                f"### `{name}`, {gpu['name']}\n\n{memory.table(profile, PIPELINE, gpu['memory_gib'] * memory.GIB)}"
            )
    return "\n".join(out)


def module_table(folder: Path) -> str:
    """The modules of a folder and of its packages, each with the first sentence of its docstring, as Markdown."""
    modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    lines = ["| module | holds |", "| --- | --- |"] if modules else []
    lines += [f"| `{path.name}` | {_first_paragraph(path)} |" for path in modules]
    for package in sorted(path.parent for path in folder.glob("*/__init__.py")):
        if not (package / "spec.py").exists():
            lines += [
                "",
                f"**`{package.name}/`** {_first_paragraph(package / '__init__.py')}",
                "",
                module_table(package),
            ]
    return "\n".join(lines).rstrip() + "\n"


def _first_paragraph(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")


def stages() -> dict[str, str]:
    """Every stage with its environment, in pipeline order."""
    return {node.stage: node.env for node in PIPELINE}


def files() -> dict[Path, str]:
    """Every derived file with the text that it should have."""
    readme, docs = ROOT / "README.md", ROOT / "docs"
    dag, memories, scales = docs / "dag.md", docs / "parallelism.md", docs / "scale.md"
    return {
        ROOT / "docker-bake.json": bake.bake_text(stages()),
        ROOT / "prefect.yaml": deploy.prefect_yaml(),
        memories: embed("memory", memories, memory_tables()),
        scales: embed("scale", scales, scale_tables.tables()),
        readme: embed("dag", readme, diagram()),
        dag: embed("stages", dag, stage_table()),
        **{
            path: embed("modules", path, module_table(path.parent))
            for path in (ROOT / folder / "README.md" for folder in MODULES)
            if path.is_file()
        },
    }


def check(write: bool = False) -> tuple[list[str], list[str]]:
    """Problems with profiles and derived files, and warnings about profiles, one line each; with `write`, stale files
    are rewritten instead.
    """
    require_checkout("moxin check")
    problems: list[str] = []
    warnings: list[str] = []
    for name in profiles.names():
        try:
            warnings += profiles.load(name, PIPELINE).warnings
        except StageError as error:
            problems.append(str(error))
    for path, text in files().items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if write:
            path.write_text(text, encoding="utf-8")
        else:
            problems.append(f"{path.relative_to(ROOT)} is stale: run 'moxin check --write'")
    return problems + (environments.stale_locks() or environments.missing(stages())), list(dict.fromkeys(warnings))
