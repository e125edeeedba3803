"""Problems made on the spot: those of stages/lib/data/worked_problems.py, with worked solutions and exact answers.

Any other kind is a generator of reasoning-gym (Apache-2.0) by its name: problem and answer are its own, there is no
solution.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stages.core.context import Context
from stages.core.errors import ConfigError
from stages.lib.data.worked_problems import WORKED_PROBLEMS, Draw
from stages.lib.formats.examples import Problem, Reject
from stages.problems.spec import Kind, ProblemsConfig

STALE = 500
"""Draws in a row without a new problem after which a kind is taken to be used up."""


def generate(ctx: Context[ProblemsConfig], reject: Reject) -> Iterator[Problem]:
    """Problems of all kinds by their weights, up to `rows`, each once."""
    config = ctx.config
    rng = random.Random(config.seed)
    streams = {name: _distinct(_stream(ctx.node, name, kind, rng)) for name, kind in config.kinds.items()}
    number = 0
    while streams and number < config.rows:
        names = sorted(streams)
        name = rng.choices(names, [config.kinds[n].weight for n in names])[0]
        if (drawn := next(streams[name], None)) is None:
            ctx.log(f"{name}: no further problem of this kind; raise its terms or largest for more")
            del streams[name]
            continue
        problem, solution, answer = drawn
        license = "" if name in WORKED_PROBLEMS else "Apache-2.0"
        source = f"toy-{name}" if name in WORKED_PROBLEMS else f"reasoning-gym/{name}"
        yield {
            "id": f"{name}/{number}",
            "problem": problem,
            "answer": answer,
            "solution": solution,
            "source": source,
            "license": license,
        }
        number += 1


def _distinct(draws: Iterator[Draw]) -> Iterator[Draw]:
    seen: set[str] = set()
    stale = 0
    for drawn in draws:
        stale = stale + 1 if drawn[0] in seen else 0
        if stale == STALE:
            return
        if drawn[0] not in seen:
            seen.add(drawn[0])
            yield drawn


def _stream(node: str, name: str, kind: Kind, rng: random.Random) -> Iterator[Draw]:
    if name in WORKED_PROBLEMS:
        return _draws(WORKED_PROBLEMS[name], kind, random.Random(rng.random()))
    return _of_reasoning_gym(node, name, kind.parameters, rng.randrange(2**31))


def _draws(make: Callable[[Kind, random.Random], Draw], kind: Kind, rng: random.Random) -> Iterator[Draw]:
    while True:
        yield make(kind, rng)


def _of_reasoning_gym(node: str, name: str, parameters: Mapping[str, Any], seed: int) -> Iterator[Draw]:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        near = difflib.get_close_matches(name, [*WORKED_PROBLEMS, *DATASETS], n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"{node}.kinds names '{name}', which is no kind of this stage and no generator of reasoning-gym{hint}"
        )
    try:
        rows = reasoning_gym.create_dataset(name, seed=seed, size=2**31 - 1, **parameters)
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"{node}.kinds.{name}.parameters: {error or 'out of the range of the generator'}") from error
    return ((row["question"], "", str(row["answer"])) for row in rows)
