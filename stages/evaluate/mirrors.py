"""The data sets of all suites that are wired to an evaluation, found by the hub's names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stages.lib.formats.suites import DataSet, read_suite


@dataclass(frozen=True)
class Found:
    """One configuration of a data set in a mirror. folder: its own, as `datasets.load_dataset` reads it."""

    data_set: DataSet
    config: str
    folder: Path

    @property
    def synthetic(self) -> bool:
        """Whether its questions were made here, in the data set's schema."""
        return self.data_set.origin == "machine"

    def fingerprint(self, split: str) -> str | None:
        """SHA-256 of a split; None where the mirror does not say."""
        return self.data_set.fingerprint.get(self.config, {}).get(split)


class Mirrors:
    """Mirrors in the order in which they are wired. A configuration is taken from the first that holds it."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._listings = [(folder, read_suite(folder)) for folder in folders]

    @property
    def names(self) -> list[str]:
        """Every data set that is held."""
        return sorted({data_set.id for _, listing in self._listings for data_set in listing.data_sets})

    def find(self, id: str, config: str | None) -> Found | None:
        """A configuration (None: the one that is read without a name) of a data set; None where nobody has it."""
        for folder, listing in self._listings:
            data_set = listing.find(id)
            if data_set and (name := data_set.config_name(config)) is not None:
                return Found(data_set, name, folder / id)
        return None


def joint_fingerprint(splits: Iterable[tuple[Found, str]]) -> str | None:
    """Of several (configuration, split): a single one's own, else SHA-256 over `id/config/split sha` lines; None
    where one is not known.
    """
    known = {f"{one.data_set.id}/{one.config}/{split}": one.fingerprint(split) for one, split in splits}
    if not known or None in known.values():
        return None
    if len(known) == 1:
        return next(iter(known.values()))
    return hashlib.sha256("".join(f"{name} {sha}\n" for name, sha in sorted(known.items())).encode()).hexdigest()
