"""Run nodes of a profile whose data is the hub's, in a process of its own: `python -m tests.support.hub_stage PROFILE
FOLDER
NODE..`.

huggingface_hub reads HF_ENDPOINT when it is imported. Prints {node: {"stats": .., "rows": [..]}} as JSON; an error's
class and line in "error".
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from flows import profiles
from stages.core.artifacts import RawFiles
from stages.core.errors import StageError
from stages.core.testing import LocalContext, local_artifact
from stages.lib.data.source_lists import expanded
from stages.lib.formats.documents import read_documents
from stages.lib.formats.sources import write_listing
from stages.pipeline import PIPELINE


def run(profile: profiles.Profile, name: str, root: Path) -> dict[str, Any]:
    """One node on a LocalContext; unpinned sources as the main branch has them."""
    node, config, inputs = PIPELINE[name], profile.configs[name], {}
    if node.stage == "ingest":
        (root / "raw").mkdir(parents=True)
        port = node.wires["raw"][0].port
        files = [
            f.model_copy(update={"uri": f.uri if "@" in f.uri else f"{f.uri}@{'f' * 40}"})
            for f in getattr(profile.configs["collect"], port)
        ]
        write_listing(root / "raw", [file for source in files for file in expanded(source, port)])
        inputs = {"raw": [local_artifact(RawFiles, root / "raw")]}
    ctx: LocalContext[Any] = LocalContext(root, config, inputs, node=name)
    try:
        importlib.import_module(f"stages.{node.stage}.run").run(ctx)
    except StageError as error:
        return {"error": [type(error).__name__, str(error)]}
    rows = list(read_documents(ctx.output("documents"))) if node.stage == "ingest" else []
    return {"stats": ctx.stats, "rows": rows}


if __name__ == "__main__":
    _, chosen, folder, *names = sys.argv
    loaded = profiles.load(
        chosen,
        PIPELINE,
        ("conversations.heldout=0.2", "preferences.heldout=0.2", "problems.heldout=0.2", "problems.embedding=ngrams"),
    )
    print(json.dumps({name: run(loaded, name, Path(folder) / name) for name in names}, default=str))
