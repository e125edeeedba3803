"""The flow of a deployment over the small pipeline of probe stages: what a worker runs for the campaign."""

import os
import sys
from pathlib import Path

import stages
from tests.support.paths import PROBES

stages.__path__.append(str(PROBES))

from flows import flow, profiles  # noqa: E402 - after the probes are to be found
from tests.support import probe_pipeline  # noqa: E402
from tests.support.campaign_prefect import MARK  # noqa: E402

_folder, _load = Path(os.environ["MOXIN_HOME"]), profiles.load
flow.PIPELINE = probe_pipeline.small_pipeline()
probe_pipeline.profile_of(flow.PIPELINE, _folder)
profiles.load = lambda name, pipeline, overrides=(): _load("test", pipeline, overrides, _folder)  # type: ignore[misc]
if MARK in os.environ:
    sys.executable = probe_pipeline.python_with_probes(_folder)
moxin = flow.moxin
