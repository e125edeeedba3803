"""Whose the data is: every output with data in it by source and by licence, as its stage counted them."""

from __future__ import annotations

from collections.abc import Mapping

from flows.report.data import Data
from flows.report.markup import NONE, Markup, Section, badge, join, number, paragraph, table
from stages.core.messages import StageResult

MOST = 6
"""Sources and licences that are named, those with most rows; the others are counted."""


def section(data: Data) -> Section | None:
    """The table."""
    from flows.release import corpora  # it takes its numbers from sections of this page

    rows: list[list[Markup | str]] = []
    for node in data["nodes"]:
        if not node["result"]:
            continue
        known = {name: value for name, value in node["result"].items() if name in StageResult.model_fields}
        corpus = corpora.describe(StageResult.model_validate(known))
        for output in corpus.outputs:
            if not output.per_source and not output.per_license:
                continue
            origin = badge("made by this run", "note") if corpus.made_here else Markup("")
            rows.append(
                [
                    Markup('<a href="#node-{0}">{0}</a>.{1} {2}').format(node["name"], output.port, origin),
                    number(output.rows) if output.rows is not None else NONE,
                    _counts(output.per_source),
                    _counts(output.per_license) if output.per_license is not None else NONE,
                ]
            )
    if not rows:
        return None
    about = paragraph(
        "Rows by source, and by the licence that the source states of each (SPDX); of data that this run made from"
        " others' the licences of those. A licence nobody stated is no permission.",
        "note",
    )
    head = ("Output", "Rows", "Sources", "Licences")
    return Section("licenses", "Sources and licences of the data", join(about, table(head, rows, numbers=(1,))))


def _counts(rows: Mapping[str, int] | None) -> Markup | str:
    if not rows:
        return NONE
    most = sorted(rows.items(), key=lambda row: -row[1])
    parts = [Markup("%s <small>%s</small>") % (name, f"{count:,}") for name, count in most[:MOST]]
    if rest := most[MOST:]:
        parts.append(Markup("<small>and %s more, %s</small>") % (len(rest), f"{sum(count for _, count in rest):,}"))
    return Markup("<br>").join(parts)
