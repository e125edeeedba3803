"""How a configuration becomes a rehearsal's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from stages.core.config import Operational, StageConfig
from stages.core.shrinking import Grows, Rehearsal, Shrinks, shrunk, small_batch, whole


class Source(BaseModel):
    name: str
    cap: Annotated[int | None, Shrinks(wiring=10)] = None


class Config(StageConfig):
    steps: Annotated[int, Shrinks(wiring=4, shape=5), Field(gt=0)] = 1000
    window: Annotated[int | None, Shrinks(wiring=8, unset=False)] = None
    workers: Annotated[Operational[int | str], Shrinks(wiring=2)] = 8
    heldout: Annotated[float, Grows(wiring=0.2)] = 0.01
    seed: int = 7
    sources: tuple[Source, ...] = ()
    by_name: Mapping[str, Source] = {}

    def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
        return values | {"seed": rehearsal.ranks}


def test_each_level_bounds_what_the_field_says() -> None:
    config = Config(sources=(Source(name="a"), Source(name="b", cap=3)), by_name={"c": Source(name="c", cap=99)})
    small = shrunk(config, Rehearsal("wiring", 3))
    assert (small.steps, small.window, small.workers, small.heldout, small.seed) == (4, None, 2, 0.2, 3)
    assert [source.cap for source in small.sources] == [10, 3]
    assert small.by_name["c"].cap == 10
    large = shrunk(config, Rehearsal("shape"))
    assert (large.steps, large.workers, large.heldout) == (5, 8, 0.01)
    assert large.sources == config.sources


def test_what_is_small_a_name_or_nothing_stays() -> None:
    small = shrunk(Config(steps=2, workers="ray", heldout=0.0), Rehearsal("wiring"))
    assert (small.steps, small.workers, small.heldout) == (2, "ray", 0.0)


def test_what_a_stage_settles_is_validated() -> None:
    class Broken(Config):
        def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
            return values | {"steps": 0}

    with pytest.raises(ValidationError, match="steps"):
        shrunk(Broken(), Rehearsal("wiring"))


@pytest.mark.parametrize(("size", "unit", "expected"), [(8, 3, 6), (2, 3, 3), (9, 3, 9)])
def test_whole_units(size: int, unit: int, expected: int) -> None:
    assert whole(size, unit) == expected


def test_a_batch_is_shared_evenly_by_the_processes() -> None:
    values = {"micro_batch_size": 2, "global_batch_size": 8}
    assert [small_batch(values, Rehearsal("wiring"), parts) for parts in (1, 2, 3, 16)] == [4, 8, 6, 32]
