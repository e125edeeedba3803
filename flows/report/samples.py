"""Tables 10 and 11: the same prompts, answered by several models of the family."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

from flows import family
from flows.report.data import Data
from flows.report.markup import NONE, Markup, Section, badge, join, paragraph, table
from flows.report.scores import shown
from stages.core.keys import sha256
from stages.lib.finetuning.tuning_config import PAPER_PROMPTS

PROMPTS = 6
"""Shown on the page."""
END, TEXT = 600, 1500
"""Characters of a prompt's end, where its question stands, and of an answer's beginning that are shown."""
Prompt = dict[str, Any]
"""One document: `task`, `prompt`, `target`, `answers` {model: (answer, whether it is right or None)}."""


def side_by_side(data: Data) -> list[Prompt]:
    """The documents that more than one model answered, first those that most models answered in words."""
    models = {node: model.title for model in family.load() for node in model.evaluations}
    prompts: dict[tuple[str, str], Prompt] = {}
    for node in data["nodes"]:
        for row in node.get("samples", ()) if node["name"] in models else ():
            toys = {score["task"] for report in node["reports"].values() for score in report["results"] if score["toy"]}
            if "doc" not in row:  # a question about an image (`evaluate_vlm`): the page shows those with their pictures
                continue
            question = _question(row)
            key = (row["task"], sha256(f"{json.dumps(row['doc'], sort_keys=True)} {question['prompt']}".encode()))
            name = shown({"task": row["task"], "toy": row["group"] in toys})
            prompt = prompts.setdefault(key, {"task": name, "answers": {}, **question})
            prompt["answers"].setdefault(models[node["name"]], (answer(row), _verdict(row)))
    shared = [prompt for prompt in prompts.values() if len(prompt["answers"]) > 1]
    return sorted(shared, key=lambda prompt: (-prompt["written"], -len(prompt["answers"])))


def _question(row: Mapping[str, Any]) -> dict[str, Any]:
    written = bool(row["scores"]) and isinstance(row["scores"][0], str)
    target = str(row["target"])
    if not written and target.isdigit() and int(target) < len(row["requests"]):  # the number of a given answer
        target = _choice(row, int(target))
    return {
        "prompt": _context(row) if row["requests"] else json.dumps(row["doc"], ensure_ascii=False),
        "target": target,
        "written": written,
    }


def answer(row: Mapping[str, Any]) -> str:
    """What a model wrote; of a question with given answers the one that it finds most likely."""
    if not row["scores"] or isinstance(row["scores"][0], str):
        return "".join(row["scores"][:1])
    likelihoods: list[Any] = [
        cast("Sequence[Any]", score)[0] if isinstance(score, Sequence) else score for score in row["scores"]
    ]
    return _choice(row, likelihoods.index(max(likelihoods)))


def _context(row: Mapping[str, Any]) -> str:
    """What all of a document's requests begin with: some tasks put the choice before what is scored."""
    contexts = sorted({str(request[0]) for request in row["requests"]})
    same = os.path.commonprefix(contexts)  # noqa: RUF071  character by character is meant: these are no paths
    return same if len(contexts) == 1 else same[: same.rfind(" ") + 1]  # no word is cut


def _choice(row: Mapping[str, Any], number: int) -> str:
    """One of the given answers, with what of its context is not common to all."""
    context, continuation = (str(part) for part in row["requests"][number][:2])
    return f"{context[len(_context(row)) :]}{continuation}".strip()


def _verdict(row: Mapping[str, Any]) -> bool | None:
    """Whether the harness counts that answer as right; None where no metric says so (`acc_norm` may choose another)."""
    values = [row[name] for name in ("exact_match", "math_verify", "acc") if name in row]
    return bool(values[0]) if values and values[0] in (0, 1) else None


def printed(data: Data) -> list[Prompt]:
    """The paper's own prompts, with what every tuned model of the family said (`prompts` of `sft` and `dpo`)."""
    models = family.load()
    prompts: list[Prompt] = []
    for text in PAPER_PROMPTS:
        answers: dict[str, tuple[str, None]] = {}
        for node in data["nodes"]:
            result: dict[str, Any] = node["result"] or {}
            rows: list[dict[str, Any]] = result.get("stats", {}).get("samples") or []
            said = [row["after"] for row in rows if row.get("prompt") == f"user: {text}"]
            if said and node["name"] in models.models:
                answers[models[node["name"]].title] = (said[0], None)
        if answers:
            prompts.append({"task": "Tables 10, 11", "prompt": text, "target": "", "written": True, "answers": answers})
    return prompts


def section(data: Data) -> Section | None:
    """The prompts, each with its answers: the paper's, then the evaluations'."""
    papers, prompts = printed(data), side_by_side(data)
    if not papers and not prompts:
        return None
    opening = paragraph(
        "As in the paper's Tables 10 and 11: the same prompt, answered by several models. First the paper's own"
        " prompts; then the first documents of each task, so neither the best nor the worst; of a question with given"
        " answers, the one that the model finds most likely."
    )
    prompt_of_task: dict[str, Prompt] = {}
    for prompt in prompts:
        prompt_of_task.setdefault(prompt["task"], prompt)
    shown_prompts = list(prompt_of_task.values())[:PROMPTS]
    left_out = [name for node in data["nodes"] for name in node.get("samples_left_out", ())]
    note = paragraph(f"Too large to be read here: {', '.join(left_out)}.", "note") if left_out else None
    return Section(
        "samples", "Samples side by side", join(opening, *map(_show, papers), *map(_show, shown_prompts), note)
    )


def _show(prompt: Prompt) -> Markup:
    rows = [
        [
            model,
            _text(text[:TEXT]),
            NONE if right is None else badge("right" if right else "wrong", "ok" if right else "note"),
        ]
        for model, (text, right) in prompt["answers"].items()
    ]
    end = prompt["prompt"][-END:]
    question = ("… " if len(end) < len(prompt["prompt"]) else "") + end
    head = ("Model", "Answer", "")
    title = Markup("<h3>%s</h3><pre>%s</pre>") % (prompt["task"], question)
    target = paragraph(f"In the data: {prompt['target'][:TEXT]}", "note") if prompt["target"] else None
    return join(title, table(head, rows), target)


def _text(text: str) -> Markup:
    return Markup("<pre>%s</pre>") % text
