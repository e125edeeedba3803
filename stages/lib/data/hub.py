"""Data sets of the Hugging Face hub at a fixed commit, or of a mirror of it on this machine, in the hub's own schemas.

    source = HubDataSet("allenai/tulu-3-sft-mixture", cache, revision="b14afda..")     # or mirror=folder:
    <folder>/<owner>/<name> source.license, source.revision, source.splits("default")["train"]

`datasets` says which files a configuration and split have. JSON and Parquet are read by our own readers (rows.py), as
`ingest` does: no schema is made up, and every remote read is held against its promise. Other kinds (CSV, text, Arrow),
and JSON whose card names a field in it, are loaded by `datasets`.

Code of a data set is never run: `datasets` 4 and later have no loading scripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import yaml
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from stages.core.errors import ConfigError, InputError
from stages.lib.data.hub_requests import call_hub
from stages.lib.data.rows import FileRows, Rows, Skipped, own_files


class HubDataSet:
    """One data set. Raises ConfigError when the mirror has no such folder, InputError when it cannot be had, InfraError
    when the hub fails.
    """

    def __init__(
        self,
        id: str,
        cache: Path,
        *,
        mirror: str | None = None,
        folder: Path | None = None,
        revision: str | None = None,
        where: str = "mirror",
    ) -> None:
        """cache: where downloads go; folder: the data set's own, whatever its name; where: name of the setting that
        holds the mirror or the folder, for errors.
        """
        self.id, self.revision, self._cache = id, revision, str(cache)
        self.folder = Path(mirror) / id if mirror is not None else folder
        self._place = "its folder" if folder is not None else "the mirror"
        datasets.disable_progress_bars()
        if self.folder is not None and not self.folder.is_dir():
            if mirror is None:
                raise ConfigError(f"{where} = '{folder}' is no folder of this machine: correct it")
            raise ConfigError(f"{where} = '{mirror}' has no folder {id}: mirror it, or leave the data set out")
        if self.folder is None:  # a branch moves: what it points at is fixed, and recorded
            self.revision = call_hub(self._named(""), lambda: HfApi().dataset_info(id, revision=self.revision)).sha
        try:
            self.license = _license(self._card())
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise self._unavailable("its card, README.md", error) from error

    def _card(self) -> str:
        if self.folder is None:

            def card_file() -> str | None:
                try:
                    return hf_hub_download(
                        self.id, "README.md", repo_type="dataset", revision=self.revision, cache_dir=self._cache
                    )
                except LocalEntryNotFoundError:  # the hub did not answer: nothing is known of a card
                    raise
                except EntryNotFoundError:  # a data set may have no card
                    return None

            path = call_hub(self._named("README.md"), card_file)
            return Path(path).read_text("utf-8") if path else ""
        card = self.folder / "README.md"
        return card.read_text("utf-8") if card.is_file() else ""

    def _named(self, part: str) -> str:
        return f"data set {self.id}" + (f", {part}" if part else "")

    def _unavailable(self, part: str, error: Exception) -> InputError:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        return InputError(f"{self._named(part)} cannot be had from {self._place}: {line}")

    def configs(self) -> list[str]:
        """The names of its configurations."""
        return sorted(self._ask("", lambda name, revision: datasets.get_dataset_config_names(name, revision=revision)))

    def splits(self, config: str, skip_bad_rows: bool = False) -> dict[str, Rows]:
        """All splits of one configuration. Remote files are fetched when rows of their split are first asked for.

        skip_bad_rows: a JSON line that cannot be read costs its row, and is counted in `FileRows.skipped`.
        """
        chosen, part = None if config == "default" else config, f"configuration {config}"
        builder = self._ask(
            part,
            lambda name, revision: datasets.load_dataset_builder(
                name, chosen, revision=revision, cache_dir=self._cache
            ),
        )
        files = own_files(builder)
        if files is None:
            loaded = self._ask(
                part,
                lambda name, revision: datasets.load_dataset(name, chosen, revision=revision, cache_dir=self._cache),
            )
            return {str(split): rows for split, rows in loaded.items()}
        declared = builder.info.splits or {}
        return {
            split: FileRows(
                f"{self._named(part)}, split {split}",
                of,
                Path(self._cache) / "files",
                builder.info.features,
                declared[split].num_examples if split in declared else None,
                Skipped() if skip_bad_rows else None,
            )
            for split, of in files.items()
        }

    def _ask(self, part: str, question: Callable[[str, str | None], Any]) -> Any:
        """Ask `datasets` for the mirror's folder, or the hub's data set at its revision."""
        if self.folder is None:
            return call_hub(self._named(part), lambda: question(self.id, self.revision))
        try:
            return question(str(self.folder), None)
        except Exception as error:  # of many kinds that share no base class, all about files of this machine
            raise self._unavailable(part, error) from error


def table(rows: Any) -> pa.Table:
    """All rows of a split."""
    return rows.table() if isinstance(rows, FileRows) else rows.with_format("arrow")[:]


def _license(card: str) -> str:
    """The licence that a data set's card names in its front matter; '' when it names none."""
    front = re.match(r"---\n(.*?)\n---", card, re.S)
    value = (yaml.safe_load(front.group(1)) or {}).get("license", "") if front else ""
    return " AND ".join(value) if isinstance(value, list) else str(value)
