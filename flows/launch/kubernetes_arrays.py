"""Arrays of jobs that a stage asks for while it runs (`stages/lib/data/job_array.py`), as Indexed Jobs: made by this
process, never by the pod, whose account may do nothing; followed by a thread, since the stage's log is read meanwhile.

An array belongs to the stage's Job: it goes when that goes. A pod that is disrupted is replaced; a task's own error
ends its index at once, and is the stage's; an index whose pod was killed is tried `TRIES` times more.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from flows.launch.array_request import ArrayRequest
from flows.launch.base import Job
from flows.launch.kubernetes_manifests import Site, array_job, array_name
from stages.core.errors import InfraError

POLL_SECONDS = 5.0
ENDED = ("Complete", "Failed")


class IndexedJobs:
    """The arrays of one stage's Job, whose uid is `owner`."""

    def __init__(self, job: Job, site: Site, installation: str, core: Any, batch: Any, owner: str) -> None:
        self._job, self._site, self._installation = job, site, installation
        self._core, self._batch, self._owner = core, batch, owner
        self._current: tuple[str, threading.Event] | None = None

    def submit(self, event: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Make the array that an event asks for, or follow it where that was done; events for people. A stage waits for
        one array at a time: those before it end.
        """
        request = ArrayRequest.checked(event, self._job)
        try:
            awaited = request.awaited()
        except InfraError as error:  # the store is away: the stage asks again
            yield request.warning(error)
            return
        name = array_name(self._job, request)
        if not awaited or (self._current is not None and self._current[0] == name):  # read by one that came back
            return
        self.cancel()
        body = array_job(self._job, self._site, request, self._installation, self._owner)
        try:
            self._create(body)
        except InfraError as error:
            yield request.refuse(error)
            return
        stop = threading.Event()
        self._current = name, stop
        threading.Thread(target=self._follow, args=(request, name, stop), daemon=True).start()
        pods = body["spec"]["completions"]
        message = f"Kubernetes job {name}: {request.tasks} shards in {pods} indexes ({request.name})"
        yield {"event": "log", "level": "info", "message": message}

    def _create(self, body: Mapping[str, Any]) -> None:
        """Raises InfraError. One that is there was made by a control plane that died."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            self._batch.create_namespaced_job(self._site.namespace, body)
        except ApiException as error:
            if error.status != 409:
                raise InfraError(f"Kubernetes cannot create an array: {error.status} {error.reason}") from error
        except (HTTPError, OSError) as error:
            raise InfraError(f"Kubernetes cannot create an array: {type(error).__name__}") from error

    def _follow(self, request: ArrayRequest, name: str, stop: threading.Event) -> None:
        """Tell the stage when no pod is left."""
        while not stop.is_set():
            states = self._states(name)
            if states is not None:
                with contextlib.suppress(InfraError):  # asked again
                    request.answer(states)
                    self._delete(name)
                    return
            stop.wait(POLL_SECONDS)

    def _states(self, name: str) -> Counter[str] | None:
        """How many indexes ended how; None while some run, or while the server is away."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            status = self._batch.read_namespaced_job_status(name, self._site.namespace).status
        except ApiException as error:
            return Counter() if error.status == 404 else None
        except (HTTPError, OSError):
            return None
        ended = [c for c in status.conditions or () if c.type in ENDED and c.status == "True"]
        if not ended:
            return None
        reason = (ended[0].reason or "FAILED") if ended[0].type == "Failed" else "FAILED"
        return +Counter(COMPLETED=status.succeeded or 0) + Counter({reason: index_count(status.failed_indexes or "")})

    def cancel(self) -> None:
        """End what is left of the array."""
        if self._current is not None:
            name, stop = self._current
            stop.set()
            self._current = None
            self._delete(name)

    def _delete(self, name: str) -> None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        with contextlib.suppress(ApiException, HTTPError, OSError):
            self._batch.delete_namespaced_job(name, self._site.namespace, propagation_policy="Background")


def index_count(indexes: str) -> int:
    """How many indexes a text of the API's form names: "1,3-5,7" are five."""
    spans = [span.partition("-") for span in indexes.split(",") if span]
    return sum(int(last or first) - int(first) + 1 for first, _, last in spans)
