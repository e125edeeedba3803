"""Where things are: the state folder, the object store, the Prefect API. From the environment, else the embedded
services.

| variable | meaning | default |
| --- | --- | --- |
| MOXIN_HOME | state folder: services, caches, logs, reports | `.moxin` in a checkout, else `~/.local/state/moxin` |
| MOXIN_S3_ENDPOINT, _BUCKET, _REGION, _PREFIX | an object store of your own | the embedded SeaweedFS |
| AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY | its credentials (the standard AWS ways work too) | generated |
| MOXIN_STS_ROLE, _ENDPOINT, _SECONDS | credentials for each attempt alone (flows/launch/scoped.py) | copies |
| HF_TOKEN, MOXIN_SOURCE_* | keys for raw sources (stages/lib/formats/source_credentials.py), not the store's | none |
| MOXIN_EMBEDDED | 1: the embedded store, although one of your own is named | 0 |
| MOXIN_STORE_PATIENCE | seconds for which a store that fails is asked again | 120 (5 for commands that only look) |
| MOXIN_CACHE_BYTES | what the local cache may keep of fetched files; what no stage uses goes first | half of its disk |
| PREFECT_API_URL, PREFECT_API_AUTH_STRING | a Prefect server of your own | the embedded one |
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from flows.data_files import IN_CHECKOUT
from stages.core.errors import ConfigError
from stages.core.files import ROOT
from stages.core.messages import LOOPBACK, StoreAddress

BUCKET = "moxin"
URL = r"^https?://[^/]"
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the V2 page asks an outside host all the same
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Nothing is sent to any outside host."""


def default_home() -> Path:
    """The state folder where none is named; of an installed package the user's, by XDG, not beside the code."""
    if IN_CHECKOUT:
        return ROOT / ".moxin"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "moxin"


class Environment(BaseModel):
    """The variables of the table above, as they are set now. A variable without text counts as unset."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    home: Path = Field(default_factory=default_home, validation_alias="MOXIN_HOME")
    s3_endpoint: str | None = Field(
        default=None, pattern=URL, validation_alias="MOXIN_S3_ENDPOINT", description="a URL: http://.. or https://.."
    )
    s3_bucket: str | None = Field(default=None, validation_alias="MOXIN_S3_BUCKET")
    s3_region: str = Field(default="us-east-1", validation_alias="MOXIN_S3_REGION")
    s3_prefix: str = Field(default="", validation_alias="MOXIN_S3_PREFIX")
    sts_role: str | None = Field(default=None, validation_alias="MOXIN_STS_ROLE")
    sts_endpoint: str | None = Field(
        default=None, pattern=URL, validation_alias="MOXIN_STS_ENDPOINT", description="a URL: http://.. or https://.."
    )
    sts_seconds: int = Field(
        default=3600, ge=900, le=43_200, validation_alias="MOXIN_STS_SECONDS", description="seconds, 900 to 43200"
    )
    embedded: bool = Field(default=False, validation_alias="MOXIN_EMBEDDED", description="0 or 1")
    store_patience: float | None = Field(
        default=None, ge=0, validation_alias="MOXIN_STORE_PATIENCE", description="seconds, such as 120"
    )
    cache_bytes: int | None = Field(
        default=None, ge=0, validation_alias="MOXIN_CACHE_BYTES", description="bytes, such as 500000000000"
    )
    prefect_api_url: str | None = Field(
        default=None, pattern=URL, validation_alias="PREFECT_API_URL", description="a URL: http://../api"
    )
    prefect_auth: SecretStr | None = Field(default=None, validation_alias="PREFECT_API_AUTH_STRING")
    aws_access_key_id: SecretStr | None = Field(default=None, validation_alias="AWS_ACCESS_KEY_ID")
    aws_secret_access_key: SecretStr | None = Field(default=None, validation_alias="AWS_SECRET_ACCESS_KEY")
    aws_session_token: SecretStr | None = Field(default=None, validation_alias="AWS_SESSION_TOKEN")
    aws_profile: SecretStr | None = Field(default=None, validation_alias="AWS_PROFILE")
    aws_shared_credentials_file: SecretStr | None = Field(default=None, validation_alias="AWS_SHARED_CREDENTIALS_FILE")
    aws_config_file: SecretStr | None = Field(default=None, validation_alias="AWS_CONFIG_FILE")
    aws_role_arn: SecretStr | None = Field(default=None, validation_alias="AWS_ROLE_ARN")
    aws_role_session_name: SecretStr | None = Field(default=None, validation_alias="AWS_ROLE_SESSION_NAME")
    aws_web_identity_token_file: SecretStr | None = Field(default=None, validation_alias="AWS_WEB_IDENTITY_TOKEN_FILE")
    aws_endpoint_url_sts: SecretStr | None = Field(default=None, validation_alias="AWS_ENDPOINT_URL_STS")
    aws_container_credentials_full_uri: SecretStr | None = Field(
        default=None, validation_alias="AWS_CONTAINER_CREDENTIALS_FULL_URI"
    )
    aws_container_authorization_token_file: SecretStr | None = Field(
        default=None, validation_alias="AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"
    )
    aws_ec2_metadata_service_endpoint: SecretStr | None = Field(
        default=None, validation_alias="AWS_EC2_METADATA_SERVICE_ENDPOINT"
    )
    aws_ca_bundle: SecretStr | None = Field(default=None, validation_alias="AWS_CA_BUNDLE")

    @property
    def external_store(self) -> bool:
        """Whether a store of the user's own is named, and MOXIN_EMBEDDED does not say to use the embedded one."""
        return bool(self.s3_endpoint or self.s3_bucket) and not self.embedded

    def aws(self) -> dict[str, str]:
        """How boto3 is told of a store of the user's own, by variable: all of it goes on to the stages."""
        values = {name.upper(): getattr(self, name) for name in type(self).model_fields if name.startswith("aws_")}
        return {name: value.get_secret_value() for name, value in values.items() if value is not None}


def environment() -> Environment:
    """Read the variables anew. Raises ConfigError naming the first one that holds no valid value."""
    try:
        return Environment.model_validate({name: value for name, value in os.environ.items() if value})
    except ValidationError as error:
        variable = str(error.errors()[0]["loc"][0])
        field = next(f for f in Environment.model_fields.values() if f.validation_alias == variable)
        expected = f"set it to {field.description}" if field.description else error.errors()[0]["msg"]
        raise ConfigError(f"{variable} = {os.environ.get(variable)!r}: {expected}") from None


FOREIGN = ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE")
"""Variables by which boto3 would send something else than the embedded store's keys, or nothing."""


def directly(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What NO_PROXY must say so that nothing on this machine is asked for through a proxy: the user's own hosts, and
    loopback.
    """
    given = [name.strip() for name in (env.get("no_proxy") or env.get("NO_PROXY") or "").split(",") if name.strip()]
    text = ",".join(dict.fromkeys([*given, *LOOPBACK]))
    return {"NO_PROXY": text, "no_proxy": text}


def home() -> Path:
    """The state folder."""
    return environment().home.resolve()


class NoStore(ConfigError):
    """No object store is named, and none was started here."""


@dataclass(frozen=True)
class Settings:
    """Resolved settings. Its representation hides credentials."""

    home: Path
    store: StoreAddress
    prefect_api_url: str
    external_store: bool
    external_prefect: bool
    credentials: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    prefect_auth: str | None = field(default=None, repr=False)

    @classmethod
    def load(cls, folder: Path | None = None) -> Settings:
        """Resolve from the environment and the state folder. Raises ConfigError when there is no store to talk to."""
        os.environ.update(directly())  # for every client of this process: boto3, Prefect's, urllib
        folder = folder or home()
        services = read_json(folder / "services.json")
        secrets = read_json(folder / "credentials.json")
        env = environment()
        if env.external_store:
            store = StoreAddress(
                bucket=env.s3_bucket or BUCKET, endpoint=env.s3_endpoint, region=env.s3_region, prefix=env.s3_prefix
            )
            credentials = env.aws()
        else:
            if "s3_port" not in services:
                raise NoStore("no object store: start the embedded services with 'moxin up', or set MOXIN_S3_ENDPOINT")
            for name in FOREIGN:  # of the user's shell, for another store: the embedded one knows its two keys alone
                os.environ.pop(name, None)
            store = StoreAddress(bucket=BUCKET, endpoint=f"http://127.0.0.1:{services['s3_port']}")
            if not {"s3_access_key", "s3_secret_key"} <= secrets.keys():
                raise ConfigError(
                    f"{folder / 'credentials.json'} has no keys for the object store: run 'moxin down', then 'moxin up'"
                )
            credentials = {
                "AWS_ACCESS_KEY_ID": secrets["s3_access_key"],
                "AWS_SECRET_ACCESS_KEY": secrets["s3_secret_key"],
            }
        embedded_api = f"http://127.0.0.1:{services.get('prefect_port', 4200)}/api"
        api = env.prefect_api_url or embedded_api
        # the port that an embedded server would have is no sign of one where none was started
        foreign = api != embedded_api or (env.prefect_api_url is not None and "prefect_port" not in services)
        given = env.prefect_auth.get_secret_value() if env.prefect_auth else None
        auth = given if foreign else secrets.get("prefect_auth")
        return cls(folder, store, api, env.external_store, foreign, credentials, auth)

    @property
    def prefect_ui_url(self) -> str:
        """The address of the Prefect pages."""
        return self.prefect_api_url.removesuffix("/api")

    def store_environment(self) -> dict[str, str]:
        """What a process needs to reach the store, to wait for it, and to tell when the disk of the embedded one is
        full.
        """
        patience = environment().store_patience
        env = {} if patience is None else {"MOXIN_STORE_PATIENCE": f"{patience:g}"}
        if not self.external_store:
            env["MOXIN_STORE_FOLDER"] = str(self.home / "store")
        return {**self.credentials, **env}

    def shared_environment(self) -> dict[str, str]:
        """What another installation sets to use this store and this Prefect server. Holds their keys."""
        store = {"MOXIN_S3_ENDPOINT": self.store.endpoint, "MOXIN_S3_BUCKET": self.store.bucket}
        store |= {"MOXIN_S3_REGION": self.store.region, "MOXIN_S3_PREFIX": self.store.prefix}
        api = {"PREFECT_API_URL": self.prefect_api_url, "PREFECT_API_AUTH_STRING": self.prefect_auth}
        return {name: value for name, value in {**store, **self.credentials, **api}.items() if value}

    def environment(self) -> dict[str, str]:
        """What a process of the control plane needs: the store, the Prefect API, nothing sent outside."""
        env = {
            **QUIET,
            **directly(),
            **self.store_environment(),
            "PREFECT_API_URL": self.prefect_api_url,
            "MOXIN_HOME": str(self.home),
        }
        if not self.external_prefect:
            env["PREFECT_HOME"] = str(self.home / "prefect")
        if self.prefect_auth:
            env["PREFECT_API_AUTH_STRING"] = self.prefect_auth
        return env


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it and run 'moxin up' again") from error
