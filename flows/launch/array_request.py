"""An array of jobs that a stage asks its launcher for (`stages/lib/data/job_array.py`), and the launcher's answer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.launch.base import Job
from stages.core.context import TaskObjects
from stages.core.errors import InfraError
from stages.core.task_objects import OVER, answer_array, first_part, objects_at, state_of, work_prefix


class ArrayRequest(BaseModel):
    """What a stage's event "array" says: where its jobs lie, how many elements can share them, and what one needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: str
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+-[0-9a-f]{8}$")
    tasks: int = Field(gt=0)
    cpus: float = Field(gt=0)
    memory_gib: float = Field(gt=0)

    @classmethod
    def checked(cls, event: Mapping[str, Any], job: Job) -> Self:
        """Read an event. Raises InfraError when it does not speak of the job's own work, which is its own prefix of the
        store: a library may print anything.
        """
        try:
            request = cls.model_validate({name: value for name, value in event.items() if name != "event"})
        except ValidationError as error:
            raise InfraError(
                f"the stage asked for an array in terms that are not known: {error.errors()[0]['msg']}"
            ) from error
        try:
            place = json.loads(request.place)
            is_its = place["prefix"] == work_prefix(job.request.stage, job.request.key) and (
                type(job.request.store).model_validate(place["store"]) == job.request.store
            )
        except (ValueError, KeyError, TypeError):
            is_its = False
        if not is_its:
            raise InfraError(f"the stage asked for an array of {request.place}, which is not its own work")
        return request

    @property
    def objects(self) -> TaskObjects:
        """Where the jobs lie, and where the answer goes."""
        return objects_at(self.place)

    def awaited(self) -> bool:
        """Whether somebody still waits for it: it was not answered, and its jobs were not cleared away."""
        objects = self.objects
        return objects.get(f"{state_of(self.name)}{OVER}") is None and objects.get(first_part(self.name)) is not None

    def answer(self, states: Mapping[str, int], error: str = "") -> None:
        """Tell the stage that no element is left (`stages.core.task_objects.answer_array`)."""
        if self.objects.get(first_part(self.name)) is not None:
            answer_array(self.objects, self.name, states, error)

    def refuse(self, error: InfraError) -> dict[str, Any]:
        """Tell the stage that there is no array now; the event for people. Where the store is away, the stage hears
        nothing, and asks again by itself.
        """
        with contextlib.suppress(InfraError):
            self.answer({}, str(error))
        return self.warning(error)

    def warning(self, error: InfraError) -> dict[str, Any]:
        """The event for people of an array that could not be made."""
        return {"event": "log", "level": "warning", "message": f"no array for {self.tasks} shards: {error}"}
