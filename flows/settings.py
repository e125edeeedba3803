"""Where things are: the state folder, the object store, the Prefect API. From the environment, else the embedded services.

| variable | meaning | default |
| --- | --- | --- |
| MOXIN_HOME | state folder: services, caches, logs, reports | `.moxin` in the repository |
| MOXIN_S3_ENDPOINT, MOXIN_S3_BUCKET, MOXIN_S3_REGION, MOXIN_S3_PREFIX | an object store of your own | the embedded SeaweedFS |
| AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY | its credentials (the standard AWS ways work too) | generated |
| PREFECT_API_URL, PREFECT_API_AUTH_STRING | a Prefect server of your own | the embedded one |
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.core.contracts import ConfigError, StoreAddress

ROOT = Path(__file__).resolve().parents[1]
BUCKET = "moxin"
_AWS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_CA_BUNDLE",
)
"""How boto3 is told of a store of the user's own: all of it goes on to the stages."""
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the V2 page asks an outside host even so (facts/orchestration.md 8)
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Nothing is sent to any outside host."""


def home() -> Path:
    """The state folder."""
    return Path(os.environ.get("MOXIN_HOME") or ROOT / ".moxin").resolve()


@dataclass(frozen=True)
class Settings:
    """Resolved settings. Its representation hides credentials."""

    home: Path
    store: StoreAddress
    prefect_api_url: str
    external_store: bool
    external_prefect: bool
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    prefect_auth: str | None = field(default=None, repr=False)

    @classmethod
    def load(cls, folder: Path | None = None) -> Settings:
        """Resolve from the environment and the state folder. Raises ConfigError when there is no store to talk to."""
        folder = folder or home()
        services = read_json(folder / "services.json")
        secrets = read_json(folder / "credentials.json")
        env = os.environ
        external = bool(env.get("MOXIN_S3_ENDPOINT") or env.get("MOXIN_S3_BUCKET")) and env.get("MOXIN_EMBEDDED") != "1"
        if external:
            store = StoreAddress(
                bucket=env.get("MOXIN_S3_BUCKET", BUCKET),
                endpoint=env.get("MOXIN_S3_ENDPOINT") or None,
                region=env.get("MOXIN_S3_REGION", "us-east-1"),
                prefix=env.get("MOXIN_S3_PREFIX", ""),
            )
            credentials = {k: env[k] for k in _AWS if k in env}
        else:
            if "s3_port" not in services:
                raise ConfigError("no object store: start the embedded services with 'moxin up', or set MOXIN_S3_ENDPOINT")
            store = StoreAddress(bucket=BUCKET, endpoint=f"http://127.0.0.1:{services['s3_port']}")
            if not {"s3_access_key", "s3_secret_key"} <= secrets.keys():
                raise ConfigError(f"{folder / 'credentials.json'} has no keys for the object store: run 'moxin down', then 'moxin up'")
            credentials = {"AWS_ACCESS_KEY_ID": secrets["s3_access_key"], "AWS_SECRET_ACCESS_KEY": secrets["s3_secret_key"]}
        embedded_api = f"http://127.0.0.1:{services.get('prefect_port', 4200)}/api"
        api = env.get("PREFECT_API_URL", embedded_api)
        foreign = api != embedded_api
        auth = env.get("PREFECT_API_AUTH_STRING") if foreign else secrets.get("prefect_auth")
        return cls(folder, store, api, external, foreign, credentials, auth)

    @property
    def prefect_ui_url(self) -> str:
        """The address of the Prefect pages."""
        return self.prefect_api_url.removesuffix("/api")

    def store_environment(self) -> dict[str, str]:
        """What a process needs to reach the store."""
        return dict(self.credentials)

    def environment(self) -> dict[str, str]:
        """What a process of the control plane needs: the store, the Prefect API, nothing sent outside."""
        env = {**QUIET, **self.store_environment(), "PREFECT_API_URL": self.prefect_api_url, "MOXIN_HOME": str(self.home)}
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
