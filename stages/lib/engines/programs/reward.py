"""The reward function of verl and AReaL: this repository's verifier. Imported in their reward workers, with the
repository on PYTHONPATH.

Both call it where signals cannot bound it (threads of an executor, workers without a main thread); the verifier's own
processes can (stages/lib/verifier). The answer to a hostile response comes long before their own time limits.
"""

from __future__ import annotations

import atexit
from functools import cache
from typing import Any

from stages.lib.formats import vocabulary
from stages.lib.verifier import Verifier, in_format

END = vocabulary.SPECIAL[vocabulary.EOS_ID]


@cache
def _verifier(rule: Any) -> Verifier:
    """One pool for each rule and worker process."""
    verifier = Verifier(workers=1, rule=rule)
    atexit.register(verifier.close)
    return verifier


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Any = None,
    *,
    rule: str,
    right: float,
    wrong: float,
    **rest: Any,
) -> dict[str, float]:
    """As verl calls it. `score` is the reward; `acc` and `format` go into its metrics. solution_str: the response
    without the prompt.
    """
    accepted = _verifier(rule).verify(solution_str, ground_truth).score
    return {"score": wrong + (right - wrong) * accepted, "acc": accepted, "format": float(in_format(solution_str))}


def verified(prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], **row: Any) -> float:
    """As AReaL calls it. completions: the response with its closing </s>; row: the other columns of the data's row, of
    which `answer`, `rule`, `right` and `wrong` are read.
    """
    accepted = _verifier(row["rule"]).verify(completions.removesuffix(END), row["answer"]).score
    return row["wrong"] + (row["right"] - row["wrong"]) * accepted
