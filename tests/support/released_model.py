"""A released folder of the small pipeline's model, as `moxin release` lays one out."""

from __future__ import annotations

import json
from pathlib import Path

from flows.release import statement
from flows.release.chain import Chain
from stages.core.files import file_sha256
from stages.core.ledger import Ledger


def released(ledger: Ledger, chain: Chain, folder: Path, key: Path | None = None) -> Path:
    """Write the model of a chain with a card, its statement and release.json."""
    folder.mkdir(parents=True)
    manifest = chain.root.result.outputs["model"]
    for entry in manifest.files:
        ledger.store.download(entry.object, folder / entry.path, entry.sha256)
    (folder / "README.md").write_text("# A model\n")
    statement.write(folder, chain, folder.name)
    if key is not None:
        statement.sign(folder, key)
    files = {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.iterdir())}
    value = {"key": chain.root.result.key, "digest": manifest.digest, "files": files}
    (folder / "release.json").write_text(json.dumps(value))
    return folder
