"""A Hub on this machine, with enough of its protocol for `huggingface_hub` to download from it."""

import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalHub:
    """Serves repositories {name: {file: bytes}} while the `with` block lasts.

    cut: files whose first transfer breaks off after that many bytes. gated: repositories that
    answer as gated ones do. log: what was asked for, as (method, path, first byte).
    """

    def __init__(
        self,
        repos: dict[str, dict[str, bytes]],
        cut: dict[str, int] | None = None,
        gated: tuple[str, ...] = (),
    ) -> None:
        self.repos = repos
        self.cut = dict(cut or {})
        self.gated = gated
        self.log: list[tuple[str, str, int]] = []

    def __enter__(self) -> "LocalHub":
        self.server = HubServer(self)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The variables with which a new process talks to this Hub and caches under `home`."""
        env = {}
        for name, value in os.environ.items():
            is_proxy = name.lower().endswith("_proxy")
            is_of_the_hub = name.startswith(("HF_", "HUGGINGFACE_"))
            if not is_proxy and not is_of_the_hub:
                env[name] = value
        env["NO_PROXY"] = "127.0.0.1"
        env["HF_ENDPOINT"] = self.url
        env["HF_HOME"] = str(home)
        env["HF_HUB_DISABLE_XET"] = "1"
        env["HF_HUB_DISABLE_TELEMETRY"] = "1"
        # A busy machine may let an answer wait for longer than the usual ten seconds.
        env["HF_HUB_ETAG_TIMEOUT"] = "3600"
        env["HF_HUB_DOWNLOAD_TIMEOUT"] = "3600"
        env.update(more)
        return env

    def transfers(self, filename: str) -> list[int]:
        """The first byte of each GET of a file, in order."""
        starts = []
        for method, path, start in self.log:
            if method == "GET" and path.endswith("/" + filename):
                starts.append(start)
        return starts


class HubServer(ThreadingHTTPServer):
    """The server of a LocalHub, on a port that is free."""

    def __init__(self, hub: LocalHub) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.hub = hub


class HubRequest(BaseHTTPRequestHandler):
    """One request to a LocalHub: about a repository, or for a file in it."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server.hub
        path = self.path.split("?")[0]
        start = self.first_byte()
        hub.log.append((self.command, path, start))

        # What is asked for: what is in a repository, or one of its files.
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/revision/[^/]+|/tree/[^/]+|)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        repo = None
        if about:
            repo = about[1]
        elif file:
            repo = file[1]

        if repo in hub.gated:
            self.answer_error(403, "GatedRepo", "Access is restricted.")
        elif repo not in hub.repos:
            self.answer_error(401, "RepoNotFound", "Repository not found")
        elif about:
            self.answer_listing(repo, tree=about[2].startswith("/tree"))
        elif file[2] not in hub.repos[repo]:
            self.answer_error(404, "EntryNotFound", "Entry not found")
        else:
            self.answer_file(file[2], hub.repos[repo][file[2]], start)

    def first_byte(self) -> int:
        """Where the range that is asked for begins; 0 for the whole file."""
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(asked[1]) if asked else 0

    def answer_error(self, status: int, code: str, message: str) -> None:
        self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def answer_listing(self, repo: str, tree: bool) -> None:
        """The files of a repository, as the Hub's tree or within the description of the model."""
        files = self.server.hub.repos[repo]
        if tree:
            content = []
            for name, data in files.items():
                digest = hashlib.sha1(data).hexdigest()
                content.append({"type": "file", "path": name, "size": len(data), "oid": digest})
        else:
            content = {
                "_id": "0",
                "id": repo,
                "modelId": repo,
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in files],
                "private": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer_file(self, name: str, data: bytes, start: int) -> None:
        headers = {
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        status = 200
        if start:
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        # Only the first transfer breaks off.
        length = None
        if self.command == "GET":
            length = self.server.hub.cut.pop(name, None)
        self.answer(status, data[start:], headers, length)

    def answer(
        self, status: int, body: bytes, headers: dict[str, str], length: int | None = None
    ) -> None:
        """Send a body; with `length` only so many bytes of it, and then break off."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:length])
        if length is not None:
            self.close_connection = True
