"""Raw files by HTTP: `https://` addresses, and files of the Hugging Face hub, which lead to one (`hf://`)."""

from __future__ import annotations

import functools
import re
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from stages.core.errors import InfraError, InputError
from stages.core.store_errors import retry_after
from stages.lib.formats.remote import BUSY, Answer, Break, Promise
from stages.lib.formats.uris import shown

TIMEOUT = (30.0, 60.0)
"""Seconds to connect, and between two pieces of a body."""
REDIRECTS = 10


@functools.cache
def _pool(proxy: str | None) -> Any:
    import ssl

    import urllib3

    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(*TIMEOUT),
        "retries": False,
        "maxsize": 8,
        "ssl_context": ssl.create_default_context(),
    }
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)


class Http:
    """A file by address. headers: for its own host alone, not for where that sends us. remedy: what helps when access
    is refused.
    """

    def __init__(self, url: str, uri: str, headers: dict[str, str] | None = None, remedy: str = "") -> None:
        self._url, self._uri, self._headers = url, shown(uri), headers or {}
        self._remedy = remedy or "it needs credentials, or its presigned address has run out"

    def open(self, start: int, tag: str | None) -> Answer:
        url, promise = self._url, Promise()
        own_host = urllib.parse.urlsplit(url).netloc
        for _ in range(REDIRECTS):
            host = urllib.parse.urlsplit(url).netloc
            headers = {
                "Accept-Encoding": "identity",
                "User-Agent": "moxin",
                **(self._headers if host == own_host else {}),
            }
            if start:
                headers["Range"] = f"bytes={start}-"
            proxy = urllib.request.getproxies().get(urllib.parse.urlsplit(url).scheme)
            proxy = None if urllib.request.proxy_bypass(host.rpartition("@")[2]) else proxy
            answer = _pool(proxy).request(
                "GET", url, headers=headers, redirect=False, preload_content=False, decode_content=False
            )
            _hub_promise(promise, answer.headers)
            if answer.status not in (301, 302, 303, 307, 308):
                return self._checked(answer, start, promise)
            answer.close()
            url = urllib.parse.urljoin(url, answer.headers.get("Location", ""))
            if urllib.parse.urlsplit(url).scheme not in ("https", urllib.parse.urlsplit(self._url).scheme):
                raise InputError(f"raw file {self._uri} leads to an address that is not https: {shown(url)}")
        raise InputError(f"raw file {self._uri} leads from address to address, over {REDIRECTS} times")

    def _checked(self, answer: Any, start: int, promise: Promise) -> Answer:
        status, headers = answer.status, answer.headers
        if status not in (200, 206):
            answer.close()
            _refused(status, self._uri, self._remedy, headers)
        promise.encoding = headers.get("Content-Encoding", "").lower().replace("identity", "")
        promise.tag = promise.tag or headers.get("ETag")
        begins, size = 0, headers.get("Content-Length")
        if status == 206:
            match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", ""))
            if match is None or match[3] == "*":
                raise Break(f"an answer to a range without Content-Range ({headers.get('Content-Range')})")
            begins, size = int(match[1]), match[3]
        length = int(size) if size and size.isdigit() else None
        if promise.size is not None and length is not None and promise.size != length and not promise.encoding:
            raise Break(f"{length} bytes are offered, {promise.size} were promised")
        promise.size = length if length is not None else promise.size
        if length is None and "chunked" not in headers.get("Transfer-Encoding", "").lower():
            answer.close()
            raise InputError(
                f"raw file {self._uri} answers without a length: a connection that breaks would look like its end"
            )
        return Answer(answer, begins, promise)


def _hub_promise(promise: Promise, headers: Any) -> None:
    """The hub says on its first answer what the file is that it leads to."""
    if (size := headers.get("X-Linked-Size", "")).isdigit():
        promise.size = int(size)
    if tag := headers.get("X-Linked-ETag"):
        promise.tag = tag
        if re.fullmatch(r"[0-9a-f]{64}", tag.strip('"')):
            promise.sha256 = tag.strip('"')


def _refused(status: int, uri: str, remedy: str, headers: Any) -> None:
    """Raise what an HTTP status means."""
    if status in BUSY:
        raise Break(f"the server answers {status}", retry_after(headers.get("Retry-After")))
    if status in (404, 410):
        raise InputError(f"raw file {uri} is not there (the server answers {status})")
    if status in (401, 403):
        raise InputError(f"raw file {uri} is refused (the server answers {status}): {remedy}")
    if status == 416:
        raise InfraError(
            f"raw file {uri} changed while it was read: it is shorter than it was (the server answers 416)"
        )
    raise InputError(f"raw file {uri} cannot be had: the server answers {status}")


# --- the hub ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubFile:
    """`hf://owner/name@revision/path/in/it`, a file of a data set."""

    repository: str
    revision: str
    path: str

    @classmethod
    def parse(cls, uri: str) -> HubFile:
        """Raises InputError for an address that is none, or names no revision."""
        parts = urllib.parse.urlsplit(uri)
        whole = urllib.parse.unquote(f"{parts.netloc}{parts.path}").removeprefix("datasets/")
        repository, at, rest = whole.partition("@")
        revision, _, path = rest.partition("/")
        if not at or not revision:
            raise InputError(
                f"{uri}: name a revision (hf://owner/name@<commit>/file), or the data may change under the same key"
            )
        if not path or repository.count("/") > 1:
            raise InputError(f"{uri}: no file of a data set (hf://owner/name@<commit>/file)")
        return cls(repository, urllib.parse.unquote(revision), path)

    def source(self, uri: str) -> Http:
        from huggingface_hub import constants, get_token

        quoted = urllib.parse.quote(self.path)
        revision = urllib.parse.quote(self.revision, safe="")
        url = f"{constants.ENDPOINT}/datasets/{self.repository}/resolve/{revision}/{quoted}"
        token = get_token()
        page = f"the page of the data set {self.repository} on the hub"
        remedy = (
            f"the data set is gated or private: ask for access on {page} with the account of HF_TOKEN"
            if token
            else f"the data set is gated, private or gone: accept its terms on {page}, and set HF_TOKEN"
        )
        return Http(url, uri, {"Authorization": f"Bearer {token}"} if token else {}, remedy)
