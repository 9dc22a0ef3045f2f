"""A Hugging Face Hub for tests: one HTTP server on this machine with repositories in memory, and faults on demand.

It speaks what `huggingface_hub` 2.4 uses without Xet: who am I, create repository, model information, tree, branch,
validate card, preupload, LFS batch, upload and verify, commit (as a pull request, too), discussions, resolve.

    with HubServer() as hub:
        hub.fault("PUT", r"^/lfs/", status=500)       # the next such request fails once
        subprocess.run(…, env=os.environ | hub.environment)
        hub.repos["me/mimi"].files()                  # what arrived
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "s3cret" * 6
USER = "me"
LARGE = (".onnx", ".safetensors")

# Keys of a model card's metadata that the Hub documents, and the values of those that have a fixed set.
CARD_KEYS = {
    "language", "license", "license_name", "license_link", "library_name", "tags", "thumbnail", "base_model",
    "base_model_relation", "new_version", "datasets", "metrics", "pipeline_tag", "widget", "model-index", "inference",
    "co2_eq_emissions", "model_name", "extra_gated_prompt", "extra_gated_fields",
}  # fmt: skip
RELATIONS = {"finetune", "adapter", "quantized", "merge"}


def card_errors(text: str) -> list[str]:
    """What is wrong with a model card's metadata block."""
    import yaml

    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if match is None:
        return ["there is no metadata"]
    fields = yaml.safe_load(match[1])
    errors = [f"unknown key {key}" for key in fields if key not in CARD_KEYS]
    if fields.get("base_model_relation", "quantized") not in RELATIONS:
        errors.append(f"base_model_relation is {fields['base_model_relation']}")
    if fields.get("license") == "other" and "license_name" not in fields:
        errors.append("license other needs license_name")
    if not all(isinstance(tag, str) for tag in fields.get("tags", [])):
        errors.append("tags are no texts")
    return errors


@dataclass
class Blob:
    """A file of a commit."""

    data: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        data = self.data
        if self.large:
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n".encode()
        return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


@dataclass
class Repo:
    """Commits by id, each with title and files; names of branches and pull requests with their commit."""

    private: bool = False
    commits: dict[str, tuple[str, dict[str, Blob]]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[int, str]] = field(default_factory=list)

    def add(self, reference: str, title: str, files: dict[str, Blob]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {title}".encode(), usedforsecurity=False).hexdigest()
        self.commits[oid] = title, files
        self.refs[reference] = oid
        return oid

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Content by name."""
        oid = self.find(revision)
        assert oid is not None, f"no revision {revision}"
        return {name: blob.data for name, blob in self.commits[oid][1].items()}


@dataclass
class Fault:
    """What goes wrong with a request: a status, a connection cut after `cut` bytes of its body, or wrong content.

    `answer` stands in place of the right one; `headers` are added to whatever is answered.
    """

    method: str
    path: str
    status: int | None = None
    cut: int | None = None
    corrupt: bool = False
    after: bool = False  # the work is done, only the answer fails
    answer: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1


class HubServer:
    """The server, in a thread of its own while a `with` block runs."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.storage: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, int]] = []  # method, path, bytes of the body
        self.tokens: list[str] = []  # paths of requests that brought a login
        self.ranges: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = self.storage_endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """For a client's process."""
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": TOKEN, **switches}

    def fault(self, method: str, path: str, **what: object) -> None:
        """Let the next request (or `times`) whose path matches go wrong; all arguments are those of `Fault`."""
        self.faults.append(Fault(method, path, **what))  # type: ignore[arg-type]

    def sent(self, method: str, path: str = "") -> list[tuple[str, int]]:
        """Paths and body sizes of the requests so far whose path matches."""
        return [(found, size) for kind, found, size in self.requests if kind == method and re.search(path, found)]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - the names are the base class's

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), {key: values[0] for key, values in parse_qs(parts.query).items()}
        with self.hub.lock:
            fault = next((f for f in self.hub.faults if f.method == self.command and re.search(f.path, path)), None)
            if fault is not None:
                fault.times -= 1
                if fault.times == 0:
                    self.hub.faults.remove(fault)
        self.extra = fault.headers if fault is not None else {}
        if "Authorization" in self.headers:
            self.hub.tokens.append(path)
        length = int(self.headers.get("Content-Length", 0))
        if fault is not None and fault.cut is not None and self.command in ("PUT", "POST") and not fault.after:
            self.rfile.read(min(fault.cut, length))
            self.hub.requests.append((self.command, path, min(fault.cut, length)))
            return self._hang_up()
        body = self._chunked() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        self.hub.requests.append((self.command, path, len(body)))
        if fault is not None and fault.answer is not None:
            self._headers(fault.status or 200, {}, len(fault.answer))
            with contextlib.suppress(ConnectionError):  # the client may have had enough
                self.wfile.write(b"" if self.command == "HEAD" else fault.answer)
            return None
        if fault is not None and fault.status is not None and not fault.after:
            return self._error(fault.status, "Injected")
        self.fault = fault
        with self.hub.lock:
            status, headers, content = self._route(path, body)
        if fault is not None and fault.after:
            return self._hang_up() if fault.cut is not None else self._error(fault.status or 500, "Injected")
        if fault is not None and fault.corrupt and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if fault is not None and fault.cut is not None:
            self._headers(status, headers, len(content))
            self.wfile.write(content[: fault.cut])
            return self._hang_up()
        self._headers(status, headers, len(content))
        if self.command != "HEAD":
            self.wfile.write(content)
        return None

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, not close
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def _headers(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for key, value in {
            "Content-Type": "application/json",
            "Content-Length": str(length),
            **headers,
            **self.extra,
        }.items():
            self.send_header(key, value)
        self.end_headers()

    def _error(self, status: int, code: str) -> None:
        content = json.dumps({"error": f"{code} error"}).encode()
        self._headers(status, {"X-Error-Code": code, "X-Error-Message": f"{code} error"}, len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    # --- answers: status, headers, content

    def _route(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        for method, pattern, answer, public in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method in (self.command, "GET" if self.command == "HEAD" else self.command):
                login = self.headers.get("Authorization")
                if login not in (None, f"Bearer {TOKEN}"):
                    return _refusal(401, "InvalidToken", "Invalid credentials in Authorization header")
                if login is None and not public:
                    return _refusal(401, "NotLoggedIn", "Invalid username or password.")
                return answer(self, body, *match.groups())
        return _refusal(404, "NoSuchRoute", f"this server does not know {self.command} {path}")

    def whoami(self, _: bytes) -> tuple[int, dict[str, str], bytes]:
        return _json({"type": "user", "name": USER, "auth": {"accessToken": {"role": "write"}}, "orgs": []})

    def create(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        wanted = json.loads(body)
        owner = wanted["organization"] or USER
        if owner != USER:
            return _refusal(403, "Forbidden", f"no right to create a model under the namespace {owner}")
        name = f"{owner}/{wanted['name']}"
        url = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        if name in self.hub.repos:
            return _refusal(409, "Conflict", "You already created this model repo", **url)
        repo = self.hub.repos[name] = Repo(private=wanted.get("visibility") == "private")
        attributes = Blob(b"*.onnx filter=lfs diff=lfs merge=lfs -text\n", False)
        repo.add("main", "initial commit", {".gitattributes": attributes})
        return _json(url)

    def validate_card(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        errors = [{"message": error} for error in card_errors(json.loads(body)["content"])]
        return _json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        hidden = repo is not None and repo.private and self.headers.get("Authorization") is None
        return None if hidden else repo

    def info(self, _: bytes, name: str, revision: str | None = None) -> tuple[int, dict[str, str], bytes]:
        repo = self._repo(name)
        if repo is None:
            return _refusal(404 if self.headers.get("Authorization") else 401, "RepoNotFound", "Repository not found")
        oid = repo.find(revision or "main")
        if oid is None:
            return _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = [{"rfilename": path} for path in sorted(repo.commits[oid][1])]
        known = {"_id": "1", "id": name, "modelId": name, "siblings": siblings, "tags": []}
        return _json({**known, "sha": oid, "private": repo.private})

    def tree(self, _: bytes, name: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        repo = self._repo(name)
        oid = repo.find(revision) if repo else None
        if repo is None or oid is None:
            return _refusal(404, "RepoNotFound" if repo is None else "RevisionNotFound", "not found")
        entries = []
        for path, blob in sorted(repo.commits[oid][1].items()):
            entry: dict[str, object] = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.oid}
            if blob.large:
                entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}
            entries.append(entry)
        return _json(entries)

    def branch(self, body: bytes, name: str, branch: str) -> tuple[int, dict[str, str], bytes]:
        repo = self.hub.repos[name]
        if branch in repo.refs:
            return _refusal(409, "Conflict", "Reference already exists")
        repo.refs[branch] = repo.refs["main"]
        return _json({})

    def discussions(self, _: bytes, name: str) -> tuple[int, dict[str, str], bytes]:
        found = [
            {
                "title": title, "num": number, "author": {"name": USER}, "createdAt": "2024-01-01T00:00:00.000Z",
                "status": "open", "repo": {"name": name, "type": "model"}, "isPullRequest": True,
            }
            for number, title in self.hub.repos[name].requests
        ]  # fmt: skip
        return _json({"discussions": found, "count": len(found), "start": 0})

    def preupload(self, body: bytes, name: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        repo = self._repo(name)
        oid = repo.find(revision) if repo else None
        if repo is None or oid is None:
            return _refusal(404, "RepoNotFound" if repo is None else "RevisionNotFound", "not found")
        there, files = repo.commits[oid][1], []
        for file in json.loads(body)["files"]:
            blob = there.get(file["path"])
            large = file["path"].endswith(LARGE)
            mode = "lfs" if large else "regular"
            found = None if blob is None else blob.sha256 if blob.large else blob.oid
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": found})
        return _json({"files": files})

    def batch(self, body: bytes, name: str) -> tuple[int, dict[str, str], bytes]:
        objects = []
        for wanted in json.loads(body)["objects"]:
            found = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.storage:
                found["actions"] = {
                    "upload": {"href": f"{self.hub.storage_endpoint}/lfs/{wanted['oid']}"},
                    "verify": {"href": f"{self.hub.storage_endpoint}/lfs-verify"},
                }
            objects.append(found)
        return _json({"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> tuple[int, dict[str, str], bytes]:
        if hashlib.sha256(body).hexdigest() != oid:
            return _refusal(400, "BadDigest", "the content does not have the SHA-256 that was announced")
        self.hub.storage[oid] = body
        return 200, {"ETag": oid}, b""

    def verify(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        wanted = json.loads(body)
        if len(self.hub.storage.get(wanted["oid"], b"")) != wanted["size"]:
            return _refusal(404, "NotFound", "no such object")
        return _json({})

    def commit(self, body: bytes, name: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        repo = self._repo(name)
        head = repo.find(revision) if repo else None
        if repo is None or head is None:
            return _refusal(404, "RepoNotFound" if repo is None else "RevisionNotFound", "not found")
        header, *changes = (json.loads(line) for line in body.splitlines())
        if header["value"].get("parentCommit", head) != head:
            return _refusal(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[head][1])
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif value["oid"] in self.hub.storage:
                files[value["path"]] = Blob(self.hub.storage[value["oid"]], True)
            else:
                return _refusal(400, "BadRequest", f"the large file {value['path']} was not uploaded")
        title = header["value"]["summary"]
        answer: dict[str, object] = {"success": True, "hookOutput": ""}
        if self.query.get("create_pr") == "1":
            number = len(repo.requests) + 1
            repo.requests.append((number, title))
            oid = repo.add(f"refs/pr/{number}", title, files)
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{name}/discussions/{number}"
        else:
            oid = repo.add(revision, title, files)
        return _json({**answer, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}"})

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        repo = self._repo(name)
        oid = repo.find(revision) if repo else None
        if repo is None or oid is None:
            return _refusal(404, "RepoNotFound" if repo is None else "RevisionNotFound", "not found")
        blob = repo.commits[oid][1].get(path)
        if blob is None:
            return _refusal(404, "EntryNotFound", "Entry not found")
        etag = blob.sha256 if blob.large else blob.oid
        headers = {"X-Repo-Commit": oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        self.hub.ranges.append(self.headers.get("Range") or "")
        found = re.fullmatch(r"bytes=(\d+)-", self.hub.ranges[-1])
        if found:
            start, size = int(found[1]), len(blob.data)
            return 206, {**headers, "Content-Range": f"bytes {start}-{size - 1}/{size}"}, blob.data[start:]
        return 200, headers, blob.data


_REPO = r"([^/]+/[^/]+)"
# method, path, answer, whether it is for everybody
_ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.whoami, False),
    ("POST", "/api/repos/create", _Handler.create, False),
    ("POST", "/api/validate-yaml", _Handler.validate_card, True),
    ("GET", f"/api/models/{_REPO}", _Handler.info, True),
    ("GET", f"/api/models/{_REPO}/revision/(.+)", _Handler.info, True),
    ("GET", f"/api/models/{_REPO}/tree/(.+)", _Handler.tree, True),
    ("GET", f"/api/models/{_REPO}/discussions", _Handler.discussions, True),
    ("POST", f"/api/models/{_REPO}/branch/(.+)", _Handler.branch, False),
    ("POST", f"/api/models/{_REPO}/preupload/(.+)", _Handler.preupload, False),
    ("POST", f"/api/models/{_REPO}/commit/(.+)", _Handler.commit, False),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch, False),
    ("PUT", "/lfs/([0-9a-f]{64})", _Handler.store, True),
    ("POST", "/lfs-verify", _Handler.verify, False),
    ("GET", f"/{_REPO}/resolve/(refs/pr/[0-9]+|[^/]+)/(.+)", _Handler.resolve, True),
]  # fmt: skip


def _json(content: object, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {}, json.dumps(content).encode()


def _refusal(status: int, code: str, message: str, **more: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code, "X-Error-Message": message}, json.dumps({"error": message, **more}).encode()
