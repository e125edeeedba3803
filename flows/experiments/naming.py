"""Which settings an experiment's name stands for: said once, when it begins."""

from __future__ import annotations

import difflib
import getpass
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from flows import profiles
from flows.plan import differences
from flows.profiles import Profile
from flows.stage_job import git_commit
from stages.core.errors import ConfigError
from stages.core.graph import Pipeline
from stages.core.ledger import Ledger
from stages.core.records import ExperimentRecord, now
from stages.core.shrinking import Level

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
DEFAULT_PROFILE = "tiny"
"""Of every command that is given none."""
BY = "by:"
"""Of a flow run's tag that says who started it."""
SHOWN = 4
"""Settings that differ, named one by one."""


def begun(
    ledger: Ledger, name: str, profile: str, pipeline: Pipeline, overrides: Sequence[str] = (), why: str = ""
) -> Profile:
    """The settings of an experiment, which is recorded when nobody has the name yet.

    An experiment that exists is gone on with: its own settings hold, and `overrides` may add what is no part of a key
    (a launcher, workers), or repeat what it has. Raises ConfigError for a name that is none, and for other settings
    than the experiment's.
    """
    check_name("--experiment", name)
    if name in (*profiles.names(), *get_args(Level)):
        raise ConfigError(f"--experiment {name!r}: a profile or a rehearsal has this name; choose another one")
    overrides = pinned(ledger, overrides)
    record = ledger.experiment(name)
    if record is None:
        values = replace(profiles.load(profile, pipeline, overrides), experiment=name)
        record = ExperimentRecord(
            name=name, profile=profile, overrides=tuple(overrides), why=why, created_by=user(), created_at=now(),
            git_commit=git_commit(),
        )  # fmt: skip
        if ledger.add_experiment(record):
            return values
        record = ledger.experiment(name) or record  # somebody else was first
    return _settings(record, profile, pipeline, overrides)


def opened(
    ledger: Ledger, name: str, pipeline: Pipeline, profile: str = DEFAULT_PROFILE, overrides: Sequence[str] = ()
) -> Profile:
    """The settings of an experiment that exists. Raises ConfigError, with the nearest name, where there is none."""
    record = ledger.experiment(name)
    if record is None:
        raise unknown("experiment", name, [each.name for each in ledger.experiments()])
    return _settings(record, profile, pipeline, pinned(ledger, overrides))


def pinned(ledger: Ledger, overrides: Sequence[str]) -> tuple[str, ...]:
    """These settings with the whole key of each result that one takes, where it names a tag or a beginning: an
    experiment stays what it was when a tag moves. Raises ConfigError.
    """
    from flows.experiments.results import whole_key

    fixed: list[str] = []
    for override in overrides:
        path, equals, value = override.partition("=")
        if equals and path.strip().startswith("adopt."):
            override = f"{path.strip()}={whole_key(ledger, value.strip(), override)}"
        fixed.append(override)
    return tuple(fixed)


def check_name(what: str, name: str) -> None:
    """Raise ConfigError for what is no name. what: of what, as its user knows it."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r}: a name has letters, digits, '.', '_' and '-', begins with a letter or a digit, and is 63"
            " long at most"
        )


def unknown(what: str, name: str, known: Sequence[str]) -> ConfigError:
    """What to say of a name that nothing has: the nearest one, or all."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(known) or 'none'}"
    return ConfigError(f"no {what} '{name}'; {hint}")


def view(
    ledger: Ledger, pipeline: Pipeline, profile: str, experiment: str = "", overrides: Sequence[str] = ()
) -> Profile:
    """What a command that reads goes by: the profile's settings, or an experiment's."""
    profile, experiment = split(profile, experiment)
    if experiment:
        return opened(ledger, experiment, pipeline, profile, overrides)
    return profiles.load(profile, pipeline, overrides)


def split(profile: str, experiment: str = "") -> tuple[str, str]:
    """A profile and an experiment of what a person wrote: `tiny@lr1e3` names both. Raises ConfigError."""
    name, at, within = profile.partition("@")
    if at and experiment not in ("", within):
        raise ConfigError(f"--profile {profile} --experiment {experiment}: name one experiment")
    return name, within or experiment


def user() -> str:
    """Who begins an experiment: MOXIN_USER, or the name of this account; its number where it has no name."""
    try:
        return os.environ.get("MOXIN_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _settings(record: ExperimentRecord, profile: str, pipeline: Pipeline, overrides: Sequence[str]) -> Profile:
    if profile not in (record.profile, DEFAULT_PROFILE):
        raise ConfigError(f"experiment '{record.name}' is of profile '{record.profile}', not of '{profile}'")
    recorded = profiles.load(record.profile, pipeline, record.overrides)
    if not overrides:
        return replace(recorded, experiment=record.name)
    values = profiles.load(record.profile, pipeline, (*record.overrides, *overrides))
    if differing := settings_between(recorded, values):
        more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise ConfigError(
            f"experiment '{record.name}' has other settings: {'; '.join(differing[:SHOWN])}{more}. Give these settings"
            " a name of their own, or leave --set out to go on with the experiment's"
        )
    return replace(values, experiment=record.name)


def settings_between(one: Profile, other: Profile) -> list[str]:
    """What decides results and differs between two profiles, as 'node.field old -> new', a line each."""
    taken = differences("adopt", one.settings.adopt, other.settings.adopt)
    return taken + [
        text
        for name, config in one.configs.items()
        for text in differences(name, config.identity(), other.configs[name].identity())
    ]
