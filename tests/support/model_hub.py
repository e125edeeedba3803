"""A hub that takes models, on loopback: as much of the Hugging Face hub's API as a commit of a folder asks for.

    with ModelHub() as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.TOKEN)

Served: making a repository, its info and tree, the check of a card, preupload, the LFS batch with single PUTs
and their check, and commits. Refused as the hub does: 401 without the token, 404 for what is not there, 409 for what is
there already. `fail` makes the next answers to a kind of request an error or cuts the connection.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import urllib.parse
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import yaml

LARGE = (".safetensors", ".zip", ".parquet")
"""What this hub keeps in LFS."""
CUT = 0
"""In the place of a status: the connection is cut without an answer."""


class ModelHub:
    """The server, a context manager. repositories: {name: {path: bytes}}; commits, puts: what was asked, in order."""

    TOKEN = "hf_loopback_writer"

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.puts: list[str] = []
        self.asked: Counter[str] = Counter()
        self.strange: list[str] = []
        self._failures: dict[str, list[int]] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self)

            do_POST = do_PUT = do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, what: str, *statuses: int) -> None:
        """The next requests of a kind ('commit', 'put', 'create', 'info' ..) get these statuses; CUT: no answer."""
        self._failures.setdefault(what, []).extend(statuses)

    # --- answers ------------------------------------------------------------------------------------------------------

    def _answer(self, ask: BaseHTTPRequestHandler) -> None:
        body = ask.rfile.read(int(ask.headers.get("Content-Length") or 0))
        parts = urllib.parse.unquote(urllib.parse.urlsplit(ask.path).path).strip("/").split("/")
        what = self._kind(ask.command, parts)
        self.asked[what] += 1
        if self._failures.get(what):
            status = self._failures[what].pop(0)
            if status == CUT:
                ask.close_connection = True
                ask.connection.close()
                return
            _send(ask, status, {"error": f"refused: {ask.headers.get('Authorization')}"})
            return
        if what not in ("put", "validate") and ask.headers.get("Authorization") != f"Bearer {self.TOKEN}":
            _send(ask, 401, {"error": "Invalid username or password."})
            return
        if what == "strange":
            self.strange.append(f"{ask.command} {ask.path}")
            _send(ask, 404, {"error": "not served"})
            return
        getattr(self, f"_{what}")(ask, parts, body)

    def _kind(self, command: str, parts: list[str]) -> str:
        if parts == ["api", "repos", "create"]:
            return "create"
        if parts == ["api", "validate-yaml"]:
            return "validate"
        if parts[:2] == ["api", "models"] and len(parts) == 4:
            return "info"
        if (
            parts[:2] == ["api", "models"]
            and len(parts) > 4
            and parts[4] in ("tree", "preupload", "commit", "revision")
        ):
            return {"revision": "info"}.get(parts[4], parts[4])
        if parts[-4:] == ["info", "lfs", "objects", "batch"]:
            return "batch"
        return {"lfs": "put", "verify": "verify"}.get(parts[0], "strange")

    def _info(self, ask: BaseHTTPRequestHandler, parts: list[str], body: bytes) -> None:
        name = "/".join(parts[2:4])
        if name not in self.repositories:
            _send(ask, 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        files = [{"rfilename": path} for path in self.repositories[name]]
        _send(ask, 200, {"id": name, "sha": self._head(), "siblings": files, "tags": [], "private": False})

    def _head(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()

    def _tree(self, ask: BaseHTTPRequestHandler, parts: list[str], body: bytes) -> None:
        files = self.repositories["/".join(parts[2:4])]
        rows = [{"type": "file", "path": path, "size": len(data), "oid": _git(data)} for path, data in files.items()]
        _send(ask, 200, rows)

    def _create(self, ask: BaseHTTPRequestHandler, parts: list[str], body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            _send(ask, 409, {"error": "You already created this model repo", "url": f"{self.endpoint}/{name}"})
            return
        self.repositories[name] = {}
        self.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
        _send(ask, 200, {"url": f"{self.endpoint}/{name}", "name": name})

    def _validate(self, ask: BaseHTTPRequestHandler, parts: list[str], body: bytes) -> None:
        front = json.loads(body)["content"].split("---\n")[1]
        known = isinstance(yaml.safe_load(front).get("license"), str)
        errors = [] if known else [{"message": '"license" must be a string'}]
        _send(ask, 200 if known else 400, {"errors": errors, "warnings": []})

    def _preupload(self, ask: BaseHTTPRequestHandler, parts: list[str], body: bytes) -> None:
        there = self.repositories["/".join(parts[2:4])]
        rows = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": _oid(there[file["path"]], file["path"]) if file["path"] in there else None,
            }
            for file in json.loads(body)["files"]
        ]
        _send(ask, 200, {"files": rows})

    def _batch(self, ask: BaseHTTPRequestHandler, parts: list[str], body: bytes) -> None:
        objects = []
        for row in json.loads(body)["objects"]:
            actions = {
                "upload": {"href": f"{self.endpoint}/lfs/{row['oid']}"},
                "verify": {"href": f"{self.endpoint}/verify"},
            }
            objects.append(row | ({} if row["oid"] in self.large else {"actions": actions}))
        _send(ask, 200, {"transfer": "basic", "objects": objects})

    def _put(self, ask: BaseHTTPRequestHandler, parts: list[str], body: bytes) -> None:
        assert "Authorization" not in ask.headers, "a token went to the storage"
        assert hashlib.sha256(body).hexdigest() == parts[1]
        self.puts.append(parts[1])
        self.large[parts[1]] = body
        _send(ask, 200, {})

    def _verify(self, ask: BaseHTTPRequestHandler, parts: list[str], body: bytes) -> None:
        asked = json.loads(body)
        found = self.large.get(asked["oid"])
        _send(ask, 200 if found is not None and len(found) == asked["size"] else 404, {})

    def _commit(self, ask: BaseHTTPRequestHandler, parts: list[str], body: bytes) -> None:
        name = "/".join(parts[2:4])
        files = dict(self.repositories[name])
        message = ""
        for row in map(json.loads, body.splitlines()):
            value = row["value"]
            if row["key"] == "header":
                message = value["summary"]
            elif row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif row["key"] == "deletedFile":
                del files[value["path"]]
        self.repositories[name] = files
        self.commits.append(message)
        oid = self._head()
        url = f"{self.endpoint}/{name}/commit/{oid}"
        _send(ask, 200, {"success": True, "commitOid": oid, "commitUrl": url})


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _oid(data: bytes, path: str) -> str:
    return hashlib.sha256(data).hexdigest() if path.endswith(LARGE) else _git(data)


def _send(ask: BaseHTTPRequestHandler, status: int, value: Any, head: dict[str, str] | None = None) -> None:
    data = json.dumps(value).encode()
    ask.send_response(status)
    for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(head or {})}.items():
        ask.send_header(name, text)
    ask.end_headers()
    if ask.command != "HEAD":
        ask.wfile.write(data)
