"""Run a stage as a Kubernetes Job, or an Indexed Job with a headless service where it spans nodes.

A Job outlives this process: its name is in the ledger, and a flow that comes back follows the same one. What could not
be run where this was written stands in infra/k8s/README.md.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any, ClassVar

from flows import environments
from flows.launch import scoped
from flows.launch.base import Job, parse_event, secrets_of, stored_request, with_provenance
from flows.launch.kubernetes_arrays import IndexedJobs
from flows.launch.kubernetes_client import clients
from flows.launch.kubernetes_log import LogPosition
from flows.launch.kubernetes_manifests import Site, batch_job, labels_of, name_of, secret, service, uses_arrays
from flows.log_lines import LineCutter
from flows.settings import Settings
from stages.core.errors import ConfigError, ExitClass, InfraError
from stages.core.keys import sha256
from stages.core.messages import on_loopback
from stages.core.store import Store

POLL_SECONDS = 5.0
LATE_SECONDS = 60.0
"""Beyond its grace, until a pod of a Job that was deleted is surely gone, or its machine is."""
_PREEMPTED = (
    "Evicted",
    "Preempted",
    "Preempting",
    "NodeLost",
    "NodeShutdown",
    "Shutdown",
    "Terminated",
    "DeadlineExceeded",
)
"""Reasons of a pod's or a condition's end that are not the stage's doing."""


class KubernetesHandle:
    """A Job in the cluster."""

    def __init__(
        self, core: Any, batch: Any, namespace: str, name: str, node: str, arrays: IndexedJobs | None = None
    ) -> None:
        self._core, self._batch, self._namespace, self._name, self._node = core, batch, namespace, name, node
        self._arrays = arrays
        self.renewal: scoped.Renewal | None = None
        self._end: tuple[int, dict[str, Any] | None] | None = None
        self._done_event: dict[str, Any] = {}
        self._log_position = LogPosition()
        self._stopping = False
        self._deleted_at = 0.0

    @property
    def id(self) -> str:
        return self._name

    def events(self) -> Iterator[dict[str, Any]]:
        reported = image_id = ""
        while self._end is None:
            try:
                pods = self._pods()
            except InfraError:  # a server that is away for a moment ends nothing
                time.sleep(POLL_SECONDS)
                continue
            pod = _first(pods)
            phase = pod.status.phase if pod else "Pending"
            if (reason := _waiting(pods)) and reason != reported:
                yield {"event": "log", "level": "info", "message": f"Kubernetes job {self._name} waits: {reason}"}
            reported = reason
            if phase not in ("Pending", None):
                if not image_id and (
                    image_id := _image_id(pod)
                ):  # known only now: the result names the image, the log its digest
                    yield {"event": "log", "level": "info", "message": f"Kubernetes runs image {image_id}"}
                for event in self._log(pod.metadata.name):
                    if event["event"] == "array" and self._arrays:
                        if not self._stopping:
                            yield from self._arrays.submit(event)
                        continue
                    if event["event"] == "done":
                        self._done_event = event
                    yield event
            self._refresh()
            if self._end is None:
                time.sleep(POLL_SECONDS if phase == "Pending" else 1.0)
        if self._end[1] is not None and not self._done_event:
            yield self._end[1]

    def _log(self, pod: str) -> Iterator[dict[str, Any]]:
        """The pod's lines after those that were read before, until its end or until the connection breaks."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        with contextlib.suppress(ApiException, HTTPError, OSError):  # broken off: the caller comes again
            since = self._log_position.since_seconds()
            options = {"follow": True, "timestamps": True} | ({} if since is None else {"since_seconds": since})
            stream = self._core.read_namespaced_pod_log(pod, self._namespace, **options, _preload_content=False)
            cutter = LineCutter()
            self._log_position.begin_again()
            for data in stream.stream():
                for line in cutter.lines(data):
                    if (text := self._log_position.unread(line)) is not None:
                        yield parse_event(text.decode("utf-8", "replace"))

    def _pods(self) -> list[Any]:
        with _errors("list pods"):
            return self._core.list_namespaced_pod(
                self._namespace, label_selector=f"batch.kubernetes.io/job-name={self._name}"
            ).items

    def _refresh(self) -> None:
        """See whether the Job is over, and how."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            status = self._batch.read_namespaced_job_status(self._name, self._namespace).status
        except ApiException as error:
            if error.status == 404 and not self._pods_end():
                self._end = (
                    ExitClass.PREEMPTED.code,
                    {"event": "done", "exit": ExitClass.PREEMPTED, "message": "the Job was deleted"},
                )
            return  # a server that is away for a moment ends nothing
        except (HTTPError, OSError):
            return
        conditions = {c.type: c for c in status.conditions or () if c.status == "True"}
        if "Complete" in conditions:
            self._end = (0, None)
        elif "Failed" in conditions:
            with contextlib.suppress(InfraError):  # asked again
                self._end = outcome(self._pods(), conditions["Failed"].reason or "", self._node)

    def _pods_end(self) -> bool:
        """Whether pods of a Job that was deleted are still ending: they save a checkpoint, under a lease that is given
        back once the Job counts as over. One whose machine is gone says nothing, and has its grace.
        """
        self._deleted_at = self._deleted_at or time.monotonic()
        try:
            pods = [pod for pod in self._pods() if pod.status.phase == "Running"]
        except InfraError:  # a server that is away for a moment ends nothing
            return True
        grace = max((pod.metadata.deletion_grace_period_seconds or 0 for pod in pods), default=0)
        return bool(pods) and time.monotonic() - self._deleted_at < grace + LATE_SECONDS

    def wait(self) -> int:
        while self._end is None:
            self._refresh()
            if self._end is None:
                time.sleep(POLL_SECONDS)
        code, done_class = self._end[0], self._done_event.get("exit")
        if self._arrays:
            self._arrays.cancel()
        if self.renewal:
            self.renewal.end()
        delete(self._core, self._batch, self._namespace, self._name, 0)
        if code and done_class and done_class != ExitClass.OK:  # torchrun ends with 1 whatever its workers ended with
            return ExitClass(done_class).code
        return code

    def stop(self, grace: float) -> None:
        if self._end is None and not self._stopping:
            self._stopping = True
            if self._arrays:
                self._arrays.cancel()
            threading.Thread(target=self._stop, args=(int(grace),), daemon=True).start()

    def _stop(self, grace: int) -> None:
        while self._end is None and not delete(self._core, self._batch, self._namespace, self._name, grace):
            time.sleep(POLL_SECONDS)  # the server is away: nobody else ends this Job


def outcome(pods: list[Any], reason: str, node: str) -> tuple[int, dict[str, Any] | None]:
    """Exit status of a failed Job and, where the stage could not say it itself, the event that tells why."""

    def end(exit_class: ExitClass, message: str) -> tuple[int, dict[str, Any]]:
        return exit_class.code, {"event": "done", "exit": exit_class, "message": message}

    code = 0
    for pod in pods:
        disrupted = [c for c in pod.status.conditions or () if c.type == "DisruptionTarget" and c.status == "True"]
        if disrupted or pod.status.reason in _PREEMPTED:
            return end(
                ExitClass.PREEMPTED,
                f"pod {pod.metadata.name}: {(disrupted[0].reason if disrupted else None) or pod.status.reason}",
            )
        for container in pod.status.container_statuses or ():
            ended = container.state.terminated
            if ended and ended.reason == "OOMKilled":
                return end(ExitClass.OOM, f"out of memory: raise resources.{node}.memory_gib")
            code = code or (ended.exit_code if ended else 0)
    if reason in _PREEMPTED or not pods:
        return end(ExitClass.PREEMPTED, f"the Job ended: {reason or 'its pods are gone'}")
    return code or ExitClass.BUG.code, None


class KubernetesLauncher:
    """Starts stages as Jobs."""

    name: ClassVar[str] = "kubernetes"
    detached: ClassVar[bool] = True

    def __init__(
        self,
        settings: Settings,
        site: Site | None = None,
        clients: tuple[Any, Any] | None = None,
        store: Store | None = None,
    ) -> None:
        self._settings, self._site = settings, site or Site.load()
        self._installation = sha256(str(settings.home).encode())[:16]
        self._pair, self._store = clients, store

    def _clients(self) -> tuple[Any, Any]:
        """The core and the batch API. Raises InfraError when no cluster is configured."""
        self._pair = self._pair or clients(self._site.context)
        return self._pair

    def start(self, job: Job) -> KubernetesHandle:
        if on_loopback(job.request.store.endpoint):
            raise ConfigError(
                f"pods cannot reach the object store at {job.request.store.endpoint}: use one of your own"
                " (MOXIN_S3_ENDPOINT)"
            )
        if job.resources.material:
            raise ConfigError(
                f"node {job.request.node} reads material of this machine, which a cluster has not: set its origin, or"
                " its launcher"
            )
        core, batch = self._clients()
        namespace, name = self._site.namespace, name_of(job)
        job = with_provenance(job, image=environments.stage_image(job.request.stage, job.env).reference)
        place, body = stored_request(job)
        (self._store or Store(place.store)).put(place.object, body)
        session = self._session(job)
        secrets = self._secret(job, session)
        with _errors(f"create job {name}"):
            for earlier in self._jobs(f"moxin.key={labels_of(job, self._installation)['moxin.key']}"):
                delete(core, batch, namespace, earlier, 0)  # of attempts that ended: this one has the lease
            try:
                created = batch.create_namespaced_job(namespace, batch_job(job, self._site, self._installation))
                self._create_owned(job, secrets, created.metadata.uid)
            except BaseException:
                # also where no answer came: the cluster may have it, and it would wait for its Secret
                delete(core, batch, namespace, name, 0)
                raise
        return self._handle(name, job, created.metadata.uid, session)

    def _create_owned(self, job: Job, secrets: dict[str, Any], uid: str) -> None:
        """What belongs to a Job: the cluster removes it with the Job, whatever becomes of this process."""
        core, _ = self._clients()
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name_of(job), "uid": uid}
        for owned in (secrets, service(job, self._installation)):
            if owned is not None:
                owned["metadata"]["ownerReferences"] = [owner]
                is_secret = owned["kind"] == "Secret"
                create = core.create_namespaced_secret if is_secret else core.create_namespaced_service
                create(self._site.namespace, owned)

    def _jobs(self, label: str) -> list[str]:
        """The names of this installation's Jobs with a label."""
        _, batch = self._clients()
        selector = f"moxin.home={self._installation},{label}"
        return [
            job.metadata.name for job in batch.list_namespaced_job(self._site.namespace, label_selector=selector).items
        ]

    def _session(self, job: Job) -> scoped.Session:
        """What a job is given to reach the store with, unless its account knows the way."""
        if self._site.service_account:
            return scoped.Session(self._settings.store_environment())
        return scoped.session(self._settings, job.request)

    def _secret(self, job: Job, session: scoped.Session) -> dict[str, Any]:
        secrets = secrets_of(job, session.environment, "account" if self._site.service_account else "copied")
        return secret(job, secrets, self._installation, session.ends)

    def _handle(self, name: str, job: Job, owner: str, session: scoped.Session | None = None) -> KubernetesHandle:
        core, batch = self._clients()
        arrays = self._arrays(job, owner) if uses_arrays(job) else None
        handle = KubernetesHandle(core, batch, self._site.namespace, name, job.request.node, arrays)
        if not self._site.service_account:  # the kubelet brings what changes in a Secret into the pod's volume

            def deliver(new: scoped.Session) -> None:
                core.patch_namespaced_secret(
                    name, self._site.namespace, {"stringData": self._secret(job, new)["stringData"]}
                )

            handle.renewal = scoped.Renewal(self._settings, job.request, session, deliver)
        return handle

    def _arrays(self, job: Job, owner: str) -> IndexedJobs:
        core, batch = self._clients()
        return IndexedJobs(job, self._site, self._installation, core, batch, owner)

    def take_over(self, id: str, job: Job) -> KubernetesHandle | None:
        """Follow a Job that another control plane started; None when it is over or gone. Raises InfraError when the
        server does not say: a second Job must not begin beside the first.
        """
        from kubernetes.client.exceptions import ApiException

        _, batch = self._clients()
        with _errors(f"look for job {id}"):
            try:
                there = batch.read_namespaced_job_status(id, self._site.namespace)
            except ApiException as error:
                if error.status != 404:
                    raise
                return None
        if any(c.type in ("Complete", "Failed") and c.status == "True" for c in there.status.conditions or ()):
            return None
        return self._handle(id, job, there.metadata.uid)

    def reap(self, run_id: str | None = None) -> list[str]:
        if run_id is None:  # what a dead control plane left is taken over, not killed
            return []
        core, batch = self._clients()
        with _errors("list jobs"):
            names = self._jobs(f"moxin.run={run_id[:63]}")
        for name in names:
            delete(core, batch, self._site.namespace, name, 0)  # its pods get the template's grace
        return names


def delete(core: Any, batch: Any, namespace: str, name: str, grace: int) -> bool:
    """Delete a Job and what it owns. Its pods get SIGTERM, and `grace` seconds where that is more than nothing. False
    where the server does not answer, or refuses.
    """
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    with contextlib.suppress(ApiException, HTTPError, OSError):
        if grace:  # pods first, with their grace: a Job's deletion would give them the template's
            core.delete_collection_namespaced_pod(
                namespace, label_selector=f"batch.kubernetes.io/job-name={name}", grace_period_seconds=grace
            )
    try:
        batch.delete_namespaced_job(name, namespace, propagation_policy="Background")
    except ApiException as error:
        return error.status == 404
    except (HTTPError, OSError):
        return False
    return True


def _image_id(pod: Any) -> str:
    """The image that the node really runs, with its digest; empty where the pod does not say yet."""
    return next(
        (str(container.image_id) for container in pod.status.container_statuses or () if container.image_id), ""
    )


def _first(pods: list[Any]) -> Any:
    """The pod of rank 0, which alone speaks; None before there is one."""
    index = "batch.kubernetes.io/job-completion-index"
    return next((pod for pod in pods if dict[str, str](pod.metadata.annotations or ()).get(index, "0") == "0"), None)


def _waiting(pods: list[Any]) -> str:
    """Why a Job does not work yet: what the first of its pods waits for that does not run; empty where all run."""
    pending = [pod for pod in pods if pod.status.phase in ("Pending", None)]
    if pods and not pending:
        return ""
    reason = _waits_for(pending[0]) if pending else "no pod yet"
    return f"{len(pending)} of {len(pods)} pods do not run yet: {reason}" if len(pods) > 1 else reason


def _waits_for(pod: Any) -> str:
    for container in pod.status.container_statuses or ():
        if container.state.waiting and container.state.waiting.reason:
            return str(container.state.waiting.reason)
    unmet = [c for c in pod.status.conditions or () if c.status == "False" and c.message]
    return str(unmet[0].message) if unmet else "to be scheduled"


@contextlib.contextmanager
def _errors(what: str) -> Generator[None]:
    """Turn the client's errors into one line."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise InfraError(f"Kubernetes cannot {what}: {error.status} {error.reason}") from error
    except (HTTPError, OSError) as error:
        raise InfraError(
            f"Kubernetes cannot {what}: the API server does not answer ({type(error).__name__})"
        ) from error
