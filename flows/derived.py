"""Files that are derived from the pipeline, and the check that none is stale: prefect.yaml, locks, bake file, diagram."""

from __future__ import annotations

import re
from pathlib import Path

from flows import deploy, environments, profiles
from stages.core.contracts import StageError
from stages.pipeline import PIPELINE

ROOT = Path(__file__).resolve().parents[1]
_DIAGRAM = re.compile(r"(<!-- derived: dag -->\n).*?(<!-- /derived -->)", re.DOTALL)


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
        rows.append(f"| [{stage}](stages/{stage}/README.md) | {', '.join(n.name for n in nodes)} | {summary} |")
    return "\n".join(rows) + "\n"


def stages() -> dict[str, str]:
    """Every stage with its environment, in pipeline order."""
    return {node.stage: node.env for node in PIPELINE}


def files() -> dict[Path, str]:
    """Every derived file with the text that it should have."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    body = diagram() + "\n" + stage_table()
    locks = {environments.FOLDER / env / "requirements.lock": environments.lock_text(env) for env in sorted({*stages().values(), environments.CONTROL})}
    return locks | {
        ROOT / "docker-bake.json": environments.bake_text(stages()),
        ROOT / "prefect.yaml": deploy.prefect_yaml(),
        readme: _DIAGRAM.sub(lambda match: match.group(1) + body + match.group(2), text),
    }


def check(write: bool = False) -> list[str]:
    """Problems with profiles and derived files, one line each; with `write`, stale files are rewritten instead."""
    problems = []
    for name in profiles.names():
        try:
            profiles.load(name, PIPELINE)
        except StageError as error:
            problems.append(str(error))
    for path, text in files().items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if write:
            path.write_text(text, encoding="utf-8")
        else:
            problems.append(f"{path.relative_to(ROOT)} is stale: run 'moxin check --write'")
    return problems + environments.missing(stages())
