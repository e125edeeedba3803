"""Lists of banned addresses, applied as DCLM-BASELINE's configuration does (dclm_baseline_refinedweb.yaml;
url_substring_filter).

The lists are data that a user brings: DCLM's word lists lie in its repository, its list of domains does not. Each is a
text file, one entry a line:

| list | a page goes when |
| --- | --- |
| domains | the host of its address is an entry |
| strict | its address holds an entry, `-` and `.` left out |
| hard | its address holds an entry as a whole word |
| soft | its address holds two different entries as whole words |

Case never counts. Upstream cuts the letters `www` out of a host and leaves the dot behind them, so that no such host
ever matches; here `www.` goes as a whole.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stages.core.errors import ConfigError
from stages.core.preflight import require_digest


@dataclass(frozen=True)
class UrlBlocklist:
    """The lists, ready to be asked."""

    domains: frozenset[str] = frozenset()
    strict: re.Pattern[str] | None = None
    hard: re.Pattern[str] | None = None
    soft: re.Pattern[str] | None = None

    def reason(self, url: str) -> str | None:
        """The rule that an address breaks; None where it breaks none, or is empty."""
        url = url.lower()
        if self.domains and _host(url) in self.domains:
            return "banned domain"
        if self.strict and self.strict.search(url.replace("-", "").replace(".", "")):
            return "banned word in the address, anywhere"
        if self.hard and self.hard.search(url):
            return "banned word in the address"
        if self.soft and len(set(self.soft.findall(url))) >= 2:
            return "two suspicious words in the address"
        return None


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.removeprefix("www.")
    except ValueError:  # brackets that are no IPv6 address
        return ""


def banned(paths: Mapping[str, str], digests: Mapping[str, str], where: str) -> UrlBlocklist:
    """Read the lists once for each process. Raises ConfigError or InputError naming the list that is missing or
    another.
    """
    return _read(tuple(sorted(paths.items())), tuple(sorted(digests.items())), where)


@functools.cache
def _read(paths: tuple[tuple[str, str], ...], digests: tuple[tuple[str, str], ...], where: str) -> UrlBlocklist:
    words: dict[str, list[str]] = {}
    for name, path in paths:
        if not Path(path).is_file():
            raise ConfigError(f"{where}.{name} = {path}: no such file")
        require_digest(f"{where}.{name}", Path(path), dict(digests).get(name))
        words[name] = sorted(
            {line.strip().lower() for line in Path(path).read_text("utf-8", "replace").splitlines()} - {""}
        )
    return UrlBlocklist(
        frozenset(words.get("domains", ())),
        _pattern(words.get("strict"), ""),
        _pattern(words.get("hard"), r"\b"),
        _pattern(words.get("soft"), r"\b"),
    )


def _pattern(entries: list[str] | None, edge: str) -> re.Pattern[str] | None:
    return (
        re.compile(f"{edge}(?:{'|'.join(map(re.escape, sorted(entries, key=len, reverse=True)))}){edge}")
        if entries
        else None
    )
