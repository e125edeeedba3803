"""What this project's task files call: mathematical answers by math-verify, names by whether the answer holds one.

A mathematical answer is judged in a worker that can be ended (`stages.lib.verifier`): a hostile or huge expression
costs its limits and counts as wrong.
"""

from __future__ import annotations

import atexit
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stages.lib.verifier.answer_extraction import last_boxed
from stages.lib.verifier.verifier_pool import Verifier

NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


@functools.cache
def _verifier() -> Verifier:
    """One pool for all tasks of a process. math-verify's rule, and no thought has to be closed."""
    verifier = Verifier(rule="math-verify", require_format=False)
    atexit.register(verifier.close)
    return verifier


def reference(doc: Mapping[str, Any]) -> str:
    """The right answer: `answer`, or the parts of OlympiadBench's `final_answer`, without dollar signs."""
    said = doc["answer"] if "answer" in doc else doc["final_answer"]
    parts = [said] if isinstance(said, str) else said
    return ", ".join(part.strip().strip("$") for part in parts)


def math_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """{"math_verify": 1.0 or 0.0} of a written solution: its last box counts, without one its last number, as in
    Qwen2.5-Math's evaluation.
    """
    text = results[0].rpartition("</think>")[2]
    if last_boxed(text) is None and (numbers := NUMBER.findall(text)):
        text = f"\\boxed{{{numbers[-1].replace(',', '')}}}"
    return {"math_verify": _verifier().verify(text, reference(doc)).score}


def popqa_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """{"exact_match": 1.0 or 0.0}: whether the answer holds one of the object's names, as it is written, in small
    letters, or capitalized (Mallen et al. 2023, section 4).
    """
    names: list[str] = json.loads(doc["possible_answers"])
    return {"exact_match": float(any(form in results[0] for n in names for form in (n, n.lower(), n.capitalize())))}


def first_name(doc: Mapping[str, Any]) -> str:
    """The object's own name: the answer of a worked example."""
    return str(json.loads(doc["possible_answers"])[0])
