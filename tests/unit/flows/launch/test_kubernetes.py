"""Kubernetes objects against the API's own schema (the official client's models), and how a Job's end is read."""

from __future__ import annotations

import itertools
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import ProtocolError

from flows.launch import kubernetes as module
from flows.launch import kubernetes_manifests as manifests
from flows.launch import scoped
from flows.launch.base import Job, secrets_of
from flows.launch.kubernetes import KubernetesHandle, outcome
from flows.launch.kubernetes_manifests import Site
from flows.settings import Settings
from stages.core.errors import ConfigError, ExitClass, InfraError
from stages.core.keys import sha256
from stages.core.messages import CodeRef, Lease, Secrets, StageRequest, StoreAddress, StoredRequest
from stages.core.resources import Processes, Resources
from tests.support.kubernetes_api import CREDENTIALS, Cluster, against, launcher, pod, read, waiting_pod
from tests.support.planted import CONTROL_PLANE, SOURCES, held, secrets_in
from tests.support.probe_pipeline import wait_for


def job(endpoint: str | None = "https://s3.example.org", **resources: Any) -> Job:
    request = StageRequest(
        run_id="4f3a1c9e-run",
        node="tokenize_capability_long",
        stage="pretrain",
        revision=1,
        key="a" * 64,
        lease=Lease(key="a" * 64, epoch=12, holder="h"),
        config={},
        inputs={},
        outputs={},
        code=CodeRef(source_digest="0" * 64),
        store=StoreAddress(bucket="b", endpoint=endpoint),
    )
    return Job(request, Resources(**resources), "train", Processes.TORCHRUN)


# --- the schema -------------------------------------------------------------------------------------------------------


def test_the_check_itself_finds_mistakes() -> None:
    good = manifests.batch_job(job(), Site(), "mark")
    for path, value, complaint in (
        (("spec", "backofLimit"), 0, "no such field"),
        (("spec", "backoffLimit"), "0", "is not int"),
        (("spec", "template", "spec", "containers"), [{"image": "i"}], "must not be `None`"),
    ):
        bad = json.loads(json.dumps(good))
        inner = bad
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        assert any(complaint in line for line in against(bad, "V1Job", "job")), path


SITE = Site(
    node_selector={"gpu": "h100"},
    tolerations=({"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},),
    pull_secrets=("registry",),
    priority_class="high",
)


@pytest.mark.parametrize("site", [Site(), SITE])
@pytest.mark.parametrize("resources", [{}, {"gpus": 8}, {"nodes": 4, "gpus": 8, "cpus": 96.5, "memory_gib": 900.25}])
def test_every_object_agrees_with_the_apis_schema(site: Site, resources: dict[str, Any]) -> None:
    given = job(**resources)
    assert against(manifests.batch_job(given, site, "mark"), "V1Job", "job") == []
    assert against(manifests.secret(given, secrets_of(given, CREDENTIALS), "mark"), "V1Secret", "secret") == []
    body = manifests.service(given, "mark")
    assert (body is None) is ("nodes" not in resources)
    assert body is None or against(body, "V1Service", "service") == []


def test_names_and_labels_are_what_the_api_takes() -> None:
    given = job(nodes=100)
    name = manifests.name_of(given)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(f"{name}-99") <= 63
    for value in manifests.labels_of(given, "mark").values():
        assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?", value)
        assert len(value) <= 63


# --- what a pod may do ------------------------------------------------------------------------------------------------


def pod_of(given: Job, site: Site | None = None) -> dict[str, Any]:
    return manifests.batch_job(given, site or Site(), "mark")["spec"]["template"]["spec"]


def test_a_pod_meets_the_restricted_pod_security_standard() -> None:
    pod = pod_of(job())
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["automountServiceAccountToken"] is False
    assert all("hostPath" not in volume for volume in pod["volumes"])
    assert pod["restartPolicy"] == "Never"


@pytest.mark.parametrize("network", ["store", "internet"])
def test_secrets_are_in_the_secret_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, network: str) -> None:
    """Of all that the launcher sends to the cluster, and of the request in the store."""
    for name, value in (SOURCES | CONTROL_PLANE).items():
        monkeypatch.setenv(name, value)
    cluster, secrets = Cluster(), CREDENTIALS | secrets_in(SOURCES | CONTROL_PLANE)
    launcher(cluster, tmp_path).start(job(nodes=2, network=network))
    for body in cluster.made:
        names = sorted(held(json.dumps(body).encode(), secrets))
        given = CREDENTIALS | (SOURCES if network == "internet" else {})
        assert names == (sorted(given) if body["kind"] == "Secret" else []), body["kind"]
    assert {body["kind"] for body in cluster.made} == {"Job", "Secret", "Service"}
    assert cluster.stored
    assert not [name for name, body in cluster.stored.items() if held(body + name.encode(), secrets)]


def test_secrets_are_in_a_file_of_the_secret() -> None:
    given = job(nodes=2)
    data = manifests.secret(given, secrets_of(given, CREDENTIALS), "mark")["stringData"]
    assert json.loads(data["secrets.json"])["environment"] == CREDENTIALS
    assert data.keys() == {"secrets.json"}, "credentials alone"


def test_a_pod_is_told_where_its_request_lies_and_what_its_bytes_must_be(tmp_path: Path) -> None:
    cluster, given = Cluster(), job()
    launcher(cluster, tmp_path).start(given)
    command = cluster.made[0]["spec"]["template"]["spec"]["containers"][0]["command"]
    place = StoredRequest.model_validate_json(command[command.index("stages.core.runtime") + 1])
    assert (place.store, place.object) == (given.request.store, f"requests/{'a' * 64}/000012.json")
    body = cluster.stored[place.object]
    assert sha256(body) == place.sha256
    stored = StageRequest.model_validate_json(body)
    assert stored.model_copy(update={"code": given.request.code}) == given.request


def test_a_value_that_looks_like_a_variable_stays_as_it_is() -> None:
    """Kubernetes puts a variable's value where `$(NAME)` stands, and `$(NAME)` where `$$(NAME)` does (its
    documentation, "EnvVar").
    """
    given = job()
    odd = replace(given, request=given.request.model_copy(update={"run_id": "$(MOXIN_RUN) 'x' \"y\"\n"}))
    (container,) = pod_of(odd)["containers"]
    value = next(row["value"] for row in container["env"] if row["name"] == "MOXIN_RUN")
    assert value == "$$(MOXIN_RUN) 'x' \"y\"\n"


def test_memory_and_gpus_are_limits_as_well_as_requests() -> None:
    (container,) = pod_of(job(gpus=4, memory_gib=2.5, cpus=3))["containers"]
    assert container["resources"]["limits"] == {"memory": "2560Mi", "nvidia.com/gpu": "4"}
    assert container["resources"]["requests"]["cpu"] == "3"


def test_several_nodes_are_an_indexed_job_whose_pods_find_the_first_by_name() -> None:
    given = job(nodes=4, gpus=8)
    spec, name = manifests.batch_job(given, Site(), "mark")["spec"], manifests.name_of(given)
    assert (spec["completionMode"], spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (
        "Indexed",
        4,
        4,
        0,
    )
    assert spec["template"]["spec"]["subdomain"] == name
    service = manifests.service(given, "mark")
    assert service is not None
    assert (service["metadata"]["name"], service["spec"]["clusterIP"]) == (name, "None")
    line = spec["template"]["spec"]["containers"][0]["command"]
    assert {
        "--nnodes=4",
        "--nproc-per-node=8",
        "--node-rank=$(JOB_COMPLETION_INDEX)",
        f"--master-addr={name}-0.{name}",
        "--rdzv-conf=timeout=86400",
    } <= set(line)
    line = manifests.command(job())
    assert [line[:3], line[4:]] == [["python", "-m", "stages.core.runtime"], ["--secrets", "/secrets/secrets.json"]]


def test_a_request_of_any_size_is_told_in_a_line_and_credentials_that_no_secret_holds_are_an_error() -> None:
    given = job()
    large = Job(given.request.model_copy(update={"config": {"text": "x" * (1 << 20)}}), given.resources, given.env)
    assert len(json.dumps(manifests.batch_job(large, Site(), "mark"))) < 10_000
    secrets = Secrets(files={"AWS_CA_BUNDLE": "x" * (1 << 20)})
    with pytest.raises(ConfigError, match="its credentials, with the files that they name, are over 1 MiB"):
        manifests.secret(given, secrets, "mark")


def test_a_clusters_file_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Site.load().namespace == "moxin", "the one in the repository"
    monkeypatch.setenv("MOXIN_K8S_SITE", str(tmp_path / "site.toml"))
    with pytest.raises(ConfigError, match="MOXIN_K8S_SITE must name"):
        Site.load()
    (tmp_path / "site.toml").write_text("keep_seconds = -1")
    with pytest.raises(ConfigError, match=r"site\.toml: keep_seconds = -1"):
        Site.load()


# --- how a Job ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pods", "reason", "expected", "says"),
    [
        ([pod(137, "OOMKilled")], "BackoffLimitExceeded", "oom", "out of memory: raise resources.n.memory_gib"),
        ([pod(64)], "BackoffLimitExceeded", "config", None),
        ([pod(0), pod(75)], "BackoffLimitExceeded", "preempted", None),
        ([pod(137)], "BackoffLimitExceeded", "preempted", None),
        (
            [pod(137, conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}])],
            "BackoffLimitExceeded", "preempted", "pod p-0: PreemptionByScheduler",
        ),
        ([pod(137)], "DeadlineExceeded", "preempted", "the Job ended: DeadlineExceeded"),
        ([], "BackoffLimitExceeded", "preempted", "the Job ended: BackoffLimitExceeded"),
        ([pod(1)], "BackoffLimitExceeded", "bug", None),
    ],
)  # fmt: skip
def test_a_failed_job_has_the_class_of_its_cause(pods: list[Any], reason: str, expected: str, says: str | None) -> None:
    code, event = outcome(pods, reason, "n")
    assert ExitClass.from_code(code) == expected
    assert (event["message"] if event else None) == says


COMPLETE = {"conditions": [{"type": "Complete", "status": "True"}]}


def test_a_job_owns_its_secret_and_service(tmp_path: Path) -> None:
    cluster = Cluster()
    launcher(cluster, tmp_path).start(job(nodes=2))
    assert [body["kind"] for body in cluster.made] == ["Job", "Secret", "Service"]
    for body in cluster.made[1:]:
        assert body["metadata"]["ownerReferences"] == [
            {"apiVersion": "batch/v1", "kind": "Job", "name": body["metadata"]["name"], "uid": "uid-1"}
        ]


def test_a_secret_whose_credentials_end_can_be_written_anew_and_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a control plane that began the job, and by one that took it over."""
    numbers = itertools.count()

    def session(settings: Settings, request: StageRequest) -> scoped.Session:
        return scoped.Session({"AWS_ACCESS_KEY_ID": f"id-{next(numbers)}"}, time.time() + 1)

    monkeypatch.setenv("MOXIN_STS_ROLE", "arn:aws:iam::123456789012:role/stages")
    monkeypatch.setattr(scoped, "session", session)
    cluster = Cluster()
    handle = launcher(cluster, tmp_path).start(job())
    (made,) = [body for body in cluster.made if body["kind"] == "Secret"]
    assert made["immutable"] is False
    assert json.loads(made["stringData"]["secrets.json"])["environment"] == {"AWS_ACCESS_KEY_ID": "id-0"}
    wait_for(lambda: cluster.patched, "a renewal")
    handle.renewal.end()  # type: ignore[union-attr]
    name, body = cluster.patched[0]
    assert name == made["metadata"]["name"]
    assert json.loads(body["stringData"]["secrets.json"])["environment"] == {"AWS_ACCESS_KEY_ID": "id-1"}
    cluster.patched.clear()
    later = launcher(cluster, tmp_path).take_over(name, job())
    assert later is not None
    wait_for(lambda: cluster.patched, "a renewal at once")
    later.renewal.end()  # type: ignore[union-attr]
    monkeypatch.delenv("MOXIN_STS_ROLE")
    assert manifests.secret(job(), Secrets(), "mark")["immutable"] is True


def test_a_job_whose_secret_is_refused_does_not_stay(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.fail = "Secret"
    with pytest.raises(
        InfraError, match=r"Kubernetes cannot create job moxin-tokenize-capability-long-.*: 403 Forbidden"
    ):
        launcher(cluster, tmp_path).start(job())
    assert cluster.deleted[-1] == (manifests.name_of(job()), "Background")


def test_a_job_whose_answer_was_lost_does_not_stay(tmp_path: Path) -> None:
    """The cluster may have made it: its pods waited for a Secret that nobody made, on eight machines, for good."""
    cluster = Cluster()
    cluster.unanswered = True
    with pytest.raises(InfraError, match="the API server does not answer"):
        launcher(cluster, tmp_path).start(job())
    assert cluster.deleted == [(manifests.name_of(job()), "Background")]


def test_what_earlier_attempts_at_the_key_left_is_removed(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.leftover = ["moxin-earlier-11", "moxin-earlier-10"]
    launcher(cluster, tmp_path).start(job())
    assert cluster.deleted == [("moxin-earlier-11", "Background"), ("moxin-earlier-10", "Background")]


def test_a_job_of_several_pods_says_how_many_do_not_run_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that run hold their GPUs and wait for the others: only the first pod's reason was told."""
    cluster = Cluster()
    full = "0/7 nodes are available: 7 Insufficient nvidia.com/gpu."
    cluster.pods = [pod(0), waiting_pod(1, full), waiting_pod(2)]
    cluster.status = [{}, {}, {}, COMPLETE]

    later = iter([[pod(0), pod(0), waiting_pod(2)], [pod(0)] * 3])

    def begin(seconds: float) -> None:
        cluster.pods = next(later, cluster.pods)

    monkeypatch.setattr(module.time, "sleep", begin)
    lines = [e["message"] for e in launcher(cluster, tmp_path).start(job(nodes=3)).events()]
    name = manifests.name_of(job())
    assert [line for line in lines if "waits" in line] == [
        f"Kubernetes job {name} waits: 2 of 3 pods do not run yet: {full}",
        f"Kubernetes job {name} waits: 1 of 3 pods do not run yet: to be scheduled",
    ]


def test_events_are_read_once_although_the_log_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    cluster = Cluster()
    cluster.log = b'{"event": "progress", "done": 1}\nplain\n{"event": "done", "exit": "ok", "message": ""}\n'
    cluster.status = [{}, {}, COMPLETE]
    handle = launcher(cluster, tmp_path).start(job())
    first, *events = handle.events()
    assert first["message"].startswith("Kubernetes runs image ")
    assert [e["event"] for e in events] == ["progress", "log", "done"]
    assert handle.wait() == 0
    assert cluster.deleted[-1][1] == "Background"


def test_lines_after_a_rotation_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines were counted: those that came after the node had rotated its log were taken for old ones."""
    cluster = Cluster()
    cluster.status = [{}, {}, COMPLETE]
    cluster.log = b"".join(b'{"event": "progress", "done": %d}\n' % number for number in range(30))

    def rotate(seconds: float) -> None:
        cluster.rotated = 25
        cluster.log += b'{"event": "done", "exit": "ok", "message": ""}\n'

    monkeypatch.setattr(module.time, "sleep", rotate)
    events = list(launcher(cluster, tmp_path).start(job()).events())
    assert [e["done"] for e in events if e["event"] == "progress"] == list(range(30))
    assert events[-1]["event"] == "done"


def test_a_server_that_is_away_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt was ended, and its Job deleted, when one question of many went unanswered."""
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    cluster = Cluster()
    cluster.log, cluster.status = b'{"event": "done", "exit": "ok", "message": ""}\n', [{}, COMPLETE]
    list_pods, asked = cluster.list_namespaced_pod, list[int]()

    def away_at_first(namespace: str, label_selector: str) -> Any:
        asked.append(1)
        if len(asked) < 3:
            raise ProtocolError("connection reset") if len(asked) == 1 else ApiException(status=503, reason="away")
        return list_pods(namespace, label_selector)

    monkeypatch.setattr(cluster, "list_namespaced_pod", away_at_first)
    handle = launcher(cluster, tmp_path).start(job())
    before = len(cluster.deleted)
    assert [e["event"] for e in handle.events()][-1] == "done"
    assert (handle.wait(), len(cluster.deleted) - before) == (0, 1), "removed at its end, not before"


@pytest.mark.parametrize("error", [ApiException(status=503, reason="away"), ProtocolError("connection reset")])
def test_a_server_that_does_not_say_whether_a_job_lives_is_asked_again(tmp_path: Path, error: Exception) -> None:
    """It was taken for gone, and a second Job began beside it."""
    cluster = Cluster()

    def away(name: str, namespace: str) -> Any:
        raise error

    cluster.read_namespaced_job_status = away  # type: ignore[method-assign]
    with pytest.raises(InfraError, match="Kubernetes cannot look for job j"):
        launcher(cluster, tmp_path).take_over("j", job())


def test_a_job_that_somebody_deleted_was_preempted(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.status = []
    handle = launcher(cluster, tmp_path).start(job())
    assert [e["message"] for e in handle.events() if e["event"] == "done"] == ["the Job was deleted"]
    assert ExitClass.from_code(handle.wait()) is ExitClass.PREEMPTED


def test_stopping_gives_the_pods_their_grace(tmp_path: Path) -> None:
    cluster = Cluster()
    module.delete(cluster, cluster, "moxin", "j", 25)
    assert cluster.deleted == [("batch.kubernetes.io/job-name=j", 25), ("j", "Background")]


def test_a_job_is_deleted_once_a_server_that_is_away_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was asked once: the Job then went on to its end, and a second stop did nothing."""
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    cluster, tries = Cluster(), list[str]()
    handle = launcher(cluster, tmp_path).start(job())
    delete, cluster.deleted = cluster.delete_namespaced_job, []

    def away_at_first(name: str, namespace: str, **how: Any) -> None:
        tries.append(name)
        if len(tries) < 3:
            raise ProtocolError("connection reset") if len(tries) == 1 else ApiException(status=503, reason="away")
        delete(name, namespace, **how)

    monkeypatch.setattr(cluster, "delete_namespaced_job", away_at_first)
    handle.stop(25)
    wait_for(lambda: (handle.id, "Background") in cluster.deleted, "the Job's end")
    assert len(tries) == 3


def test_a_stopped_job_is_followed_until_its_pods_have_saved_their_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease is given back when it is taken for over. A log that is quiet for a minute, as while a large checkpoint
    is stored, is asked for again: the Job was gone by then, and the checkpoint refused.
    """
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    cluster = Cluster()
    cluster.status = []  # the Job is deleted at once, its pods have their grace
    ending = read("V1Pod", metadata={"name": "p-0", "deletionGracePeriodSeconds": 600}, status={"phase": "Running"})
    cluster.pods = [ending]
    looks = list[float]()

    def later(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            cluster.log = b'{"event": "done", "exit": "preempted", "message": "stopped on request"}\n'
            cluster.pods = [pod(75)]

    monkeypatch.setattr(module.time, "sleep", later)
    handle = launcher(cluster, tmp_path).start(job())
    ended = [event["message"] for event in handle.events() if event["event"] == "done"]
    assert (ended, len(looks) >= 3) == (["stopped on request"], True)
    assert ExitClass.from_code(handle.wait()) is ExitClass.PREEMPTED


def test_a_pod_whose_machine_is_gone_is_not_waited_for_beyond_its_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, clock = Cluster(), [1000.0]
    cluster.status = []
    cluster.pods = [
        read("V1Pod", metadata={"name": "p-0", "deletionGracePeriodSeconds": 600}, status={"phase": "Running"})
    ]
    monkeypatch.setattr(module.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + 30))
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    handle = launcher(cluster, tmp_path).start(job())
    assert [event["message"] for event in handle.events() if event["event"] == "done"] == ["the Job was deleted"]
    assert 1600 < clock[0] < 1800


def test_only_a_live_job_is_taken_over(tmp_path: Path) -> None:
    cluster = Cluster()
    assert isinstance(launcher(cluster, tmp_path).take_over("j", job()), KubernetesHandle)
    cluster.status = [COMPLETE]
    assert launcher(cluster, tmp_path).take_over("j", job()) is None
    cluster.status = []
    assert launcher(cluster, tmp_path).take_over("j", job()) is None


def test_reap_deletes_a_runs_jobs_and_leaves_what_can_be_taken_over(tmp_path: Path) -> None:
    cluster = Cluster()
    assert launcher(cluster, tmp_path).reap() == []
    assert launcher(cluster, tmp_path).reap("run-1") == ["j"]
    assert launcher(cluster, tmp_path).reap("run-2") == []


def test_what_a_cluster_cannot_have_is_said_before_anything_is_made(tmp_path: Path) -> None:
    cluster = Cluster()
    with pytest.raises(ConfigError, match="pods cannot reach the object store at http://127"):
        launcher(cluster, tmp_path).start(job("http://127.0.0.1:8333"))
    with pytest.raises(ConfigError, match="reads material of this machine"):
        launcher(cluster, tmp_path).start(job(material=True))
    assert cluster.made == []
