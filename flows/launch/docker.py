"""Run a stage in a container of its image: the Docker daemon of this machine, or the one that DOCKER_HOST names.

A container gets as little as it can work with: a user that is nobody, a read-only root, no capabilities, no new
privileges, limits on memory, processes and cores, one scratch volume, and a network on which only the object store is.
The request and
the credentials are files in that volume: neither `docker inspect` nor a process list shows them. This process holds the
container's standard input: when it dies, however it dies, the stage sees the end of it, saves a checkpoint and stops,
and the reaper (flows/launch/reaper.py) removes what is left.
"""

from __future__ import annotations

import contextlib
import io
import sysconfig
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

import docker
from docker.errors import DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, Mount
from docker.utils import socket as docker_socket

from flows import environments
from flows.launch import reaper, scoped
from flows.launch.base import Job, parse_event, public_environment, secrets_of, torchrun, with_provenance
from flows.launch.reaper import DAEMON_SECONDS, remove, stop
from flows.launch.relay import Relay
from flows.log_lines import LineCutter
from flows.settings import Settings
from stages.core.errors import ConfigError, ExitClass, InfraError
from stages.core.keys import sha256
from stages.core.messages import on_loopback
from stages.core.processes import host_identity, process_alive

UID = 65532
"""The user "nonroot" of the distroless images; the images of containers/ are made for it."""
PIDS, PIDS_A_CORE = 1024, 128
"""Processes and threads of a container: so many, and where it has more than 8 cores, so many for each. Ray has a worker
of 23 threads for each core (measured on 8), beside those that compute.
"""
NETWORKS = {"store": "moxin-store", "internet": "moxin-internet"}
_STDERR = 2
_DEAD = ("exited", "dead", "removing")


class DockerHandle:
    """A running container."""

    def __init__(
        self, client: Any, container: str, volume: str, stream: Any, job: Job, renewal: scoped.Renewal | None = None
    ) -> None:
        self._client, self._container, self._volume, self._stream, self._job = client, container, volume, stream, job
        self._renewal = renewal
        self._stopping = threading.Event()
        self._lost = False
        self._state: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        return self._container

    def events(self) -> Iterator[dict[str, Any]]:
        cutters = {1: LineCutter(), _STDERR: LineCutter()}
        with contextlib.suppress(OSError):  # the daemon is gone; `wait` finds out more
            for kind, data in cast("Any", docker_socket).frames_iter(self._stream, tty=False):
                for line in cutters[kind].lines(data):
                    yield parse_event(line.decode("utf-8", "replace"), kind == _STDERR)
        for kind, cutter in cutters.items():
            for line in cutter.end():
                yield parse_event(line.decode("utf-8", "replace"), kind == _STDERR)
        if self._final_state().get("OOMKilled") and self._final_state()["ExitCode"]:
            limit = self._job.resources.memory_gib
            message = (
                f"out of memory: it used all of its {limit:g} GiB; raise resources.{self._job.request.node}.memory_gib"
            )
            yield {"event": "done", "exit": ExitClass.OOM, "message": message}
        elif self._lost:
            yield {"event": "done", "exit": ExitClass.PREEMPTED, "message": "the Docker daemon went away"}

    def wait(self) -> int:
        state = self._final_state()
        if self._renewal:
            self._renewal.end()
        self._stream.close()
        with contextlib.suppress(DockerException, OSError):  # its end stands; the next start removes what is left
            remove(self._client, self._container, self._volume)
        code = int(state["ExitCode"])
        if state.get("OOMKilled") and code:
            return ExitClass.OOM.code
        return ExitClass.PREEMPTED.code if self._lost and ExitClass.from_code(code) is ExitClass.BUG else code

    def _final_state(self) -> dict[str, Any]:
        """The state of the container once it has ended. A daemon that restarts is waited for."""
        deadline = time.monotonic() + DAEMON_SECONDS
        while self._state is None:
            try:
                state = self._client.api.inspect_container(self._container)["State"]
                if state["Status"] in _DEAD:
                    self._state = state
                else:
                    self._client.api.wait(self._container, timeout=5)
            except NotFound:
                self._lost, self._state = True, {"ExitCode": ExitClass.PREEMPTED.code}
            except (DockerException, OSError) as error:
                if _timed_out(error):
                    deadline = time.monotonic() + DAEMON_SECONDS
                    continue
                self._lost = True
                if time.monotonic() > deadline:
                    self._state = {"ExitCode": ExitClass.PREEMPTED.code}
                time.sleep(0.5)
        return self._state

    def stop(self, grace: float) -> None:
        if self._state is None and not self._stopping.is_set():
            self._stopping.set()
            threading.Thread(target=self._stop, args=(grace,), daemon=True).start()

    def _stop(self, grace: float) -> None:
        deadline = time.monotonic() + DAEMON_SECONDS
        while self._state is None and not stop(self._client, self._container, grace) and time.monotonic() < deadline:
            time.sleep(0.5)  # a daemon that restarts is waited for, and may have kept its containers


class DockerLauncher:
    """Starts stages as containers."""

    name: ClassVar[str] = "docker"
    detached: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._relays: dict[str, Relay] = {}
        self._cached_client: Any = None

    # --- the daemon -------------------------------------------------------------------------------------------------

    def _client(self) -> Any:
        """The daemon's client; a daemon that restarts is waited for. Raises InfraError when none answers."""
        deadline = time.monotonic() + (DAEMON_SECONDS if self._cached_client else 0)
        while True:
            try:
                self._cached_client = self._cached_client or docker.from_env(timeout=120)
                self._cached_client.ping()
                return self._cached_client
            except (DockerException, OSError) as error:
                if time.monotonic() >= deadline:
                    raise InfraError(
                        f"no Docker daemon answers ({_first_line(error)}): start it, or set DOCKER_HOST"
                    ) from error
                time.sleep(0.5)

    def _network(self, client: Any, kind: str) -> tuple[str, str]:
        """The name of a network of this program, made if it is not there, and this machine's address on it."""
        name = NETWORKS[kind]
        with self._lock:
            networks = client.networks.list(names=[f"^{name}$"])
            network = (
                networks[0]
                if networks
                else client.networks.create(name, "bridge", internal=kind == "store", labels={"moxin.network": kind})
            )
            network.reload()
        return name, network.attrs["IPAM"]["Config"][0]["Gateway"]

    def _store_route(self, client: Any, job: Job) -> tuple[str, str | None]:
        """The network of a job, and the store's endpoint as it is seen from there."""
        endpoint = job.request.store.endpoint
        if not on_loopback(endpoint):  # a store somewhere: what else may be reached is the site's firewall's to say
            return self._network(client, "internet")[0], endpoint
        name, address = self._network(client, job.resources.network)
        with self._lock:
            if name not in self._relays:
                self._relays[name] = Relay(address, str(endpoint))
            return name, self._relays[name].endpoint

    def _image(self, client: Any, job: Job) -> tuple[str, str]:
        """Name and digest of a job's image. Raises ConfigError when it is neither here nor in the registry."""
        name = environments.stage_image(job.request.stage, job.env).reference
        try:
            image = client.images.get(name)
        except ImageNotFound:
            try:
                image = client.images.pull(name)
            except DockerException as error:
                raise ConfigError(
                    f"no image {name} of the code that lies here: run 'moxin images build {job.request.stage}'"
                ) from error
        return name, str(image.id)

    # --- a job ------------------------------------------------------------------------------------------------------

    def start(self, job: Job) -> DockerHandle:
        client = self._client()
        reaper.start_reaper()
        image, digest = self._image(client, job)
        network, endpoint = self._store_route(client, job)
        store = job.request.store.model_copy(update={"endpoint": endpoint})
        job = with_provenance(
            replace(job, request=job.request.model_copy(update={"store": store})), image=image, image_digest=digest
        )
        name = f"moxin-{job.request.node}-{job.request.key[:12]}-{job.request.lease.epoch}"
        labels = job.labels | self._labels()
        session = scoped.session(self._settings, job.request)
        try:
            remove(client, name, name)  # of an attempt that this one repeats after the daemon's restart
            client.volumes.create(name, labels=labels)
            limits = self._limits(client, job) | {"mounts": self._mounts(job, name), "network_mode": network}
            container = client.api.create_container(
                image,
                command(job),
                entrypoint="",
                name=name,
                labels=labels,
                environment=self._environment(job),
                stdin_open=True,
                stop_timeout=job.resources.grace_seconds,
                user=f"{UID}:{UID}",
                host_config=client.api.create_host_config(**limits),
                networking_config=None,
            )["Id"]
            client.api.put_archive(container, "/scratch", _archive(job, session.environment))
            stream = client.api.attach_socket(container, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
            getattr(stream, "_sock", stream).settimeout(None)
            client.api.start(container)
        except (DockerException, OSError) as error:
            with contextlib.suppress(DockerException, OSError):
                remove(client, name, name)
            raise InfraError(f"cannot start a container of {image}: {_first_line(error)}") from error
        renewal = scoped.Renewal(
            self._settings,
            job.request,
            session,
            lambda new: client.api.put_archive(container, "/scratch", _archive(job, new.environment)),
        )
        return DockerHandle(client, container, name, stream, job, renewal)

    def _labels(self) -> dict[str, str]:
        """Whose a container is: this installation's, and this process's on this machine."""
        return {"moxin.home": _home(self._settings)} | reaper.owner_labels()

    def _environment(self, job: Job) -> dict[str, str]:
        material = {"MOXIN_MATERIAL": "/material"} if job.resources.material else {}
        return public_environment(job) | material

    def _mounts(self, job: Job, volume: str) -> list[Mount]:
        mounts = [Mount("/scratch", volume)]
        if job.resources.material:
            paths = sysconfig.get_paths()
            mounts += [
                Mount("/material/stdlib", paths["stdlib"], type="bind", read_only=True),
                Mount("/material/packages", paths["purelib"], type="bind", read_only=True),
            ]
        return mounts

    def _limits(self, client: Any, job: Job) -> dict[str, Any]:
        """What the container may use, and what it may not do."""
        cores = float(client.info()["NCPU"])
        memory = int(job.resources.memory_gib * 2**30)
        limits: dict[str, Any] = {
            "nano_cpus": int(min(job.resources.cpus, cores) * 1e9),
            "mem_limit": memory,
            "memswap_limit": memory,
            "shm_size": memory // 2,  # as Linux gives a machine: half of its memory
            "pids_limit": max(PIDS, int(PIDS_A_CORE * job.resources.cpus)),
            "read_only": True,
            "tmpfs": {"/tmp": f"size={min(memory // 4, 2**30)},mode=1777"},
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "init": True,
            "log_config": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "1"}},
        }
        if job.resources.gpus:
            limits["device_requests"] = [DeviceRequest(count=job.resources.gpus, capabilities=[["gpu"]])]
        return limits

    # --- leftovers --------------------------------------------------------------------------------------------------

    def take_over(self, id: str, job: Job) -> None:
        return None  # a stage ends with its control plane

    def reap(self, run_id: str | None = None) -> list[str]:
        client = self._client()
        labels = {"label": [f"moxin.home={_home(self._settings)}", *([f"moxin.run={run_id}"] if run_id else [])]}
        rows = client.api.containers(all=True, filters=labels)
        orphans = [row for row in rows if run_id or _is_orphan(row["Labels"], row["State"])]
        reaper.remove_containers(client, orphans)
        if run_id is None:
            volumes = client.volumes.list(filters=labels | {"dangling": True})
            reaper.remove_volumes(client, [v for v in volumes if _is_orphan(v.attrs["Labels"], "created")])
        return [row["Id"] for row in orphans]


def command(job: Job) -> list[str]:
    """The command line of a container: the runtime, under torchrun where the launcher starts several processes."""
    runtime = ["-m", "stages.core.runtime", "/scratch/request.json", "--secrets", "/scratch/secrets.json"]
    return ["python", *torchrun(job, "--standalone"), *runtime]


def _archive(job: Job, credentials: Mapping[str, str]) -> bytes:
    """The request and the secrets as a tar file for the scratch volume, readable by the stage's user alone."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        for name, text in (
            ("request.json", job.request.model_dump_json()),
            ("secrets.json", secrets_of(job, credentials).model_dump_json()),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid, info.gid, info.mtime = len(text.encode()), 0o400, UID, UID, int(time.time())
            archive.addfile(info, io.BytesIO(text.encode()))
    return body.getvalue()


def _home(settings: Settings) -> str:
    return sha256(str(settings.home).encode())[:16]


def _is_orphan(labels: dict[str, str], state: str) -> bool:
    """Whether what has these labels is left over: its control plane is dead, or cannot be seen from here and it has
    ended.
    """
    if labels.get("moxin.host") == host_identity():
        return not process_alive(labels.get("moxin.control", ""))
    return (
        state == "exited"
    )  # that control plane may live, in another container or on another machine; a stage ends with it


def _timed_out(error: BaseException) -> bool:
    """Whether a wait ended only because its time was over."""
    return "timed out" in str(error).lower() or "timeout" in type(error).__name__.lower()


def _first_line(error: BaseException) -> str:
    return (str(getattr(error, "explanation", "") or error).strip().splitlines() or [type(error).__name__])[0]
