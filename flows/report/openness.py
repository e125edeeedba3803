"""Openness: the class of every released model in the Model Openness Framework, and what stands before the next one."""

from __future__ import annotations

from typing import Any

from flows.report.data import Data
from flows.report.markup import Markup, Section, badge, code, details, join, paragraph, table


def section(data: Data) -> Section | None:
    """The released models of the profile, from the papers in their folders; None: none is released."""
    releases: list[dict[str, Any]] = data.get("releases") or []
    if not releases:
        return None
    note = paragraph(
        "By the Model Openness Framework (17 components, three classes, I the highest), computed from the mof.yml of"
        " each release as its folder has it: what is not in it or at an address is not open. 'moxin verify' checks a"
        " folder against its statement of provenance."
    )
    rows = [_row(release, data) for release in releases]
    parts = [
        details(
            f"What of {release['name']} is open",
            table(
                ("Component", "Where", "Licence"),
                [[part["name"], code(part["component_path"]), part["license"]] for part in release["components"]],
            ),
        )
        for release in releases
        if "problem" not in release
    ]
    head = ("Model", "Node", "Content", "", "Class", "Missing for the next class")
    return Section("openness", "Openness", join(note, table(head, rows), *parts))


def _row(release: dict[str, Any], data: Data) -> list[Any]:
    if "problem" in release:
        return [release["name"], release.get("node"), None, badge("damaged", "damaged"), None, release["problem"]]
    newest = _digests(data, release["node"])
    state = badge("ok", "ok") if release["digest"] in newest else badge("of another result", "stale")
    missing = Markup("<br>").join(Markup("%s: %s") % (name, why) for name, why in release["missing"].items())
    return [
        release["name"],
        release["node"],
        code(release["digest"], 12),
        state,
        release["title"],
        missing or "nothing: it is the highest",
    ]


def _digests(data: Data, node: str) -> set[str]:
    """Digests of what a node has made last."""
    return {
        output["digest"]
        for row in data["nodes"]
        if row["name"] == node and row["result"]
        for output in row["result"]["outputs"].values()
    }


def summary(data: Data) -> list[str]:
    """A line for the terminal."""
    every: list[dict[str, Any]] = data.get("releases") or []
    releases = [release for release in every if "problem" not in release]
    if not releases:
        return []
    return ["openness: " + ", ".join(f"{release['name']} {release['title'].split(':')[0]}" for release in releases)]
