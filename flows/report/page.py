"""The page around the sections: style, contents, and the atomic write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flows.report import plots
from flows.report.markup import Markup, Section, template
from stages.core.errors import InfraError
from stages.core.files import write_atomically


def document(title: str, header: Markup, sections: Sequence[Section]) -> str:
    """One HTML document. Style, pictures, numbers and scripts are in it: it opens the same from a mail, a USB stick or
    a web server, and asks nobody for anything.
    """
    return str(template("page.html", title=title, header=header, sections=sections, **plots.of_page(sections)))


def write(text: str, path: Path) -> None:
    """Write a file whole or not at all. Raises InfraError naming it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text, errors="backslashreplace")
    except OSError as error:
        raise InfraError(f"the report cannot be written to {path}: {error.strerror or error}") from error


def inline_svg(document: str) -> Markup:
    """An SVG document as an element of the page: without prologue, metadata and namespace, which HTML does not need."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    return Markup(re.sub(r' xmlns(:\w+)?="[^"]*"', "", element))
