"""A small Hugging Face Hub on this machine, for the real client: python local_hub.py FOLDER [PORT].

It keeps all it has in FOLDER, so it can be killed and started again:

    objects/SHA256        uploaded large files
    blobs/SHA1            small files
    repos/KIND/ID.json    commits and branches of a repository
    faults.json           what is to go wrong; see `fault`
    log.txt               METHOD PATH STATUS of each request
    port                  where it listens

Users are `me` (token hf_write; hf_read may only read) and `other` (hf_other). Anything else is a refused token.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKENS = {"hf_write": ("me", "write"), "hf_read": ("me", "read"), "hf_other": ("other", "write")}
LARGE = (".parquet", ".safetensors", ".png", ".bin")
NEVER = "1970-01-01T00:00:00.000Z"


class Store:
    """What is on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        for name in ("objects", "blobs", "repos"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def repo(self, kind: str, name: str) -> dict[str, Any] | None:
        path = self._path(kind, name)
        repo: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        return repo

    def save(self, kind: str, name: str, repo: dict[str, Any]) -> None:
        self.put(self._path(kind, name), json.dumps(repo, indent=1).encode())

    def put(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{threading.get_ident()}.part")
        part.write_bytes(content)
        os.replace(part, path)  # a kill leaves the old one or the new one

    def read(self, entry: dict[str, Any]) -> bytes:
        return (self.root / ("objects" if entry["lfs"] else "blobs") / entry["oid"]).read_bytes()

    def _path(self, kind: str, name: str) -> Path:
        return self.root / "repos" / kind / (name.replace("/", "--") + ".json")

    def next_fault(self, line: str) -> dict[str, Any] | None:
        """Returns the first fault whose pattern is found in `METHOD PATH`, and counts it."""
        with self.lock:
            path = self.root / "faults.json"
            faults: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
            for fault in faults:
                if fault["times"] > 0 and re.search(fault["on"], line):
                    fault["times"] -= 1
                    self.put(path, json.dumps(faults).encode())
                    return fault
        return None


def commit_id(*parts: Any) -> str:
    return hashlib.sha1(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Refused(Exception):
    """Ends a request with a status, a text, and the Hub's name for the error."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    # --- the frame of each request

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), {name: v[0] for name, v in parse_qs(parts.query).items()}
        self.base = f"http://{self.headers['Host']}"
        fault = self.store.next_fault(f"{self.command} {self.route}")
        try:
            if fault and not self._suffer(fault):
                return
            self._dispatch()
        except Refused as refused:
            self._json({"error": str(refused)}, refused.status, {"X-Error-Code": refused.code} if refused.code else {})
        except (BrokenPipeError, ConnectionResetError):
            self._note(0)

    def _suffer(self, fault: dict[str, Any]) -> bool:
        """Lets the fault happen; returns whether the request goes on."""
        if "cut_after" in fault:  # bytes of the body: then the connection is gone
            self.rfile.read(min(fault["cut_after"], int(self.headers.get("Content-Length") or 0)))
            self._note(-1)
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(2)
            return False
        if "stall" in fault:
            time.sleep(fault["stall"])
            return True
        self._body()
        raise Refused(fault["status"], fault.get("message", "injected"))

    def _dispatch(self) -> None:
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, self.route)
            if match and (method == self.command or (method == "GET" and self.command == "HEAD")):
                function(self, **match.groupdict())
                return
        self._body()
        raise Refused(404, f"no such route: {self.command} {self.route}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self._note(status)

    def _note(self, status: int) -> None:
        with self.store.lock, open(self.store.root / "log.txt", "a") as log:
            log.write(f"{self.command} {self.route} {status}\n")

    # --- who, and what they may

    def _user(self) -> tuple[str | None, str]:
        header = self.headers.get("Authorization", "")
        if not header:
            return None, "read"
        token = header.removeprefix("Bearer ")
        if token not in TOKENS:
            raise Refused(401, "Invalid credentials in Authorization header")
        return TOKENS[token]

    def _readable(self, kind: str, name: str) -> dict[str, Any]:
        user, _ = self._user()
        repo = self.store.repo(kind, name)
        if repo is None or (repo["private"] and user != name.split("/")[0]):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def _writable(self, kind: str, name: str) -> dict[str, Any]:
        repo = self._readable(kind, name)
        user, role = self._user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if user != name.split("/")[0] or role != "write":
            raise Refused(403, f"You don't have the rights to write to {name}")
        return repo

    def _files(self, repo: dict[str, Any], revision: str) -> tuple[str, dict[str, Any]]:
        commit = repo["refs"].get(revision, revision)
        if commit not in repo["commits"]:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, repo["commits"][commit]["files"]

    # --- accounts and repositories

    def whoami(self) -> None:
        user, role = self._user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        self._json({"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": role}}})

    def create(self) -> None:
        asked = json.loads(self._body())
        user, role = self._user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or user}/{asked['name']}"
        url = {"url": f"{self.base}/{'' if kind == 'model' else kind + 's/'}{name}"}
        if self.store.repo(kind + "s", name) is not None:
            return self._json({"error": "You already created this repo", **url}, 409)
        if user != name.split("/")[0] or role != "write":
            raise Refused(403, f"You don't have the rights to create a {kind} under {name.split('/')[0]}")
        private = asked.get("private") or asked.get("visibility") == "private"
        content = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"
        self.store.put(self.store.root / "blobs" / blob_id(content), content)
        files = {".gitattributes": {"oid": blob_id(content), "size": len(content), "lfs": False}}
        first = commit_id(name, files)
        commit = {"parent": None, "message": "initial commit", "files": files}
        repo = {"private": bool(private), "refs": {"main": first}, "commits": {first: commit}}
        self.store.save(kind + "s", name, repo)
        self._json({**url, "name": name})

    def branch(self, kind: str, name: str, branch: str) -> None:
        asked = json.loads(self._body() or b"{}")
        with self.store.lock:
            repo = self._writable(kind, name)
            if branch in repo["refs"]:
                raise Refused(409, "Reference already exists")
            repo["refs"][branch] = self._files(repo, asked.get("startingPoint") or "main")[0]
            self.store.save(kind, name, repo)
        self._json({})

    def validate_yaml(self) -> None:
        content = json.loads(self._body())["content"]
        header = re.match(r"---\n(.*?)\n---", content, re.S)
        try:
            card = yaml.safe_load(header[1]) if header else {}
            wrong = card.get("license") == "not-a-license"
        except yaml.YAMLError:
            wrong = True
        errors = [{"message": '"license" must be one of [mit, cc-by-4.0, ...]'}] if wrong else []
        self._json({"errors": errors, "warnings": []}, 400 if wrong else 200)

    # --- reading

    def info(self, kind: str, name: str, revision: str = "main") -> None:
        repo = self._readable(kind, name)
        commit, files = self._files(repo, revision)
        siblings = [{"rfilename": path, **(_blob(entry) if self.query.get("blobs") else {})} for path, entry in
                    sorted(files.items())]  # fmt: skip
        facts = {"id": name, "sha": commit, "private": repo["private"], "siblings": siblings, "tags": []}
        self._json({**facts, "downloads": 0, "likes": 0, "lastModified": NEVER, "createdAt": NEVER, "gated": False})

    def tree(self, kind: str, name: str, revision: str, folder: str = "") -> None:
        _, files = self._files(self._readable(kind, name), revision)
        inside = {path: entry for path, entry in files.items() if path.startswith(f"{folder}/" if folder else "")}
        if folder and not inside:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        told, folders = [], set()
        for path, entry in sorted(inside.items()):
            rest = path.removeprefix(f"{folder}/" if folder else "")
            if "/" in rest and self.query.get("recursive", "").lower() not in ("true", "1"):
                folders.add(path[: len(path) - len(rest)] + rest.split("/")[0])
            else:
                told.append(_listed(path, entry))
        self._json([{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)] + told)

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        body = self._body().decode()
        json_sent = "json" in self.headers.get("Content-Type", "")
        paths = json.loads(body)["paths"] if json_sent else parse_qs(body).get("paths", [])
        _, files = self._files(self._readable(kind, name), revision)
        self._json([_listed(path, files[path]) for path in paths if path in files])

    def refs(self, kind: str, name: str) -> None:
        repo = self._readable(kind, name)
        branches = [
            {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": commit}
            for ref, commit in repo["refs"].items()
            if not ref.startswith("refs/pr/")
        ]
        self._json({"branches": branches, "tags": [], "converts": []})

    def resolve(self, name: str, revision: str, path: str, kind: str | None = None) -> None:
        commit, files = self._files(self._readable(kind or "models", name), revision)
        if path not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        content, entry = self.store.read(files[path]), files[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._send(content, 200, headers)
        start, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._send(content[start : end + 1], 206, headers)

    # --- writing

    def preupload(self, kind: str, name: str, revision: str) -> None:
        asked = json.loads(self._body())["files"]
        repo = self._writable(kind, name)
        _, files = self._files(repo, revision)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": files.get(file["path"], {}).get("oid"),
            }
            for file in asked
        ]
        self._json({"files": modes})

    def batch(self, name: str, kind: str | None = None) -> None:
        asked = json.loads(self._body())["objects"]
        self._writable(kind or "models", name)
        objects = []
        for entry in asked:
            there = (self.store.root / "objects" / entry["oid"]).exists()
            upload = {"href": f"{self.base}/upload/{entry['oid']}"}
            actions = {"actions": {"upload": upload, "verify": {"href": f"{self.base}/verify"}}}
            objects.append({**entry, **({} if there else actions)})
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        content = self._body()
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "the content is not of this hash")
        self.store.put(self.store.root / "objects" / oid, content)
        self._send(b"")

    def verify(self) -> None:
        asked = json.loads(self._body())
        path = self.store.root / "objects" / asked["oid"]
        if not path.exists() or path.stat().st_size != asked["size"]:
            raise Refused(404, "not uploaded")
        self._json({})

    def commit(self, kind: str, name: str, revision: str) -> None:
        lines = [json.loads(line) for line in self._body().splitlines() if line.strip()]
        with self.store.lock:
            repo = self._writable(kind, name)
            parent, files = self._files(repo, revision)
            changed = dict(files)
            header: dict[str, Any] = {}
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    header = value
                elif line["key"] == "file":
                    content = base64.b64decode(value["content"])
                    self.store.put(self.store.root / "blobs" / blob_id(content), content)
                    changed[value["path"]] = {"oid": blob_id(content), "size": len(content), "lfs": False}
                elif line["key"] == "lfsFile":
                    if not (self.store.root / "objects" / value["oid"]).exists():
                        raise Refused(400, f"{value['path']} was not uploaded")
                    changed[value["path"]] = {"oid": value["oid"], "size": value["size"], "lfs": True}
                elif line["key"] == "deletedFile":
                    changed.pop(value["path"])
            if header.get("parentCommit") not in (None, parent) and not self.query.get("create_pr"):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            new = commit_id(parent, header, changed, len(repo["commits"]))
            repo["commits"][new] = {"parent": parent, "message": header["summary"], "files": changed}
            told = {"commitUrl": f"{self.base}/{kind}/{name}/commit/{new}", "commitOid": new}
            if self.query.get("create_pr"):
                number = 1 + sum(ref.startswith("refs/pr/") for ref in repo["refs"])
                revision = f"refs/pr/{number}"
                told["pullRequestUrl"] = f"{self.base}/{kind}/{name}/discussions/{number}"
            repo["refs"][revision] = new
            self.store.save(kind, name, repo)
        self._json(told)


def _blob(entry: dict[str, Any]) -> dict[str, Any]:
    lfs = {"lfs": {"sha256": entry["oid"], "size": entry["size"], "pointerSize": 130}} if entry["lfs"] else {}
    return {"size": entry["size"], "blobId": entry["oid"][:40], **lfs}


def _listed(path: str, entry: dict[str, Any]) -> dict[str, Any]:
    lfs = {"lfs": {"oid": entry["oid"], "size": entry["size"], "pointerSize": 130}} if entry["lfs"] else {}
    return {"type": "file", "path": path, "size": entry["size"], "oid": entry["oid"][:40], **lfs}


_REPO = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
_PLAIN = r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>refs/pr/\d+|refs/convert/\w+|[^/]+)"
ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("GET", _REPO, Handler.info),
    ("GET", f"{_REPO}/revision/{_REVISION}", Handler.info),
    ("GET", f"{_REPO}/tree/{_REVISION}", Handler.tree),
    ("GET", f"{_REPO}/tree/{_REVISION}/(?P<folder>.+)", Handler.tree),
    ("POST", f"{_REPO}/paths-info/{_REVISION}", Handler.paths_info),
    ("GET", f"{_REPO}/refs", Handler.refs),
    ("POST", f"{_REPO}/branch/(?P<branch>.+)", Handler.branch),
    ("POST", f"{_REPO}/preupload/{_REVISION}", Handler.preupload),
    ("POST", f"{_REPO}/commit/{_REVISION}", Handler.commit),
    ("POST", f"{_PLAIN}\\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/upload/(?P<oid>[0-9a-f]{64})", Handler.upload),
    ("POST", "/verify", Handler.verify),
    ("GET", f"{_PLAIN}/resolve/{_REVISION}/(?P<path>.+)", Handler.resolve),
]


class LocalHub:
    """The server as a process of its own, which a test can kill and start again.

    Args:
        root: Folder of its state.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "LocalHub":
        port = self.root / "port"
        before = [port.read_text()] if port.exists() else []  # the same address, if it was started before
        port.unlink(missing_ok=True)
        self._process = subprocess.Popen([sys.executable, "-I", __file__, str(self.root), *before])
        while not port.exists():
            if self._process.poll() is not None:
                raise RuntimeError("the local Hub does not start")
            time.sleep(0.02)
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{(self.root / 'port').read_text()}"

    def environment(self, home: Path, token: str | None = "hf_write") -> dict[str, str]:
        """Returns what a client process needs to be told; it is read when the client is imported."""
        told = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        told |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        told |= {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        return told | ({"HF_TOKEN": token} if token else {})

    def fault(self, on: str, times: int = 1000, **what: Any) -> None:
        """Makes requests go wrong: `status=503`, `cut_after=BYTES` of the body, or `stall=SECONDS`.

        Args:
            on: Regular expression, found in `METHOD PATH`.
            times: So many of them.
            what: One of the three.
        """
        path = self.root / "faults.json"
        faults = json.loads(path.read_text()) if path.exists() else []
        Store(self.root).put(path, json.dumps([*faults, {"on": on, "times": times, **what}]).encode())

    def heal(self) -> None:
        (self.root / "faults.json").unlink(missing_ok=True)

    def repo(self, name: str, kind: str = "datasets") -> dict[str, Any] | None:
        return Store(self.root).repo(kind, name)

    def content(self, name: str, path: str, revision: str = "main", kind: str = "datasets") -> bytes:
        store = Store(self.root)
        repo = store.repo(kind, name)
        assert repo is not None
        return store.read(repo["commits"][repo["refs"].get(revision, revision)]["files"][path])

    def log(self) -> list[str]:
        path = self.root / "log.txt"
        return path.read_text().splitlines() if path.exists() else []


@contextlib.contextmanager
def local_hub(root: Path) -> Iterator[LocalHub]:
    hub = LocalHub(root).start()
    try:
        yield hub
    finally:
        hub.kill()


def _serve(root: Path, port: int) -> None:
    store = Store(root)
    server = ThreadingHTTPServer(("127.0.0.1", port), type("_Handler", (Handler,), {"store": store}))
    store.put(root / "port", str(server.server_address[1]).encode())
    server.serve_forever()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
