"""Credentials of the store for one attempt alone: for an hour, and for what its node reads and writes.

Where MOXIN_STS_ROLE names a role of the store (AWS, MinIO and Ceph have AssumeRole; the embedded store has not), a
launcher that would copy its own credentials into a job asks for such ones instead, and writes them anew into the job's
file of secrets before they end. What the session's policy does not name, the store refuses.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flows.settings import Settings, environment
from stages.core.errors import ConfigError, InfraError
from stages.core.messages import StageRequest

POLICY_CHARACTERS = 2048
"""The most that a session's policy may have (AWS STS, AssumeRole, Policy)."""
KEY_CHARACTERS = 16
"""Of a key, what stands in a policy: 64 bits of a digest; of a million keys two share them once in 10^7 stores."""
RENEWED = 0.5
"""The part of their time after which credentials are asked for anew."""
PAUSE = 30.0
"""Seconds before a store that gave none is asked again."""
_KEPT = ("AWS_CA_BUNDLE",)
"""Of the variables of AWS, what goes along with credentials of a session."""


def policy(request: StageRequest, exact: int = 2) -> dict[str, Any]:
    """What an attempt may do in the store, as a policy of IAM.

    Read: all that bears the key of an input or its own. Write and delete: under its own prefixes. Beside them: what is
    remembered across keys, the probes of the store's clock, and the mark that an object of an input is damaged. Names
    can be listed under its own prefixes; the condition holds where a list names one, so that a look at what is not
    there is answered as such.

    exact: 2; with 1 the marks, with 0 reads too, of the whole prefix, where a policy cannot name that many inputs.
    """
    address, key = request.store, request.key[:KEY_CHARACTERS]
    bucket = f"arn:aws:s3:::{address.bucket}"
    at = f"{bucket}/{address.prefix}"
    inputs = sorted({ref.key[:KEY_CHARACTERS] for refs in request.inputs.values() for ref in refs})
    writable = [f"{folder}/{request.stage}/{key}*" for folder in ("objects", "work")]
    writable += [f"{folder}/{key}*" for folder in ("checkpoints", "manifests", "attempts", "damaged/checkpoints")]
    writable += ["memory/*", "probe/*"]
    readable = [*(f"*/{one}*" for one in (key, *inputs)), "memory/*", "probe/*"] if exact > 0 else ["*"]
    marks = [f"*/{one}*/DAMAGED.json" for one in inputs] if exact > 1 else ["*/DAMAGED.json"]
    listed = [f"{address.prefix}{one}" for one in (f"*/{key}*", "probe/*")]
    statements: list[dict[str, Any]] = [
        {"Action": "s3:GetObject", "Resource": [at + one for one in readable]},
        {
            "Action": ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
            "Resource": [at + one for one in writable],
        },
        *([{"Action": "s3:PutObject", "Resource": [at + one for one in marks]}] if inputs else []),
        {"Action": "s3:ListBucket", "Resource": bucket, "Condition": {"StringLikeIfExists": {"s3:prefix": listed}}},
    ]
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **one} for one in statements]}


def policy_text(request: StageRequest) -> str:
    """The policy in as few characters as JSON has, as exact as fits. Raises ConfigError where none does."""
    text = ""
    for exact in (2, 1, 0):
        text = json.dumps(policy(request, exact), separators=(",", ":"))
        if len(text) <= POLICY_CHARACTERS:
            return text
    raise ConfigError(
        f"node {request.node}: a session's policy has {POLICY_CHARACTERS:,} characters at most, and this one"
        f" {len(text):,}: use a shorter prefix (MOXIN_S3_PREFIX), or unset MOXIN_STS_ROLE"
    )


@dataclass(frozen=True)
class Session:
    """Credentials of one attempt. until: when they end, in seconds since the epoch; infinite: never that is known."""

    environment: Mapping[str, str]
    until: float = math.inf

    @property
    def ends(self) -> bool:
        """Whether they are good for a time, and have to be renewed."""
        return self.until < math.inf


def session(settings: Settings, request: StageRequest) -> Session:
    """What a job is given to reach the store with: credentials of its own where there is a role for them, else copies
    of this process's. Raises ConfigError or InfraError.
    """
    given, env = settings.store_environment(), environment()
    if not env.sts_role:
        return Session(given)
    if not settings.external_store:
        raise ConfigError(
            "MOXIN_STS_ROLE is set, but the embedded store hands out no credentials for an hour: unset it, or use a"
            " store of your own (MOXIN_S3_ENDPOINT)"
        )
    answer = _assume(settings, env.sts_role, env.sts_endpoint, env.sts_seconds, request)["Credentials"]
    kept = {name: value for name, value in given.items() if not name.startswith("AWS_") or name in _KEPT}
    until = answer["Expiration"]
    return Session(
        kept
        | {
            "AWS_ACCESS_KEY_ID": answer["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": answer["SecretAccessKey"],
            "AWS_SESSION_TOKEN": answer["SessionToken"],
        },
        until.timestamp() if isinstance(until, datetime) else float(until),
    )


def _assume(settings: Settings, role: str, endpoint: str | None, seconds: int, request: StageRequest) -> Any:
    """The answer of AssumeRole, asked for with this process's own credentials."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    where = endpoint or settings.store.endpoint
    client: Any = boto3.Session().client(  # pyright: ignore[reportUnknownMemberType]
        "sts",
        endpoint_url=where,
        region_name=settings.store.region,
        config=Config(connect_timeout=5, read_timeout=30, retries={"max_attempts": 4, "mode": "standard"}),
    )
    name = f"moxin-{request.node[:30]}-{request.key[:12]}-{request.lease.epoch}"
    try:
        return client.assume_role(
            RoleArn=role, RoleSessionName=name, Policy=policy_text(request), DurationSeconds=seconds
        )
    except ClientError as error:
        code, status = error.response["Error"].get("Code", ""), error.response["ResponseMetadata"]["HTTPStatusCode"]
        kind = InfraError if status >= 500 or status == 429 else ConfigError
        raise kind(
            f"{where or 'AWS STS'} gives no credentials for node {request.node} ({code}): MOXIN_STS_ROLE = {role} must"
            f" be a role that this process may assume, for {seconds} s (MOXIN_STS_SECONDS)"
        ) from error
    except BotoCoreError as error:
        raise InfraError(
            f"{where or 'AWS STS'} cannot be reached ({type(error).__name__}): MOXIN_STS_ENDPOINT says where it is"
        ) from error


class Renewal:
    """Credentials of a job that goes on: asked for anew after half of their time, and handed to `deliver`, which brings
    them to the job's file of secrets. begun: those that the job has; None: a job that another control plane started.
    """

    def __init__(
        self, settings: Settings, request: StageRequest, begun: Session | None, deliver: Callable[[Session], object]
    ) -> None:
        self._settings, self._request, self._deliver = settings, request, deliver
        self._over, self._lock = threading.Event(), threading.Lock()
        if environment().sts_role:
            threading.Thread(target=self._renew, args=(begun,), daemon=True).start()

    def _renew(self, begun: Session | None) -> None:
        until = begun.until if begun else 0.0
        while not self._over.wait(max(0.0, (until - time.time()) * RENEWED)):
            try:
                new = session(self._settings, self._request)
                with self._lock:
                    if not self._over.is_set():
                        self._deliver(new)
                until = new.until
            except Exception:  # asked again until the job ends: it says itself when it can no longer go on
                until = max(until, time.time() + PAUSE / RENEWED)

    def end(self) -> None:
        """The job is over. From now on nothing is delivered: its file of secrets is about to go."""
        with self._lock:
            self._over.set()
