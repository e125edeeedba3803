"""Problems of the hub's data sets, mixed: the first step of DeepScaleR's pipeline, the extraction of answers."""

from __future__ import annotations

from collections.abc import Iterator

from stages.core.context import Context
from stages.lib.data.dataset_adapters import problem_parts, row_id, row_source
from stages.lib.data.mixture import draw_mixture, interleave
from stages.lib.formats.examples import Problem, Reject
from stages.lib.verifier.answer_extraction import last_boxed
from stages.problems.spec import ProblemsConfig


def mixed(ctx: Context[ProblemsConfig], reject: Reject) -> Iterator[Problem]:
    """The mixture's rows, normalised. An answer that a row does not state is what its solution boxes last."""
    config = ctx.config
    drawn = draw_mixture(ctx, config.sources, config.mirror, config.seed)
    extracted = 0
    for one, place, row in interleave(drawn, config.seed):
        problem, answer, solution = problem_parts(row)
        if not answer:
            answer = last_boxed(solution) or ""
            extracted += bool(answer)
        yield {
            "id": f"{one.name}/{row_id(row, place)}",
            "problem": problem,
            "answer": answer,
            "solution": solution,
            "source": row_source(row, one.name),
            "license": one.license,
        }
    ctx.stat(answers_extracted=extracted)
