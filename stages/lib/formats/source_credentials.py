"""What raw sources are read with: credentials of their own, never those of the artifact store.

| variable | what |
| --- | --- |
| HF_TOKEN, HF_ENDPOINT | the Hugging Face hub: huggingface_hub reads them itself |
| MOXIN_SOURCE_AWS_ACCESS_KEY_ID, MOXIN_SOURCE_AWS_SECRET_ACCESS_KEY, _SESSION_TOKEN | keys for `s3://` sources |
| MOXIN_SOURCE_AWS_SHARED_CREDENTIALS_FILE, MOXIN_SOURCE_AWS_PROFILE | or a file of profiles, and which one of them |
| MOXIN_SOURCE_S3_ENDPOINT, MOXIN_SOURCE_S3_REGION | where `s3://` sources are, when not on AWS in us-east-1 |
| HTTPS_PROXY, HTTP_PROXY, NO_PROXY | a way out, where there is no other |

They are set where `moxin` runs. A launcher hands them, as secrets, to stages with `network = "internet"` and to no
others.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

from stages.core.errors import ConfigError

PREFIX = "MOXIN_SOURCE_"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
STORE = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE")
"""Each says that the environment's keys are the store's."""
FILE = f"{PREFIX}AWS_SHARED_CREDENTIALS_FILE"
"""Its text goes along where a stage runs in another file system."""
FORMER = {f"{PREFIX}S3_ENDPOINT": "MOXIN_RAW_S3_ENDPOINT"}
"""Names of an earlier version, taken for one version more."""
VARIABLES = (
    "HF_TOKEN",
    "HF_ENDPOINT",
    *(PREFIX + name for name in KEYS),
    FILE,
    f"{PREFIX}AWS_PROFILE",
    f"{PREFIX}S3_ENDPOINT",
    f"{PREFIX}S3_REGION",
    *FORMER.values(),
)
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy")
REMEDY = (
    f"set {PREFIX}AWS_ACCESS_KEY_ID and {PREFIX}AWS_SECRET_ACCESS_KEY (infra/README.md, Credentials) where moxin runs"
)
"""For errors of a source that refuses us."""


def _given(name: str) -> str | None:
    if (value := os.environ.get(PREFIX + name)) is None and (value := os.environ.get(FORMER.get(PREFIX + name, ""))):
        warnings.warn(
            f"{FORMER[PREFIX + name]} is called {PREFIX}{name} now: the old name goes with the next version",
            FutureWarning,
            stacklevel=2,
        )
    return value or None


_clients: dict[tuple[str | None, ...], Any] = {}


def s3_client() -> Any:
    """A client for `s3://` sources, the same one for the same settings. Raises ConfigError as `_new_client`."""
    settings = tuple(os.environ.get(name) for name in (*VARIABLES, *STORE))
    if settings not in _clients:
        _clients[settings] = _new_client()
    return _clients[settings]


def _new_client() -> Any:
    """Without keys of theirs requests are not signed, as public buckets take them; where the store has no keys
    in the environment either (the machine has a role), boto3's own way is theirs too. Raises ConfigError for half a
    pair of keys, or no such profile.
    """
    import boto3
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    key, secret = _given("AWS_ACCESS_KEY_ID"), _given("AWS_SECRET_ACCESS_KEY")
    if bool(key) != bool(secret):
        lacking = KEYS[1] if key else KEYS[0]
        raise ConfigError(
            f"{PREFIX}{lacking} is not set, but the other half of the sources' keys is: set both, or none"
        )
    where = {"endpoint_url": _given("S3_ENDPOINT"), "region_name": _given("S3_REGION") or "us-east-1"}
    if key:
        return boto3.Session().client(
            "s3",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=_given("AWS_SESSION_TOKEN"),
            **where,
        )
    file, profile = _given("AWS_SHARED_CREDENTIALS_FILE"), _given("AWS_PROFILE")
    if file or profile:
        inner = botocore.session.Session()
        if file:
            inner.set_config_variable("credentials_file", file)
        try:  # a profile that is named comes before the keys in the environment, which are the store's
            return boto3.Session(botocore_session=inner, profile_name=profile or "default").client("s3", **where)
        except BotoCoreError as error:
            raise ConfigError(f"{PREFIX}AWS_PROFILE = '{profile or 'default'}' cannot be used: {error}") from error
    if any(os.environ.get(name) for name in STORE):
        return boto3.Session().client("s3", config=Config(signature_version=UNSIGNED), **where)
    return boto3.Session().client("s3", **where)
