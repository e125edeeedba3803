"""Run `benchmarks` with a configuration in a process of its own: `python -m tests.support.mirror_run FOLDER CONFIG`.

huggingface_hub reads HF_ENDPOINT when it is imported. CONFIG: the stage's configuration as JSON. Prints the listing of
the suite as JSON; an error's class and line in "error".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from stages.benchmarks.run import run
from stages.benchmarks.spec import BenchmarksConfig
from stages.core.errors import StageError
from stages.core.testing import LocalContext
from stages.lib.formats import remote
from stages.lib.formats.suites import read_suite


def mirror(folder: Path, config: str) -> dict[str, Any]:
    """The listing, or the error."""
    ctx: LocalContext[Any] = LocalContext(folder, BenchmarksConfig.model_validate_json(config), node="benchmarks")
    try:
        run(ctx)
    except StageError as error:
        return {"error": [type(error).__name__, str(error)]}
    return {data_set.id: data_set.model_dump(mode="json") for data_set in read_suite(ctx.output("suite")).data_sets}


if __name__ == "__main__":
    remote.PAUSES = (0.05, 0.05)
    print(json.dumps(mirror(Path(sys.argv[1]), sys.argv[2])))
