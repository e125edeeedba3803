"""One run of the small pipeline in a process of its own, for the campaign to break:

    python -m tests.support.campaign_run HOME RUN STORE WAY [OVERRIDE ...]

WAY: "process"; "ranks": the first training in two processes of torchrun; "container": all in containers of the image
that MOXIN_CAMPAIGN_IMAGE names; "array": all as jobs of Slurm. Prints each node's key and digests when all are there.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import stages
from flows import environments, garbage_collection
from flows.environments import Image
from flows.launch import Launcher
from flows.launch.process import ProcessLauncher
from flows.settings import Settings
from stages.core.ledger import Ledger
from stages.core.messages import StageResult, StoreAddress
from stages.core.store import Store
from tests.support.paths import PROBES

IMAGE = "MOXIN_CAMPAIGN_IMAGE"
RANKS = "resources.train_1.nproc_per_node=2"


def launcher_of(way: str, settings: Settings) -> Launcher:
    """Who runs the stages."""
    if way == "array":
        from flows.launch.slurm import Site, SlurmLauncher

        return SlurmLauncher(settings, Site(poll_seconds=0.5))
    if way != "container":
        return ProcessLauncher(settings)
    from flows.launch.docker import DockerLauncher

    environments.stage_image = lambda stage, env: Image("probe", "data", os.environ[IMAGE], "", {})
    return DockerLauncher(settings)


def digests(result: StageResult) -> list[str]:
    """What a result's bytes are known by."""
    return [manifest.digest for manifest in result.outputs.values()]


def main(home: Path, run_id: str, address: StoreAddress, way: str, overrides: list[str]) -> None:
    """As `moxin run` does it, without Prefect."""
    stages.__path__.append(str(PROBES))
    from tests.support import probe_pipeline

    settings = Settings(
        home=home,
        store=address,
        prefect_api_url="http://127.0.0.1:9/api",
        external_store=True,
        external_prefect=False,
        credentials={name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
        prefect_auth="moxin:not-for-stages",
    )
    sys.executable = probe_pipeline.python_with_probes(home)
    ledger, launcher = Ledger(Store(settings.store)), launcher_of(way, settings)
    pipeline = probe_pipeline.small_pipeline()
    launcher.reap()
    for line in garbage_collection.collect(home, ledger):
        print(line, file=sys.stderr)
    profile = probe_pipeline.profile_of(pipeline, home, *overrides, *([RANKS] if way == "ranks" else []))
    run = probe_pipeline.execution(pipeline, profile, ledger, home, launcher, run_id=run_id)
    results = probe_pipeline.run_nodes(run, pipeline)
    print(json.dumps({name: [result.key, digests(result)] for name, result in results.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], StoreAddress.model_validate_json(sys.argv[3]), sys.argv[4], list(sys.argv[5:]))
