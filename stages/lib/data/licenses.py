"""Licences of many rows as one expression."""

from __future__ import annotations

from collections.abc import Iterable


def licenses(expressions: Iterable[str]) -> str:
    """The licences as one SPDX expression, NOASSERTION for those that state none."""
    names = sorted({part for license in set(expressions) for part in (license or "NOASSERTION").split(" AND ")})
    return " AND ".join(f"({name})" if " OR " in name else name for name in names)
