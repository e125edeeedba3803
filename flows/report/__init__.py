"""The report of a run: one HTML page that stands alone (nothing is fetched), from the newest results in the ledger.

    moxin report                        writes .moxin/report/<profile>.html, prints the summary

A section is a function `(data) -> Section | None` (None: the pipeline has nothing of the kind). To add one, write a
module beside this one and name its function in SECTIONS; lines for the terminal go into SUMMARIES the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flows.report import (
    ablation,
    contamination,
    corpus,
    drawings,
    family_table,
    licenses,
    openness,
    overview,
    page,
    paper_tables,
    provenance,
    samples,
    training,
    tuning,
    vision_tables,
)
from flows.report.data import Data, collect, read_evaluation, read_pictures
from flows.report.markup import Section

SECTIONS: list[Callable[[Data], Section | None]] = [
    overview.graph,
    training.losses,
    tuning.effects,
    family_table.section,
    paper_tables.section,
    ablation.ablation,
    vision_tables.section,
    contamination.section,
    samples.section,
    corpus.funnels,
    corpus.capability,
    corpus.tokens,
    licenses.section,
    provenance.costs,
    provenance.origins,
    openness.section,
]
"""The page, in reading order."""

SUMMARIES: list[Callable[[Data], list[str]]] = [
    overview.summary,
    training.summary,
    tuning.summary,
    paper_tables.summary,
    ablation.summary,
    vision_tables.summary,
    contamination.summary,
    corpus.summary,
    openness.summary,
]
"""What the terminal shows of it."""


def render(data: Data) -> str:
    """The page as text."""
    short = [line for make in SUMMARIES[1:] for line in make(data)]  # the first one's facts are the header
    sections = [section for make in SECTIONS if (section := make(data)) is not None]
    return page.document(f"Moxin: run report, profile {data['profile']}", overview.header(data, short), sections)


def write(data: Data, path: Path, pictures: Path | None = None) -> None:
    """Write the page; whoever reads `path` meanwhile sees the old page or the new one. Raises InfraError. pictures: the
    folder in which pictures are kept from one time to the next.
    """
    with drawings.kept_in(pictures):
        text = render(data)
    page.write(text, path)


def summary(data: Data) -> list[str]:
    """A few lines for the terminal."""
    return [line for make in SUMMARIES for line in make(data)]


__all__ = [
    "SECTIONS",
    "SUMMARIES",
    "Data",
    "Section",
    "collect",
    "read_evaluation",
    "read_pictures",
    "render",
    "summary",
    "write",
]
