"""The page around the sections: style, contents, and the atomic write."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flows.report.data import Data
from flows.report.markup import Markup, Section
from stages.core.contracts import InfraError

STYLE = Path(__file__).with_name("page.css")


def render(data: Data, header: Markup, sections: Sequence[Section]) -> str:
    """One HTML document. Style and pictures are in it: it opens the same from a mail, a USB stick or a web server."""
    contents = Markup("").join(Markup('<li><a href="#%s">%s</a></li>') % (s.id, s.title) for s in sections)
    parts = Markup("\n").join(Markup('<section id="%s"><h2>%s</h2>\n%s</section>') % (s.id, s.title, s.body) for s in sections)
    return str(
        Markup(
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            "<title>Moxin: run report, profile %s</title>\n<style>\n%s</style>\n</head>\n<body>\n%s\n"
            "<nav><ul>%s</ul></nav>\n<main>\n%s\n</main>\n</body>\n</html>\n"
        )
        % (data["profile"], Markup(STYLE.read_text(encoding="utf-8")), header, contents, parts)
    )


def write(text: str, path: Path) -> None:
    """Write a file whole or not at all. Raises InfraError naming it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
            os.chmod(name, 0o644)  # mkstemp's 0600 would keep colleagues from reading it
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise InfraError(f"the report cannot be written to {path}: {error.strerror or error}") from error


def inline_svg(document: str) -> Markup:
    """An SVG document as an element of the page: without prologue, metadata and namespace, which HTML does not need."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    return Markup(re.sub(r' xmlns(:\w+)?="[^"]*"', "", element))
