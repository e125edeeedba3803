"""What `moxin gc` takes for an age, and what it refuses. What it removes is tried in tests/integration."""

from __future__ import annotations

import pytest

from flows.cli import app, garbage
from flows.garbage_items import DAY, HOUR
from stages.core.errors import ConfigError


def test_ages_are_told_in_days_and_hours() -> None:
    limits = garbage._limits(["results=30", "unfinished=0", "rehearsals=1.5", "damaged"], 2.0)
    assert (limits.results_after, limits.work_after, limits.rehearsals_after) == (30 * DAY, 0.0, 1.5 * DAY)
    assert (limits.min_age, limits.damaged) == (2 * HOUR, True)


@pytest.mark.parametrize("word", ["results=-30", "results=nan", "unfinished=inf", "results", "result=3", "damaged=3"])
def test_what_is_no_age_is_refused(word: str) -> None:
    """A minus was dropped, and nothing is younger than NaN: all would have gone."""
    with pytest.raises(ConfigError, match=f"^--also {word}: give 'results=DAYS', "):
        garbage._limits([word], 1.0)


def test_a_cache_without_end_is_refused_before_anything_is_looked_at() -> None:
    with pytest.raises(ConfigError, match=r"^--cache-gib inf: give GiB, 0 or more$"):
        app(["gc", "--cache-gib", "inf"], standalone_mode=False)
