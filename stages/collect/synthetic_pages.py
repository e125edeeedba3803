"""Synthetic web pages for `origin = "machine"`: package descriptions and docstrings of this machine, rendered as HTML
with navigation, advertisement and footer around them.
"""

from __future__ import annotations

import html
import random
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from typing import cast

from stages.collect.local_documents import Module, docstrings, package_modules, packages, split


@dataclass(frozen=True)
class Page:
    """A web page: address and HTML."""

    url: str
    html: str


def pages(limit: int, mirrored: float, seed: int) -> Iterator[Page]:
    """Documentation pages up to `limit` bytes of HTML: package descriptions and module references.

    A share of them is served by a second site too, with other navigation around the same words, as on the real web.
    """
    rng = random.Random(seed)
    modules = [m for n, d in packages().items() if split(n) == "web" for m in package_modules(n, d)]
    rng.shuffle(modules)
    used = 0
    for url, title, body in _chain(_descriptions(), modules):
        if used >= limit:
            return
        sites = ["docs.example.org", *(["mirror.example.net"] if rng.random() < mirrored else [])]
        for site in sites:
            page = _page(site, url, title, body, rng)
            used += len(page.html.encode())
            yield page


def _chain(bodies: Iterator[tuple[str, str, str]], modules: list[Module]) -> Iterator[tuple[str, str, str]]:
    yield from bodies
    for module in modules:
        texts = list(docstrings(module, shortest=200))
        if texts:
            sections = "".join(
                f"<h2>{html.escape(t.text.splitlines()[0][:80])}</h2>{_paragraphs(t.text)}" for t in texts
            )
            yield module.url, module.url.rpartition("/")[2], sections


def _descriptions() -> Iterator[tuple[str, str, str]]:
    """Package descriptions that are written in Markdown, rendered: (address, title, HTML)."""
    import markdown

    for name, dist in packages().items():
        metadata = cast(Message, dist.metadata)
        text = metadata.get_payload()
        kind = metadata.get("Description-Content-Type", "")
        if isinstance(text, str) and "markdown" in kind and len(text) > 500:
            yield f"pypi:{name}", name, markdown.markdown(text, extensions=["fenced_code", "tables"])


def _paragraphs(text: str) -> str:
    """Plain text as HTML paragraphs; indented blocks as preformatted text."""
    out = []
    for block in text.split("\n\n"):
        tag = "pre" if block.startswith((" ", "\t", ">>>")) else "p"
        out.append(f"<{tag}>{html.escape(block.strip(chr(10)))}</{tag}>")
    return "".join(out)


def _page(site: str, url: str, title: str, body: str, rng: random.Random) -> Page:
    """A whole page around a body: navigation, advertisement, footer, each site its own."""
    links = "".join(f'<li><a href="/page/{n}">Section {n}</a></li>' for n in rng.sample(range(400), 12))
    name = html.escape(title)
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{name} - {site}</title><script>var p=1;</script></head><body>
<header><nav class="menu"><ul>{links}</ul></nav><form><input name="q"><button>Search</button></form></header>
<aside class="sidebar"><h3>On this page</h3><ul>{links}</ul>\
<div class="ad">Sponsored: try {site} Pro today</div></aside>
<main><article><h1>{name}</h1>{body}</article></main>
<footer><p>Copyright {site}. All rights reserved. <a href="/privacy">Privacy policy</a> \
<a href="/terms">Terms</a></p></footer>
</body></html>"""
    address = url.replace(":", "/").replace("#", "/")
    return Page(f"https://{site}/{address}.html", page)
