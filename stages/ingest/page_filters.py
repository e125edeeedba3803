"""What `heuristics` needs: a language model and lists of banned addresses, each the file that is declared."""

from __future__ import annotations

from pathlib import Path

from stages.core.errors import ConfigError
from stages.core.preflight import require_digest
from stages.ingest import bounded_process
from stages.ingest.records import Record
from stages.ingest.spec import IngestConfig
from stages.ingest.url_filter import banned


def check(node: str, config: IngestConfig) -> None:
    """Raise ConfigError when a language is to be kept and no model is there, InputError when a file is not the one that
    is declared.
    """
    if config.heuristics == "none":
        return
    if config.language != "none":
        if config.language_model is None:
            raise ConfigError(
                f"{node}.language_model is unset: name fastText's lid.176.bin, or set {node}.language = 'none'"
            )
        path = Path(config.language_model)
        if not path.is_file():
            raise ConfigError(f"{node}.language_model = {path}: no such file")
        require_digest(f"{node}.language_model", path, config.language_model_sha256)
    banned(config.banned, config.banned_sha256, f"{node}.banned")


def apply(record: Record, config: IngestConfig) -> tuple[str, str]:
    """(the record's text with its bad lines gone, ''), or (its text, the rule that it breaks)."""
    if config.banned and (reason := banned(config.banned, config.banned_sha256, "banned").reason(record.url)):
        return record.text, reason
    model = config.language_model if config.language != "none" else None
    return bounded_process.shared().call("clean", record.text.encode(), language_model=model)
