"""Problems of the hub's data sets, mixed: the first step of DeepScaleR's pipeline, the extraction of answers."""

from __future__ import annotations

from collections.abc import Iterator

from stages.core.contracts import Context
from stages.data.dialects import problem_parts, row_id, row_source
from stages.data.mixing import draw, interleave
from stages.formats.examples import Problem, Reject
from stages.problems.spec import ProblemsConfig
from stages.verifier.extract import last_boxed


def mixed(ctx: Context[ProblemsConfig], reject: Reject) -> Iterator[Problem]:
    """The mixture's rows, normalised. An answer that a row does not state is what its solution boxes last."""
    config = ctx.config
    drawn = draw(ctx, config.sources, config.mirror, config.seed)
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
