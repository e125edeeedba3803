"""A cluster that runs array requests in this process, for the tests of array jobs."""

from __future__ import annotations

from collections.abc import Callable

from stages.core.task_objects import answer_array, objects_at
from stages.lib.data import job_array


class Cluster:
    """Stands in for the launcher and Slurm: does the elements here and now, but for those that are lost."""

    def __init__(self, elements: int = 3, lost: Callable[[int, int], bool] = lambda array, element: False) -> None:
        self.elements, self.lost, self.asked = elements, lost, list[int]()

    def ask(self, place: str, name: str, count: int) -> None:
        number = len(self.asked)
        self.asked.append(count)
        elements = min(count, self.elements)
        states = {"COMPLETED": 0, "FAILED": 0, "NODE_FAIL": 0}
        for element in range(elements):
            if self.lost(number, element):
                states["NODE_FAIL"] += 1
                continue
            try:
                job_array.main([place, name, str(element), str(elements)])
                states["COMPLETED"] += 1
            except Exception:
                states["FAILED"] += 1
        answer_array(objects_at(place), name, {k: v for k, v in states.items() if v})
