"""Where others' data lies: a folder here, a repository of the hub at one commit, or a prefix of an object store.

fetched("hf://mistralai/Mistral-7B-v0.1@26bca36", work, needed)     hf://datasets/OWNER/NAME for a data set
fetched("s3://bucket/models/base", work, needed)                    with the keys of sources (source_credentials)
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.disk import no_space
from stages.core.errors import ConfigError
from stages.core.files import inside
from stages.lib.data.hub_requests import call_hub
from stages.lib.formats.remote import RemoteFile
from stages.lib.formats.remote_s3 import S3, object_uris

Choose = Callable[[Iterable[str]], Sequence[str]]
"""Which of the names of all files are fetched."""
REPOSITORY = re.compile(r"hf://(datasets/)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
COPIED = 16 << 20
HOLDS = "holds a file that no folder may hold"


@dataclass(frozen=True)
class Place:
    """folder: where the files are now; name: what the place is called, with the revision that was read; revision: the
    commit of the hub, '' where there is none.
    """

    folder: Path
    name: str
    revision: str = ""


def fetched(place: str, work: Path, choose: Choose) -> Place:
    """The files of a place on this disk. Raises ConfigError for no such place, InputError, InfraError."""
    if place.startswith("hf://"):
        return _of_hub(place, work, choose)
    if place.startswith("s3://"):
        return _of_store(place, work, choose)
    if "://" in place:
        raise ConfigError(f"{place}: a folder, hf://OWNER/NAME[@REVISION] or s3://BUCKET/PREFIX can be adopted from")
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{place}: {'is a file, not a folder' if folder.exists() else 'there is no such folder'}")
    return Place(folder, f"folder {folder.resolve().name}")


def _of_hub(place: str, work: Path, choose: Choose) -> Place:
    from huggingface_hub import HfApi, hf_hub_download

    match = REPOSITORY.fullmatch(place)
    if match is None:
        raise ConfigError(f"{place}: write hf://OWNER/NAME, with @REVISION behind it or without")
    kind, name, revision = ("dataset" if match[1] else "model"), match[2], match[3]
    info: Any = call_hub(place, lambda: HfApi().repo_info(name, repo_type=kind, revision=revision))
    commit = str(info.sha)
    chosen = choose([file.rfilename for file in info.siblings or ()])
    folder = work / f"{name.replace('/', '--')}-{commit[:12]}"
    for file in chosen:
        inside(folder, file, f"{place} {HOLDS}")  # huggingface_hub refuses them too, by a ValueError
        call_hub(
            f"{place}, {file}",
            lambda file=file: hf_hub_download(name, file, repo_type=kind, revision=commit, local_dir=folder),
        )
    folder.mkdir(parents=True, exist_ok=True)
    return Place(folder, f"hf://{match[1] or ''}{name}@{commit}", commit)


def _of_store(place: str, work: Path, choose: Choose) -> Place:
    uris = object_uris(place)
    names = {uri.removeprefix(place.rstrip("/") + "/"): uri for uri in uris}
    folder = work / place.removeprefix("s3://").strip("/").replace("/", "--")
    shutil.rmtree(folder, ignore_errors=True)  # of objects no commit says that they are still the same
    for name in choose(names):
        path = inside(folder, name, f"{place} {HOLDS}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with RemoteFile(S3(names[name]), names[name]) as remote, open(path, "wb") as stream:
            if (remote.promise.size or 0) > shutil.disk_usage(folder).free:
                raise no_space(folder)
            shutil.copyfileobj(remote, stream, COPIED)
    folder.mkdir(parents=True, exist_ok=True)
    return Place(folder, place.rstrip("/"))
