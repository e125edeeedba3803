"""Hooks of MkDocs (mkdocs.yml): READMEs beside the code become pages, and links lead where they lead on disk."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
CODE = "code"
"""Folder of the site that holds the pages which lie outside docs/."""
_LINK = re.compile(r"(\[[^\]]*\])\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_TITLE = re.compile(r'^```(\w+) title="([^"]+)"')
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def readmes() -> list[Path]:
    """Markdown files outside docs/ that become pages, relative to the repository."""
    skipped = ("docs", "site", "tests", ".")
    return sorted(
        path.relative_to(ROOT)
        for folder in ROOT.iterdir()
        if not folder.name.startswith(skipped)
        for path in ([folder] if folder.suffix == ".md" else folder.rglob("*.md") if folder.is_dir() else [])
    )


def on_files(files: Files, config: Any) -> Files:
    """Add the READMEs."""
    for path in readmes():
        files.append(File.generated(config, f"{CODE}/{path.as_posix()}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Turn links into links between pages; what is no page (a folder, a file of code) is named and not linked."""
    uri = page.file.src_uri
    here = posixpath.dirname(uri.removeprefix(f"{CODE}/") if uri.startswith(f"{CODE}/") else f"docs/{uri}")

    def page_link(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(here, target))
        for candidate in (path, f"{path}/README.md"):
            site = candidate.removeprefix("docs/") if candidate.startswith("docs/") else f"{CODE}/{candidate}"
            if files.get_file_from_path(site):
                return f"{label}({os.path.relpath(site, posixpath.dirname(uri) or '.')}{anchor})"
        return f"{label[1:-1]} (`{path}`)"

    parts = _FENCE.split(markdown)
    return "".join(
        _TITLE.sub(r"`\2`:\n\n```\1", part) if part.startswith("```") else _LINK.sub(page_link, part) for part in parts
    )
