"""Data sets of the Hugging Face hub at a fixed commit, or of a mirror of it on this machine, in the hub's own schemas.

    source = HubDataSet("allenai/tulu-3-sft-mixture", cache, revision="b14afda..")     # or mirror=folder: <folder>/<owner>/<name>
    source.license, source.revision, source.splits("default")["train"]

Code of a data set is never run: `datasets` 4 and later have no loading scripts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import yaml
from huggingface_hub import HfApi, hf_hub_download

from stages.core.contracts import ConfigError, InputError


class HubDataSet:
    """One data set. Raises ConfigError when the mirror has no such folder, InputError when it cannot be had."""

    def __init__(self, id: str, cache: Path, *, mirror: str | None = None, revision: str | None = None, where: str = "mirror") -> None:
        """cache: where downloads go; where: name of the setting that holds the mirror, for errors."""
        self.id, self.revision, self._cache = id, revision, str(cache)
        self.folder = Path(mirror) / id if mirror is not None else None
        datasets.disable_progress_bars()
        if self.folder is not None and not self.folder.is_dir():
            raise ConfigError(f"{where} = '{mirror}' has no folder {id}: mirror it, or leave the data set out")
        try:
            if self.folder is None:  # a branch moves: what it points at is fixed, and recorded
                self.revision = HfApi().dataset_info(id, revision=self.revision).sha
            self.license = _license(self._card())
        except Exception as error:  # huggingface_hub raises many kinds, from offline mode to HTTP errors
            raise self._unavailable("", error) from error

    def _card(self) -> str:
        if self.folder is None:
            return Path(hf_hub_download(self.id, "README.md", repo_type="dataset", revision=self.revision, cache_dir=self._cache)).read_text("utf-8")
        card = self.folder / "README.md"
        return card.read_text("utf-8") if card.is_file() else ""

    def _unavailable(self, config: str, error: Exception) -> InputError:
        what = f"data set {self.id}{config and ', configuration '}{config}"
        return InputError(f"{what} cannot be had{' from the mirror' if self.folder else ''}: {(str(error).splitlines() or [type(error).__name__])[0]}")

    def configs(self) -> list[str]:
        """The names of its configurations."""
        try:
            return sorted(datasets.get_dataset_config_names(str(self.folder or self.id), revision=self.revision if not self.folder else None))
        except Exception as error:  # as above
            raise self._unavailable("", error) from error

    def splits(self, config: str) -> dict[str, datasets.Dataset]:
        """All splits of one configuration, memory-mapped, in the schema of the hub."""
        name = None if config == "default" else config
        revision = None if self.folder else self.revision
        try:
            found: Any = datasets.load_dataset(str(self.folder or self.id), name, revision=revision, cache_dir=self._cache)
            return {str(split): rows for split, rows in found.items()}
        except Exception as error:  # as above
            raise self._unavailable(config, error) from error


def _license(card: str) -> str:
    """The licence that a data set's card names in its front matter; '' when it names none."""
    front = re.match(r"---\n(.*?)\n---", card, re.S)
    value = (yaml.safe_load(front.group(1)) or {}).get("license", "") if front else ""
    return " AND ".join(value) if isinstance(value, list) else str(value)
