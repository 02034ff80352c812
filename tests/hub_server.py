"""A Hub on this machine: the part of the HTTP API that uploads and downloads of models use, kept in memory.

It answers the real `huggingface_hub` client, which reads its address and its switches when it is imported: clients run
in processes of their own, with the environment that `Hub.environment` returns.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER = "reader"
TOKEN = "hf_" + "t0ken" * 7
READ_TOKEN = "hf_" + "readonly" * 4  # may not write
LARGE = re.compile(r"\.(safetensors|onnx|pt|pth|bin)$")
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass
class Commit:
    """One state of a branch."""

    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A repo: branches of commits, the newest last."""

    private: bool = False
    gated: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [new_commit("initial commit", {})]})

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch or of an id."""
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((c for commits in self.branches.values() for c in commits if c.oid == revision), None)


def new_commit(message: str, files: dict[str, bytes]) -> Commit:
    """Makes a commit whose id no other has."""
    return Commit(hashlib.sha1(os.urandom(20)).hexdigest(), message, files)


@dataclass
class Hub:
    """What is stored, what was asked, and what goes wrong.

    Attributes:
        repos: Repos by their ids.
        objects: Large files by their SHA-256.
        requests: Method and path of every request, in order.
        drop: How often connections are dropped without an answer for requests whose path ends so.
        statuses: What requests whose path ends so are answered with, whatever they ask for.
        hold: How the path of requests ends that wait until `released` is set; `held` says that one is here.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    drop: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, int] = field(default_factory=dict)
    hold: str | None = None
    held: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    endpoint: str = ""

    def environment(self, home: Path, *, token: str | None = TOKEN) -> dict[str, str]:
        """The environment of a client with a cache of its own, and with a token or none."""
        names = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE"}
        kept = {name: value for name, value in os.environ.items() if name not in names}
        given = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return {**kept, **given, **({"HF_TOKEN": token} if token is not None else {})}

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision."""
        found = self.repos[repo].find(revision)
        assert found is not None
        return found.files

    def messages(self, repo: str, revision: str = "main") -> list[str]:
        """The messages of the commits of a branch, the first one of the repo left out."""
        return [commit.message for commit in self.repos[repo].branches[revision][1:]]


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Yields a Hub that answers on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, code: str = "", message: str = "", body: Any = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.body = status, code, message, body


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Keeps quiet."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.query = parse_qs(url.query)
        self.hub.requests.append(f"{self.command} {path}")
        body = self._read_body()
        for end, times in self.hub.drop.items():
            if times > 0 and path.endswith(end):
                self.hub.drop[end] -= 1
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
        if self.hub.hold is not None and path.endswith(self.hub.hold):
            self.hub.held.set()
            self.hub.released.wait(timeout=60)
        try:
            for end, status in self.hub.statuses.items():
                if path.endswith(end):
                    raise _Refusal(status, message="Something is wrong here")
            self._route(path, body)
        except _Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            content = json.dumps(refusal.body if refusal.body is not None else {"error": refusal.message}).encode()
            self._send(refusal.status, content, {name: value for name, value in headers.items() if value})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _answer(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode())

    @property
    def _user(self) -> str | None:
        """Who asks; None without a token."""
        header = self.headers.get("Authorization") or ""
        if not header:
            return None
        if header not in (f"Bearer {TOKEN}", f"Bearer {READ_TOKEN}"):
            raise _Refusal(401, message="Invalid credentials in Authorization header")
        return USER

    def _check_writer(self, namespace: str) -> None:
        if self._user is None:
            raise _Refusal(401, message="Invalid username or password.")
        if self.headers["Authorization"] != f"Bearer {TOKEN}" or namespace != USER:
            raise _Refusal(403, message="You don't have the rights to create a model under this namespace")

    def _repo(self, name: str) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self._user is None):
            raise _Refusal(404 if self._user else 401, "RepoNotFound", "Repository not found")
        return repo

    def _commit(self, name: str, revision: str) -> Commit:
        found = self._repo(name).find(revision)
        if found is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def _route(self, path: str, body: bytes) -> None:
        routes = {
            r"/api/whoami-v2": self._whoami,
            r"/api/repos/create": self._create,
            r"/api/validate-yaml": self._validate,
            r"/api/models/([^/]+/[^/]+)": self._info,
            r"/api/models/([^/]+/[^/]+)/revision/(.+)": self._info,
            r"/api/models/([^/]+/[^/]+)/branch/(.+)": self._branch,
            r"/api/models/([^/]+/[^/]+)/preupload/(.+)": self._preupload,
            r"/api/models/([^/]+/[^/]+)/commit/(.+)": self._make_commit,
            r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?(.*)": self._tree,
            r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"/objects/(\w+)": self._store,
            r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self._resolve,
        }
        for pattern, answer in routes.items():
            found = re.fullmatch(pattern, path)
            if found:
                answer(*found.groups(), **({"body": body} if self.command in ("POST", "PUT") else {}))
                return
        raise _Refusal(404, message=f"No such page: {path}")

    def _whoami(self) -> None:
        if self._user is None:
            raise _Refusal(401, message="Invalid username or password.")
        self._answer({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        namespace = asked["organization"] or USER
        self._check_writer(namespace)
        name = f"{namespace}/{asked['name']}"
        if name in self.hub.repos:
            answer = {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{name}"}
            raise _Refusal(409, message=answer["error"], body=answer)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repos[name] = Repo(private=private)
        self._answer({"url": f"{self.hub.endpoint}/{name}", "name": name})

    def _validate(self, body: bytes) -> None:
        problems = metadata_problems(json.loads(body)["content"])
        if problems:
            raise _Refusal(400, message="Invalid metadata", body={"errors": [{"message": p} for p in problems]})
        self._answer({"errors": [], "warnings": []})

    def _info(self, name: str, revision: str = "main") -> None:
        found, repo = self._commit(name, revision), self.hub.repos[name]
        self._answer(
            {
                "id": name,
                "modelId": name,
                "sha": found.oid,
                "private": repo.private,
                "gated": repo.gated,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(found.files)],
            }
        )

    def _branch(self, name: str, branch: str, body: bytes) -> None:
        repo = self._repo(name)
        self._check_writer(name.split("/")[0])
        if branch in repo.branches:
            raise _Refusal(409, message="Reference already exists")
        repo.branches[branch] = [repo.branches["main"][-1]]
        self._answer({})

    def _preupload(self, name: str, revision: str, body: bytes) -> None:
        files = self._commit(name, revision).files
        self._check_writer(name.split("/")[0])
        self._answer(
            {
                "files": [
                    {
                        "path": entry["path"],
                        "uploadMode": "lfs" if LARGE.search(entry["path"]) else "regular",
                        "shouldIgnore": False,
                        "oid": oid(files[entry["path"]]) if entry["path"] in files else None,
                    }
                    for entry in json.loads(body)["files"]
                ]
            }
        )

    def _batch(self, name: str, body: bytes) -> None:
        self._check_writer(name.split("/")[0])
        objects = []
        for entry in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.endpoint}/objects/{entry['oid']}", "header": {}}}
            known = entry["oid"] in self.hub.objects
            objects.append({**entry, **({} if known else {"actions": upload})})
        self._answer({"transfer": "basic", "objects": objects})

    def _store(self, digest: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != digest:
            raise _Refusal(400, message="The content has another digest")
        self.hub.objects[digest] = body
        self._answer({})

    def _make_commit(self, name: str, branch: str, body: bytes) -> None:
        files = dict(self._commit(name, branch).files)
        self._check_writer(name.split("/")[0])
        message = ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        made = new_commit(message, files)
        self.hub.repos[name].branches[branch].append(made)
        self._answer({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{made.oid}", "commitOid": made.oid})

    def _tree(self, name: str, revision: str, folder: str) -> None:
        files = self._commit(name, revision).files
        entries = []
        for path in sorted(path for path in files if not folder or path.startswith(f"{folder}/")):
            content = files[path]
            entry = {"type": "file", "path": path, "size": len(content), "oid": oid(content)}
            if LARGE.search(path):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        if folder and not entries:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        self._answer(entries)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self._commit(name, revision)
        if self.hub.repos[name].gated:
            raise _Refusal(403 if self._user else 401, "GatedRepo", f"Access to model {name} is restricted.")
        if path not in found.files:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        content = found.files[path]
        digest = hashlib.sha256(content).hexdigest() if LARGE.search(path) else oid(content)
        self._send(200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": found.oid})


def oid(content: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def metadata_problems(card: str) -> list[str]:
    """What the Hub finds wrong with the metadata of a card."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    data = yaml.safe_load(found[1]) if found else None
    if not isinstance(data, dict):
        return ["the metadata is no mapping"]
    problems = [
        f"{key} must be the id of a repo; got {value!r}"
        for key in ("base_model", "datasets")
        for value in ([data[key]] if isinstance(data.get(key), str) else data.get(key) or [])
        if not REPO_ID.fullmatch(value)
    ]
    problems += [
        f"{key} must be a list of strings"
        for key in ("tags", "metrics", "datasets")
        if key in data and not all(isinstance(value, str) for value in data[key])
    ]
    for model in data.get("model-index") or []:
        for result in model["results"]:
            if not {"task", "dataset", "metrics"} <= result.keys():
                problems.append("a result needs task, dataset and metrics")
            elif not {"name", "type"} <= result["dataset"].keys() or "type" not in result["task"]:
                problems.append("a result needs task.type, dataset.type and dataset.name")
            elif any(not {"type", "value"} <= metric.keys() for metric in result["metrics"]):
                problems.append("a metric needs type and value")
    return problems
