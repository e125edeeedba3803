"""A cluster that runs array requests in this process, for the tests of array jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from stages.lib.data import job_array


class Cluster:
    """Stands in for the launcher and Slurm: does the elements here and now, but for those that are lost."""

    def __init__(self, elements: int = 3, lost: Callable[[int, int], bool] = lambda array, element: False) -> None:
        self.elements, self.lost, self.asked = elements, lost, list[int]()

    def ask(self, path: Path, count: int) -> None:
        number = len(self.asked)
        self.asked.append(count)
        states = {"COMPLETED": 0, "FAILED": 0, "NODE_FAIL": 0}
        for element in range(self.elements):
            if self.lost(number, element):
                states["NODE_FAIL"] += 1
                continue
            try:
                job_array.main([str(path), str(element), str(self.elements)])
                states["COMPLETED"] += 1
            except Exception:
                states["FAILED"] += 1
        path.with_suffix(".over").write_text(json.dumps({"states": {k: v for k, v in states.items() if v}}))
