"""The papers of a release folder, in the order in which each can speak of the ones before: `mof.yml`, the statement of
provenance about every file, its signed envelope; then, over all of it and release.json, the signature.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from flows.family import FamilyModel
from flows.release import chain as chains
from flows.release import mof_classes, mof_evidence, signing, statement
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger

NEEDED = ("in_toto_attestation", "license_expression", "mlcroissant", "model_signing")
"""What the extra `release` brings."""


def check(key: Path | None) -> None:
    """Raise ConfigError where something that the papers need is not there: known before a folder is written."""
    for module in NEEDED:
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"a release needs the package of {module}: pip install 'moxin[release]'")
    if key is not None:
        signing.private_key(key)


def write(
    ledger: Ledger, folder: Path, profile: str, model: FamilyModel, name: str, key: Path | None
) -> mof_classes.Openness:
    """Write what goes before release.json; the model's class of openness. folder: complete but for that; key: a private
    key that signs the statement.

    Raises InputError for a chain that cannot be read, ConfigError for the key.
    """
    chain = chains.read(ledger, profile, model.node)
    level = mof_evidence.write(ledger, folder, chain, model, name)
    statement.write(folder, chain, name)
    if key is not None:
        statement.sign(folder, key)
    return level
