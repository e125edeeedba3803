"""A release pushed to a hub, through huggingface_hub: every file of a folder in one commit.

The hub checks the card's metadata before anything is sent, then large files go, then the commit. What the hub has
already is not sent again, so a push that broke is repeated and goes on. The token is huggingface_hub's own (HF_TOKEN,
or its login): it is never read, shown or logged here, also where the hub's answer repeats it.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.release import folder as folders
from flows.release.weights import INDEX, SUFFIX
from stages.core.errors import ConfigError, InfraError
from stages.core.files import file_sha256

OWNER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
MESSAGE = "Release by moxin"
TOKEN = re.compile(r"(?i)\bhf_\w+|\bbearer\s+\S+")
"""What looks like a token, or says that one follows."""


@dataclass(frozen=True)
class Push:
    """What a push sends, or has sent. send: (path, bytes); remove: files of an earlier release that this one has not.

    exists: whether the repository is there, None: not known; commit: None as long as nothing was sent.
    """

    repository: str
    endpoint: str
    exists: bool | None
    send: tuple[tuple[str, int], ...]
    remove: tuple[str, ...]
    commit: str | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.send)

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"bytes": self.size}


def check_owner(owner: str) -> None:
    """Raises ConfigError for what can be no user or organization of a hub."""
    if not OWNER.fullmatch(owner) or "--" in owner or ".." in owner:
        raise ConfigError(f"--push {owner}: no name of a user or an organization on the hub")


def plan(folder: Path, repository: str, api: Any = None) -> Push:
    """What would be sent, without sending anything. The hub is asked what the repository has.

    Raises ConfigError for a folder that is no release, or not as it was written; InfraError.
    """
    api = api or _api()
    with _clear(repository, "nothing was sent"):
        exists = bool(api.repo_exists(repository))
        there: list[str] = api.list_repo_files(repository) if exists else []
    return _plan(folder, repository, str(api.endpoint), exists, there)


def preview(folder: Path, repository: str, api: Any = None) -> Push:
    """As `plan`; where the hub cannot be reached, without what it has (`exists` is None): nothing depends on that."""
    api = api or _api()
    try:
        return plan(folder, repository, api)
    except InfraError:
        return _plan(folder, repository, str(api.endpoint), None, [])


def push(folder: Path, repository: str, api: Any = None, private: bool = False) -> Push:
    """Make the repository where there is none, and send a folder's files in one commit.

    Raises ConfigError for a folder that is no release, or not as it was written, and for what the hub forbids;
    InfraError when it cannot be reached: the same command again goes on.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = api or _api()
    planned = plan(folder, repository, api)
    with _clear(repository, "the files that were sent are kept there: the same command again goes on"):
        api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        additions = [CommitOperationAdd(path, str(folder / path)) for path, _ in planned.send]
        removals = [CommitOperationDelete(path) for path in planned.remove]
        done = api.create_commit(repository, [*additions, *removals], commit_message=MESSAGE)
    return Push(planned.repository, planned.endpoint, True, planned.send, planned.remove, str(done.oid))


def _plan(folder: Path, repository: str, endpoint: str, exists: bool | None, there: list[str]) -> Push:
    manifest = folders.read_manifest(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    for path, sha in manifest["files"].items():
        if path not in names or file_sha256(names[path]) != sha:
            raise ConfigError(f"{folder / path} is not as it was released: run 'moxin release' again")
    if strange := sorted(names.keys() - manifest["files"].keys() - folders.AFTERWARDS):
        raise ConfigError(f"{folder / strange[0]} is no part of the release: remove it, or release again")
    old = [path for path in there if path not in names and (path.endswith(SUFFIX) or path == INDEX)]
    send = tuple((name, path.stat().st_size) for name, path in names.items())
    return Push(repository, endpoint, exists, send, tuple(sorted(old)))


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="moxin")


@contextmanager
def _clear(repository: str, afterwards: str) -> Generator[None]:
    """The hub's refusals as one line each; what it says of a request is left out, a token could stand in it."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        yield
    except (HFValidationError, LocalTokenNotFoundError) as error:
        raise ConfigError(f"--push: {_said(error)}") from None
    except HfHubHTTPError as error:
        status: int = getattr(error.response, "status_code", 0)  # there may be none, whatever its type says
        if status in (401, 403):
            raise ConfigError(
                f"{repository}: the hub refuses (status {status}): set HF_TOKEN to a token that may write there"
            ) from None
        if status in (400, 404, 409, 413, 422):
            said = _said(error.server_message or "")
            raise ConfigError(f"{repository}: the hub does not take it (status {status}): {said}") from None
        raise InfraError(f"{repository}: the hub answers with status {status}; {afterwards}") from None
    except ValueError as error:  # what create_commit says of a card that the hub does not take
        raise ConfigError(f"{repository}: {_said(error)}") from None
    except (OSError, RuntimeError) as error:
        raise InfraError(
            f"{repository}: the hub cannot be reached ({type(_cause(error)).__name__}); {afterwards}"
        ) from None
    except Exception as error:
        if type(error).__module__.startswith(("httpx", "httpcore")):  # whichever of them the client has
            raise InfraError(
                f"{repository}: the hub cannot be reached ({type(error).__name__}); {afterwards}"
            ) from None
        raise


def _said(message: object) -> str:
    """What the other side said, as one short line without a token."""
    return TOKEN.sub("***", " ".join(str(message).split()))[:200]


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
