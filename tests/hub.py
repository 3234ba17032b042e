"""A Hub on this machine: enough of the protocol for `huggingface_hub`, old and new, to download from it."""

import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalHub:
    """Serves repositories {name: {file: bytes}} while the `with` block lasts, and logs what was asked.

    `cut` names files whose first transfer breaks off after that many bytes. `gated` names repositories that
    answer as gated ones do. `log` holds (method, path, first byte).
    """

    def __init__(
        self, repos: dict[str, dict[str, bytes]], cut: dict[str, int] | None = None, gated: tuple = ()
    ):
        self.repos, self.cut, self.gated, self.log = repos, dict(cut or {}), gated, []

    def __enter__(self) -> "LocalHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The variables with which a fresh process talks to this Hub and caches under `home`."""
        env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        env = {name: value for name, value in env.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
        ours = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return env | ours | {"HF_HUB_DISABLE_TELEMETRY": "1"} | more

    def transfers(self, filename: str) -> list[int]:
        """The first byte of each GET of a file, in order."""
        return [
            start for method, path, start in self.log if method == "GET" and path.endswith("/" + filename)
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        start = int(m[1]) if (m := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        self.hub.log.append((self.command, path, start))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/revision/[^/]+|/tree/[^/]+|)", path)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        repo = (api or resolve)[1] if api or resolve else None
        if repo in self.hub.gated:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif repo not in self.hub.repos:
            self.answer(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif api:
            self.listing(repo, tree=api[2].startswith("/tree"))
        elif resolve[2] not in self.hub.repos[repo]:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self.file(resolve[2], self.hub.repos[repo][resolve[2]], start)

    def listing(self, repo: str, tree: bool) -> None:
        files = self.hub.repos[repo].items()
        if tree:
            digest = {name: hashlib.sha1(data).hexdigest() for name, data in files}
            content = [{"type": "file", "path": n, "size": len(data), "oid": digest[n]} for n, data in files]
        else:
            siblings = [{"rfilename": name} for name, _ in files]
            content = {"_id": "0", "id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
            content |= {"private": False, "tags": [], "downloads": 0, "likes": 0}
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def file(self, name: str, data: bytes, start: int) -> None:
        headers = {
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.hub.cut.pop(name, None) if self.command == "GET" else None
        self.answer(206 if start else 200, data[start:], headers, cut)

    def answer(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        self.close_connection = self.close_connection or cut is not None
