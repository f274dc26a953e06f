"""A stand-in for the Hugging Face hub on loopback: makes repositories, takes commits, gives files back."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.cli_kit import body_of, reply, serving

REVISION = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_test"


class FakeHub:
    """Repositories by name. Every request that writes must carry TOKEN."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []

    @contextmanager
    def running(self) -> Iterator[str]:
        """The address, for HF_ENDPOINT."""
        with serving(self._handle) as address:
            self.address = address
            yield address

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append(f"{request.command} {path}")
        body = body_of(request)
        if request.command == "POST" and request.headers.get("authorization") != f"Bearer {TOKEN}":
            reply(request, {"error": "Invalid user token."}, 401)
        elif path == "/api/repos/create":
            self._create(request, json.loads(body))
        elif path.endswith("/preupload/main"):
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            reply(request, {"files": modes})
        elif path.endswith("/commit/main"):
            self._commit(request, path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
        elif path == "/api/validate-yaml":
            reply(request, {"warnings": [], "errors": []})
        elif path.endswith(f"/tree/{REVISION}"):
            files = self.files[path.removeprefix("/api/models/").removesuffix(f"/tree/{REVISION}")]
            listed = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
            reply(request, json.dumps(listed).encode())
        elif "/tree/" in path:  # asked for folders only, which these repositories do not have
            reply(request, {"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        elif "/resolve/" in path:
            self._resolve(request, path)
        else:
            self._describe(request, path.removeprefix("/api/models/"))

    def _create(self, request: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        url = {"url": f"{self.address}/{name}", "name": name}
        if name in self.files:
            reply(request, {"error": "You already created this model repo", **url}, 409)
            return
        self.files[name] = {}
        self.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
        reply(request, url)

    def _commit(self, request: BaseHTTPRequestHandler, name: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.address}/{name}/commit/{REVISION}"
        reply(request, {"success": True, "commitOid": REVISION, "commitUrl": url})

    def _resolve(self, request: BaseHTTPRequestHandler, path: str) -> None:
        name, _, rest = path.lstrip("/").partition("/resolve/")
        content = self.files.get(name, {}).get(rest.partition("/")[2])
        if content is None:
            code = "EntryNotFound" if name in self.files else "RepoNotFound"
            reply(request, b"", 404, X_Error_Code=code)
            return
        tag = hashlib.sha1(content).hexdigest()
        reply(request, content, ETag=f'"{tag}"', X_Repo_Commit=REVISION, Accept_Ranges="none")

    def _describe(self, request: BaseHTTPRequestHandler, name: str) -> None:
        name = name.partition("/revision/")[0]
        if name not in self.files:
            reply(request, {"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return
        siblings = [{"rfilename": file} for file in self.files[name]]
        reply(request, {"id": name, "sha": REVISION, "private": self.private[name], "siblings": siblings, "tags": []})
