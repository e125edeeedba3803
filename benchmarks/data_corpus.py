"""A corpus of real text for `benchmarks.data`: Debian's documentation and kernel source, with near-duplicates of known
similarity.

Documents are runs of lines of one file, log-normal in length (mean about 2.2 kB). A seventh are copies of others with
one stretch replaced by text that occurs nowhere else, so long that the Jaccard similarity of the character 13-grams
comes near a target. More documents than there is text for are the same documents with letters exchanged: other
shingles, same statistics.
"""

from __future__ import annotations

import gzip
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from stages.lib.formats.documents import DocumentWriter

PACKAGES = (
    "python3.11-doc", "postgresql-doc-15", "git-doc", "perl-doc", "sqlite3-doc", "python-django-doc", "debian-handbook",
    "manpages", "manpages-dev", "linux-doc-6.1", "linux-source-6.1",
)  # fmt: skip
TARGETS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
"""Jaccard similarities that are planted."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def fetch(folder: Path) -> Path:
    """Download the packages and unpack them, once."""
    debs, tree = folder / "debs", folder / "tree"
    debs.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if not list(debs.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", "-qq", package], cwd=debs, check=True, stderr=subprocess.DEVNULL)
    if not (tree / "done").exists():
        for deb in sorted(debs.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(deb), str(tree)], check=True)
        (tree / "done").touch()
    return tree


def texts(tree: Path) -> Iterator[str]:
    """The text of every file: pages by resiliparse, manuals, then source code."""
    from resiliparse.extract.html2text import extract_plain_text

    for path in sorted(p for p in tree.rglob("*") if p.is_file() and not p.is_symlink()):
        try:
            if path.suffix in (".html", ".htm"):
                yield extract_plain_text(path.read_text(encoding="utf-8", errors="replace"))
            elif path.suffix == ".gz" and "man" in path.parts:
                yield gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
            elif path.suffix in (".txt", ".rst", ".pod"):
                yield path.read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError, EOFError):
            continue
    for archive in sorted(tree.rglob("linux-source-*.tar.xz")):
        with tarfile.open(archive, "r|xz") as stream:
            for member in stream:
                if (
                    member.isfile()
                    and member.name.endswith((".c", ".h", ".rst", ".S"))
                    and (file := stream.extractfile(member))
                ):
                    yield file.read().decode("utf-8", "replace")


def pieces(tree: Path, rng: random.Random) -> Iterator[str]:
    """Documents: consecutive lines of a file."""
    for text in texts(tree):
        held: list[str] = []
        size, target = 0, min(40_000, rng.lognormvariate(7.3, 0.85))
        for line in text.split("\n"):
            held.append(line)
            size += len(line) + 1
            if size >= target:
                yield "\n".join(held)
                held, size, target = [], 0, min(40_000, rng.lognormvariate(7.3, 0.85))


def replaced(text: str, target: float, filler: str) -> str:
    """A copy whose 13-grams have about the target similarity: r new characters cost r + 12 grams on either side."""
    if target == 1.0:
        return text.upper()
    grams = len(text) - 12
    stretch = max(1, round(grams * (1 - target) / (1 + target)) - 12)
    start = (len(text) - stretch) // 2
    return text[:start] + filler[:stretch] + text[start + stretch :]


def build(folder: Path, documents: int, seed: int = 1) -> Path:
    """Write the corpus of so many documents as `Documents` parts; returns its folder. Made once."""
    out = folder / f"corpus-{documents}"
    if (out / "done").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    source = pieces(fetch(folder), rng)
    with DocumentWriter(out) as writer:
        recent: list[str] = []
        first: list[str] = []
        shift = 0
        while writer.documents < documents:
            text = next(source, None)
            if text is None:  # all text is used: once more with other letters
                if shift == 0:
                    source_texts = first
                shift += 1
                moved = LETTERS[shift:] + LETTERS[:shift]
                change = str.maketrans(LETTERS + LETTERS.upper(), moved + moved.upper())
                source = (t.translate(change) for t in source_texts)
                continue
            if shift == 0 and documents > 500_000:
                first.append(text)
            number = writer.documents
            writer.add(str(number), text, "debian", f"doc:{number}")
            recent = [*recent[-30:], text]
            if number % 7 == 0 and len(recent) > 30 and len(recent[0]) > 600:
                target = TARGETS[number // 7 % len(TARGETS)]
                filler = "".join(rng.choices(LETTERS + "   ", k=len(recent[0])))
                writer.add(str(writer.documents), replaced(recent[0], target, filler), "planted", f"copy:{target}")
    (out / "done").touch()
    return out
