"""Names for single results: `moxin tag`. A tag stays with its result when the node gets another one, and `moxin gc`
keeps what a tag points to, with all that it was made from.
"""

from __future__ import annotations

from flows.experiments.naming import NAME, unknown, user
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.core.records import TagRecord, now

LIKE_A_KEY = frozenset("0123456789abcdef")


def give(ledger: Ledger, name: str, result: StageResult, why: str = "", move: bool = False) -> TagRecord:
    """Give a result a name. move: although another result has it. Raises ConfigError for a name that is none, and for
    one that another result has, or that somebody else gave meanwhile.
    """
    check(name)
    record = TagRecord(
        name=name, key=result.key, node=result.node, why=why, created_by=user(), created_at=now()
    )  # fmt: skip
    there = ledger.tag(name)
    if there is not None and there[0].key == result.key and not why:
        return there[0]
    if there is not None and there[0].key != result.key and not move:
        raise ConfigError(f"tag '{name}' {_is(there[0])}; --move gives it to {result.node} {result.key[:12]}")
    if not ledger.set_tag(record, there[1] if there else None):
        raise ConfigError(f"tag '{name}' was given by somebody else meanwhile: look at it with 'moxin tag --list'")
    return record


def check(name: str) -> None:
    """Raise ConfigError for a tag that is no name."""
    if not NAME.fullmatch(name) or set(name) <= LIKE_A_KEY:
        raise ConfigError(
            f"tag {name!r}: a name has letters, digits, '.', '_' and '-', begins with a letter or a digit, is 63 long"
            " at most, and does not read like a key"
        )


def opened(ledger: Ledger, name: str) -> TagRecord:
    """The tag of that name. Raises ConfigError, with the nearest name, where there is none."""
    there = ledger.tag(name) if NAME.fullmatch(name) else None
    if there is None:
        raise unknown("tag", name, [each.name for each in ledger.tags()])
    return there[0]


def take(ledger: Ledger, name: str) -> TagRecord:
    """Take a name away; its result stays. Raises ConfigError where there is no such tag."""
    record = opened(ledger, name)
    ledger.remove_tag(name)
    return record


def _is(record: TagRecord) -> str:
    return f"is {record.node} {record.key[:12]} already (given by {record.created_by}, {record.created_at[:10]})"
