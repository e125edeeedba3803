"""A model of random weights, the harness, and its index, for all tests of the stage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from stages.evaluate.run import offline
from tests.support.evaluation import make_model


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The only module that imports the harness (8 CPU seconds), in the environment that the stage makes for it."""
    environment, threads = dict(os.environ), torch.get_num_threads()
    offline(tmp_path_factory.mktemp("scratch"))
    from torch.utils import collect_env

    from stages.evaluate import harness

    describe = collect_env.get_pretty_env_info
    collect_env.get_pretty_env_info = lambda: ""  # a direct call ends with `pip list`: seconds, and no part of a score
    yield harness
    collect_env.get_pretty_env_info = describe
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def index(harness: ModuleType) -> Any:
    from stages.evaluate.tasks import TaskIndex

    return TaskIndex()
