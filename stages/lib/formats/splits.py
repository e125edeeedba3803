"""Writing checked rows into the outputs `train` and `heldout`, with what was kept and removed counted by source,
licence and reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from stages.core.context import Context
from stages.core.errors import InputError
from stages.lib.formats.examples import ExampleWriter, Reject, RowT, Sieve

PORTS = ("train", "heldout")


def write_split(
    ctx: Context[Any],
    gather: Callable[[Context[Any], Reject], Iterable[RowT]],
    writer: type[ExampleWriter[RowT]],
    fault: Callable[[RowT], str | None],
    is_heldout: Callable[[RowT], bool],
) -> None:
    """Let the good rows that `gather` yields through, each once, to one of the two outputs, and state the counts.

    Raises InputError when an output would be empty, saying what became of the rows.
    """
    sieve = Sieve(fault)
    counts: dict[str, Counter[str]] = {port: Counter() for port in PORTS}
    licenses: dict[str, Counter[str]] = {port: Counter() for port in PORTS}
    with writer(ctx.output("train")) as train, writer(ctx.output("heldout")) as heldout:
        for row in sieve(gather(ctx, sieve.reject)):
            side = is_heldout(row)
            counts[PORTS[side]][row["source"]] += 1
            licenses[PORTS[side]][row["license"]] += 1
            (heldout if side else train).add(row)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(sieve.removed.items())) or "none was removed"
    for port, out in zip(PORTS, (train, heldout), strict=True):
        if not out.rows:
            hint = f"; raise {ctx.node}.heldout" if port == "heldout" else ""
            raise InputError(
                f"{ctx.node}: no row is left for {port} of {sieve.kept + sum(sieve.removed.values())} ({reasons}){hint}"
            )
        ctx.describe(
            port,
            meta={
                "rows": out.rows,
                "text_bytes": out.text_bytes,
                "per_source": dict(sorted(counts[port].items())),
                "per_license": dict(sorted(licenses[port].items())),
            },
        )
    ctx.stat(
        rows=sieve.kept + sum(sieve.removed.values()),
        train=train.rows,
        heldout=heldout.rows,
        removed=dict(sorted(sieve.removed.items())),
    )
