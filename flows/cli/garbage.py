"""`moxin gc`: what nobody needs any more, in the store and on this machine's disks."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.common import JsonOption, ProfileOption, load_profile, open_ledger, out, print_json, progress
from flows.terminal_text import line
from stages.core.errors import ConfigError

if TYPE_CHECKING:
    from flows.settings import Settings

AGES = {"results": "results_after", "unfinished": "work_after", "rehearsals": "rehearsals_after"}
"""What goes by its age, and the limit that says when."""


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="remove it, instead of saying only what would go")] = False,
    also: Annotated[
        list[str],
        typer.Option(
            "--also",
            metavar="KIND[=DAYS]",
            help="'results=30': results of that age that no node of a profile and no tag has, nor was made from;"
            " 'unfinished=7': checkpoints and finished tasks of keys without a result, untouched for so long;"
            " 'rehearsals=7': rehearsals untouched for so long;"
            " 'damaged': what 'moxin repair' set aside (repeat as needed)",
        ),
    ] = [],  # noqa: B006
    cache_gib: Annotated[
        float | None,
        typer.Option("--cache-gib", min=0, help="what the local cache may keep, instead of MOXIN_CACHE_BYTES"),
    ] = None,
    min_age: Annotated[
        float, typer.Option("--min-age", metavar="HOURS", min=0, help="what was written later stays")
    ] = 1.0,
    profile: ProfileOption = "tiny",
    json_: JsonOption = False,
) -> None:
    """Say what nobody needs any more; remove it with --yes.

    And what it takes up, and what making it anew would cost.

    Nothing goes that a result which can be read refers to, that somebody may be at work on, or that the next attempt
    would go on from, unless --also says so. The profile is the one whose resources price the attempts.
    """
    from flows import recompute_cost
    from flows.garbage_items import remove_all
    from flows.settings import Settings

    if cache_gib is not None and not math.isfinite(cache_gib):
        raise ConfigError(f"--cache-gib {cache_gib:g}: give GiB, 0 or more")
    limits, settings = _limits(also, min_age), Settings.load()
    _, values = load_profile(profile, [])
    removed: dict[Any, tuple[int, int]] = {}
    stopped = False
    with open_ledger(settings) as ledger, progress(json_) as tell:
        items = _find(settings, ledger, limits, cache_gib, tell)
        costs = recompute_cost.of_all(ledger, items, values)
        goes = [item for item in items if not item.kept] if yes else []
        try:
            for item, gone in remove_all(goes):
                removed[item] = gone
                tell(f"removed {len(removed):,} of {len(goes):,}: {item.where}")
        except KeyboardInterrupt:
            stopped = True
    rows = _rows(items, costs, removed, recompute_cost.RecomputeCost())
    if json_:
        details = [_item(item, costs[item], removed.get(item)) for item in items]
        print_json({"removed": yes, "interrupted": stopped, "kinds": rows, "items": details})
    else:
        _tell(rows, yes, stopped)
    if stopped:
        raise typer.Exit(130)


def _find(
    settings: Settings, ledger: Any, limits: Any, cache_gib: float | None, tell: Callable[[str], None]
) -> list[Any]:
    from flows import garbage_collection
    from flows.store_garbage import StoreGarbage

    store = StoreGarbage(ledger, limits, lambda count: tell(f"looked at {count:,} objects"))
    budget = None if cache_gib is None else int(cache_gib * 2**30)
    return [*store.find(), *garbage_collection.local(settings.home, ledger, budget, _shared(settings))]


def _limits(also: list[str], hours: float) -> Any:
    """What may go, from the options. Raises ConfigError."""
    from flows.garbage_items import DAY, HOUR, Limits

    fields: dict[str, Any] = {}
    for word in also:
        kind, _, days = word.partition("=")
        try:
            if kind == "damaged" and not days:
                fields["damaged"] = True
            else:
                fields[AGES[kind]] = _age(days) * DAY
        except (KeyError, ValueError):
            kinds = ", ".join(f"'{kind}=DAYS'" for kind in AGES)
            raise ConfigError(f"--also {word}: give {kinds} or 'damaged'") from None
    return Limits(min_age=hours * HOUR, **fields)


def _age(text: str) -> float:
    """Days. Raises ValueError for what no age can be compared with: nothing is younger than NaN."""
    days = float(text)
    if not 0 <= days < math.inf:
        raise ValueError
    return days


def _shared(settings: Settings) -> Path | None:
    """The folder that Slurm's jobs share, where there is one."""
    from flows.launch.slurm_scripts import Site

    with contextlib.suppress(ConfigError):  # no cluster, or one that is not set up: nothing was run on it
        folder = Path(Site.load().folder or settings.home / "slurm")
        return folder if folder.is_dir() else None
    return None


def _item(item: Any, cost: Any, removed: tuple[int, int] | None) -> dict[str, Any]:
    row = {name: getattr(item, name) for name in ("kind", "where", "objects", "bytes", "key", "kept")}
    gone = None if removed is None else {"objects": removed[0], "bytes": removed[1]}
    return row | {"anew": cost.row(), "removed": gone}


def _rows(places: list[Any], costs: Any, removed: Any, nothing: Any) -> list[dict[str, Any]]:
    """Sums by kind: what goes first, then what stays."""
    groups: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for item in places:
        groups[item.kept, item.kind].append(item)
    rows: list[dict[str, Any]] = []
    for (kept, kind), items in sorted(groups.items()):
        anew: Any = sum((costs[item] for item in items), nothing)
        rows.append(
            {
                "kind": kind,
                "kept": kept,
                "places": len(items),
                "objects": sum(item.objects for item in items),
                "bytes": sum(item.bytes for item in items),
                "removed_objects": sum(removed.get(item, (0, 0))[0] for item in items),
                "removed_bytes": sum(removed.get(item, (0, 0))[1] for item in items),
                "anew": anew.row(),
                "anew_text": anew.text(),
                "first": items[0].where,
            }
        )
    return rows


def _tell(rows: list[dict[str, Any]], yes: bool, stopped: bool) -> None:
    for row in rows:
        what = f"{row['objects']:,} objects, {row['bytes']:,} bytes in {row['places']:,} places"
        anew = f"; to make it anew: {row['anew_text']}" if row["anew_text"] != "nothing" else ""
        if row["kept"]:
            out.print(line((row["kind"], "bold"), f": {what} stay: {row['kept']}{anew}"), soft_wrap=True)
        elif yes:
            gone = f"removed {row['removed_objects']:,} objects, {row['removed_bytes']:,} bytes"
            left = (
                ""
                if row["removed_bytes"] >= row["bytes"]
                else f" of {what} (the rest is in use, or was needed by then)"
            )
            out.print(line((row["kind"], "bold"), f": {gone}{left}"), soft_wrap=True)
        else:
            out.print(line((row["kind"], "bold"), f": {what}{anew} (first: {row['first']})"), soft_wrap=True)
    goes = [row for row in rows if not row["kept"]]
    if stopped:
        out.print("interrupted: what is named above is gone, the rest is as it was")
    elif not goes:
        out.print("there is nothing to remove")
    elif not yes:
        out.print(f"nothing was removed; --yes frees {sum(row['bytes'] for row in goes):,} bytes")
