"""A small Hub on this machine: accounts, repositories, branches, and the protocol by which files are uploaded
(preupload, LFS batch, PUT, verify, commit) and downloaded. In memory, and only what the tests ask of it.

It can be told to fail (`fails`), and keeps what it was sent (`requests`, `stored`).
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

ACCOUNTS = {"hf_writerwriter": ("me", True), "hf_readerreader": ("me", False), "hf_othersothers": ("else", True)}
WRITER, READER, OTHER = ACCOUNTS
LICENSES = ("apache-2.0", "mit")
LARGE = 20_000  # bytes from which a file is stored apart, as LFS does


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # the files of each, by name
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)  # the newest commit of each

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{branch}{len(self.commits)}{message}".encode()).hexdigest()
        self.commits[oid], self.messages[oid], self.branches[branch] = files, message, oid
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]

    def history(self, branch: str = "main") -> list[str]:
        """The messages, oldest first."""
        return list(self.messages.values())


class Hub:
    """The server. `with Hub() as hub`: `hub.url` is its address."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}  # large files, by sha256
        self.requests: list[tuple[str, str]] = []  # method and path
        self.fails: dict[str, int] = {}  # a word of a path, and the status to answer with
        hub = self

        class Handler(Answers):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def count(self, method: str, word: str) -> int:
        """How many requests there were of a method, with a word in their path."""
        return sum(one == method and word in path for one, path in self.requests)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Answers(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def answer(self, method: str) -> None:
        """Find who asks, and what."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((method, path))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.account, self.writes = ACCOUNTS.get(token, (None, False))
        failing = next((status for word, status in self.hub.fails.items() if word in path), None)
        if failing is not None:
            return self.say({"error": f"as it was told, with {token}"}, failing)
        if token and self.account is None:
            return self.say({"error": "Invalid username or password."}, 401)
        for pattern, function in self.ROUTES:
            found = re.fullmatch(pattern, f"{method} {path}")
            if found:
                return function(self, body, **found.groupdict())
        return self.say({"error": f"no such page: {method} {path}"}, 404)

    def say(self, answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def found(self, name: str, write: bool = False) -> Repository | None:
        """A repository, or None after an error was answered."""
        repository = self.hub.repositories.get(name)
        own = name.partition("/")[0] == self.account
        if repository is None or (repository.private and not own):
            self.say({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        if write and not (own and self.writes):
            self.say({"error": "You do not have the right to write."}, 403)
            return None
        return repository

    # ---- accounts and repositories

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        owner = asked.get("organization") or self.account
        name = f"{owner}/{asked['name']}"
        if self.account is None:
            return self.say({"error": "Invalid username or password."}, 401)
        if name in self.hub.repositories:
            return self.say({"error": "You already created this repo", "url": f"{self.hub.url}/{name}"}, 409)
        if owner != self.account or not self.writes:
            return self.say({"error": f"You have no rights in the namespace {owner}."}, 403)
        repository = self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return self.say({"url": f"{self.hub.url}/{name}"})

    def may_write(self, body: bytes, name: str) -> None:
        if self.found(name, write=True):
            self.say({})

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        repository = self.found(name)
        if repository is None:
            return
        sha = repository.branches.get(revision or "main", revision or "")
        if sha not in repository.commits:
            return self.say({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": name} for name in repository.commits[sha]]
        self.say({"id": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []})

    def branch(self, body: bytes, name: str, branch: str) -> None:
        repository = self.found(name, write=True)
        if repository is None:
            return
        if branch in repository.branches:
            return self.say({"error": "Reference already exists"}, 409)
        if ".." in branch or " " in branch:
            return self.say({"error": "Invalid reference for a branch"}, 400)
        repository.branches[branch] = repository.branches["main"]
        self.say({})

    # ---- upload

    def check_yaml(self, body: bytes) -> None:
        metadata = yaml.safe_load(json.loads(body)["content"].split("---")[1])
        fine = isinstance(metadata, dict) and metadata.get("license", LICENSES[0]) in LICENSES
        errors = [] if fine else [{"message": '"license" must be one of [...]'}]
        self.say({"warnings": [], "errors": errors}, 200 if fine else 400)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        repository = self.found(name, write=True)
        if repository is None:
            return
        answers = []
        for file in json.loads(body)["files"]:
            large = file["size"] > LARGE or file["path"].endswith((".safetensors", ".png"))
            there = repository.files(revision).get(file["path"])
            oid = None if there is None else hashlib.sha256(there).hexdigest() if large else git_oid(there)
            mode = "lfs" if large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.say({"files": answers})

    def batch(self, body: bytes, name: str) -> None:
        if self.found(name, write=True) is None:
            return
        objects = []
        for one in json.loads(body)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/storage/{one['oid']}"},
                "verify": {"href": f"{self.hub.url}/verify"},
            }
            objects.append(one if one["oid"] in self.hub.stored else {**one, "actions": actions})
        self.say({"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.say({"error": "another content"}, 400)
        self.hub.stored[oid] = body
        self.say({})

    def verify(self, body: bytes) -> None:
        asked = json.loads(body)
        self.say({}, 200 if len(self.hub.stored.get(asked["oid"], b"")) == asked["size"] else 404)

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repository = self.found(name, write=True)
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
        self.say({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    # ---- download

    def tree(self, body: bytes, name: str, revision: str) -> None:
        repository = self.found(name)
        if repository is None:
            return
        files = repository.files(revision).items()
        self.say([{"type": "file", "path": path, "size": len(of), "oid": git_oid(of)} for path, of in files])

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        repository = self.found(name)
        if repository is None:
            return
        sha = repository.branches.get(revision, revision)
        content = repository.commits[sha].get(path)
        if content is None:
            return self.say({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        self.say(content, headers={"ETag": f'"{git_oid(content)}"', "X-Repo-Commit": sha})

    NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
    ROUTES = (
        ("POST /api/repos/create", create),
        (f"GET /api/models/{NAME}/auth-check/write", may_write),
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
