"""A small Hub in memory: accounts, repositories and branches, and the protocol of the real one.

Files are uploaded by preupload, LFS batch, PUT, verify and commit. Only what tests need is there.
`fails` makes it answer with errors; `requests` and `stored` keep what it received.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

ACCOUNTS = {
    "hf_writerwriter": ("me", True),
    "hf_readerreader": ("me", False),
    "hf_othersothers": ("else", True),
}
WRITER, READER, OTHER = ACCOUNTS
LICENSES = ("apache-2.0", "mit")
MAX_REGULAR_BYTES = 20_000  # larger files are stored by LFS


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(
        default_factory=dict
    )  # files by name, of each commit
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)  # the newest commit of each branch

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{branch}{len(self.commits)}{message}".encode()).hexdigest()
        self.commits[oid], self.messages[oid], self.branches[branch] = files, message, oid
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]

    def history(self, branch: str = "main") -> list[str]:
        """Return the commit messages, the oldest first."""
        return list(self.messages.values())


class Hub:
    """The server, within `with Hub() as hub`. `hub.url` is its address."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}  # files in LFS, by sha256
        self.requests: list[tuple[str, str]] = []  # method and path
        self.fails: dict[str, int] = {}  # part of a path: the status to answer with
        handler = type("HandlerOfThisHub", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def count(self, method: str, part: str) -> int:
        """Count the requests with a method and a part of a path."""
        return sum(each == method and part in path for each, path in self.requests)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self.route("GET")

    def do_HEAD(self) -> None:
        self.route("HEAD")

    def do_POST(self) -> None:
        self.route("POST")

    def do_PUT(self) -> None:
        self.route("PUT")

    def route(self, method: str) -> None:
        """Find the account and the function that answers the request."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((method, path))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.account, self.may_write = ACCOUNTS.get(token, (None, False))
        failing = next((status for word, status in self.hub.fails.items() if word in path), None)
        if failing is not None:
            return self.answer({"error": f"failing on purpose, token {token}"}, failing)
        if token and self.account is None:
            return self.answer({"error": "Invalid username or password."}, 401)
        for pattern, function in self.ROUTES:
            match = re.fullmatch(pattern, f"{method} {path}")
            if match:
                return function(self, body, **match.groupdict())
        return self.answer({"error": f"no such page: {method} {path}"}, 404)

    def answer(self, answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def find(self, name: str, write: bool = False) -> Repository | None:
        """Return a repository, or answer with an error and return None."""
        repository = self.hub.repositories.get(name)
        own = name.partition("/")[0] == self.account
        if repository is None or (repository.private and not own):
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        if write and not (own and self.may_write):
            self.answer({"error": "You do not have the right to write."}, 403)
            return None
        return repository

    # Accounts and repositories

    def create(self, body: bytes) -> None:
        request = json.loads(body)
        owner = request.get("organization") or self.account
        name = f"{owner}/{request['name']}"
        if self.account is None:
            return self.answer({"error": "Invalid username or password."}, 401)
        if name in self.hub.repositories:
            return self.answer(
                {"error": "You already created this repo", "url": f"{self.hub.url}/{name}"}, 409
            )
        if owner != self.account or not self.may_write:
            return self.answer({"error": f"You have no rights in the namespace {owner}."}, 403)
        repository = self.hub.repositories[name] = Repository(
            request.get("visibility") == "private"
        )
        repository.commit(
            "main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit"
        )
        return self.answer({"url": f"{self.hub.url}/{name}"})

    def check_write(self, body: bytes, name: str) -> None:
        if self.find(name, write=True):
            self.answer({})

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        repository = self.find(name)
        if repository is None:
            return
        sha = repository.branches.get(revision or "main", revision or "")
        if sha not in repository.commits:
            return self.answer(
                {"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"}
            )
        siblings = [{"rfilename": name} for name in repository.commits[sha]]
        self.answer(
            {
                "id": name,
                "sha": sha,
                "private": repository.private,
                "siblings": siblings,
                "tags": [],
            }
        )

    def branch(self, body: bytes, name: str, branch: str) -> None:
        repository = self.find(name, write=True)
        if repository is None:
            return
        if branch in repository.branches:
            return self.answer({"error": "Reference already exists"}, 409)
        if ".." in branch or " " in branch:
            return self.answer({"error": "Invalid reference for a branch"}, 400)
        repository.branches[branch] = repository.branches["main"]
        self.answer({})

    # Upload

    def check_yaml(self, body: bytes) -> None:
        metadata = yaml.safe_load(json.loads(body)["content"].split("---")[1])
        is_valid = isinstance(metadata, dict) and metadata.get("license", LICENSES[0]) in LICENSES
        errors = [] if is_valid else [{"message": '"license" must be one of [...]'}]
        self.answer({"warnings": [], "errors": errors}, 200 if is_valid else 400)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        repository = self.find(name, write=True)
        if repository is None:
            return
        answers = []
        for file in json.loads(body)["files"]:
            large = file["size"] > MAX_REGULAR_BYTES or file["path"].endswith(
                (".safetensors", ".png")
            )
            content = repository.files(revision).get(file["path"])
            oid = None
            if content is not None:
                oid = hashlib.sha256(content).hexdigest() if large else git_oid(content)
            mode = "lfs" if large else "regular"
            answers.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        self.answer({"files": answers})

    def batch(self, body: bytes, name: str) -> None:
        if self.find(name, write=True) is None:
            return
        objects = []
        for item in json.loads(body)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/storage/{item['oid']}"},
                "verify": {"href": f"{self.hub.url}/verify"},
            }
            is_stored = item["oid"] in self.hub.stored
            objects.append(item if is_stored else {**item, "actions": actions})
        self.answer({"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer({"error": "another content"}, 400)
        self.hub.stored[oid] = body
        self.answer({})

    def verify(self, body: bytes) -> None:
        request = json.loads(body)
        size = len(self.hub.stored.get(request["oid"], b""))
        self.answer({}, 200 if size == request["size"] else 404)

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repository = self.find(name, write=True)
        if repository is None:
            return
        files, message = dict(repository.files(revision)), ""
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
        oid = repository.commit(revision, files, message)
        self.answer({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    # Download

    def tree(self, body: bytes, name: str, revision: str) -> None:
        repository = self.find(name)
        if repository is None:
            return
        entries = []
        for path, content in repository.files(revision).items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
            entries.append(entry)
        self.answer(entries)

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        repository = self.find(name)
        if repository is None:
            return
        sha = repository.branches.get(revision, revision)
        content = repository.commits[sha].get(path)
        if content is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            return self.answer({"error": "no such file"}, 404, headers)
        self.answer(content, headers={"ETag": f'"{git_oid(content)}"', "X-Repo-Commit": sha})

    NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
    ROUTES = (
        ("POST /api/repos/create", create),
        (f"GET /api/models/{NAME}/auth-check/write", check_write),
        (f"GET /api/models/{NAME}", info),
        (f"GET /api/models/{NAME}/revision/(?P<revision>.+)", info),
        (f"POST /api/models/{NAME}/branch/(?P<branch>.+)", branch),
        ("POST /api/validate-yaml", check_yaml),
        (f"POST /api/models/{NAME}/preupload/(?P<revision>.+)", preupload),
        (rf"POST /{NAME}\.git/info/lfs/objects/batch", batch),
        (r"PUT /storage/(?P<oid>\w+)", put),
        ("POST /verify", verify),
        (f"POST /api/models/{NAME}/commit/(?P<revision>.+)", commit),
        (f"GET /api/models/{NAME}/tree/(?P<revision>[^/]+)", tree),
        (f"(GET|HEAD) /{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
    )
