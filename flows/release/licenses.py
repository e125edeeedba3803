"""The licence of a release as text, and what is not the family's own in it: whose data and weights went in."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from flows.release.corpora import NOT_COUNTED, Corpus
from stages.core.errors import ConfigError
from stages.core.files import ROOT

OWN = "Apache-2.0"
"""The licence whose text the project carries: its own."""
NOTICES = "THIRD_PARTY_NOTICES.md"


def text(expression: str) -> str:
    """The full text of a licence. Raises ConfigError for one that the project has no text of."""
    if expression != OWN:
        raise ConfigError(
            f"infra/family.toml: license = '{expression}': the project has the text of {OWN} alone; a release carries"
            " the full text of its licence"
        )
    path = ROOT / "LICENSE"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for file in metadata.files("moxin") or ():  # an installed package
        if file.name == "LICENSE":
            return file.read_text(encoding="utf-8")
    raise ConfigError("the installation of Moxin has lost its LICENSE: install it again")


def notices(name: str, expression: str, corpora: Sequence[Corpus], adopted: Sequence[tuple[str, str, str]]) -> str:
    """THIRD_PARTY_NOTICES.md. adopted: (node, what, digest) of what others made and went in as it is."""
    lines = [
        f"# Third-party notices of {name}",
        "",
        f"The weights are under {expression} (`LICENSE`). What they were made from is other people's, under terms of",
        "its own; nothing of it is in this folder but as far as a model repeats what it has read.",
        "",
        "| data | rows | licences, rows of each | digest |",
        "| --- | ---: | --- | --- |",
    ]
    for corpus in corpora:
        for out in corpus.outputs:
            counts = out.per_license
            said = NOT_COUNTED if counts is None else ", ".join(
                f"{license} {count:,}" for license, count in sorted(counts.items(), key=lambda row: (-row[1], row[0]))
            )  # fmt: skip
            rows = "" if out.rows is None else f"{out.rows:,}"
            lines.append(f"| `{corpus.node}.{out.port}` | {rows} | {said or NOT_COUNTED} | `{out.digest}` |")
    if adopted:
        lines += ["", "| adopted from others | what | digest |", "| --- | --- | --- |"]
        lines += [f"| `{node}` | {what} | `{digest}` |" for node, what, digest in adopted]
    return "\n".join([*lines, ""])
