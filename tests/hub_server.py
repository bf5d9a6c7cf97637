"""A stand-in for the Hugging Face Hub: models in memory, and of the Hub's interface what the tests need."""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Models are `files[name][path]`, `requests` what was asked for, `cut` the downloads that break off half-way."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.cut, self.status = {}, [], 0, None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving():
    """Yields a Hub that runs until the end of the block."""
    with Hub() as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def reply_json(self, **content) -> None:
        self.reply(200, json.dumps(content).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        """A file: `/user/name/resolve/revision/path`, the rest of it where a range is asked for."""
        hub, headers = self.server, {"X_Repo_Commit": COMMIT}
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if hub.status:
            return self.reply(hub.status)
        if found is None or found[1] not in hub.files:
            return self.reply(404, X_Error_Code="RepoNotFound")
        if found[2] not in ("main", COMMIT):
            return self.reply(404, X_Error_Code="RevisionNotFound", **headers)
        if found[3] not in hub.files[found[1]]:
            return self.reply(404, X_Error_Code="EntryNotFound", **headers)
        content = hub.files[found[1]][found[3]]
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.command == "GET" and hub.cut:
            hub.cut -= 1
            self.send_response(200)
            for name, value in {**headers, "Content_Length": str(len(content))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return None
        return self.reply(206 if start else 200, content[start:], **headers)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """A new model, the check of a card, the way of each file, and a commit with the content of all."""
        hub, body = self.server, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not body and self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        hub.requests.append((self.command, self.path, self.headers.get("Authorization")))
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self.reply(401)
        if self.path == "/api/repos/create":
            content = json.loads(body)
            name = f"{content['organization']}/{content['name']}"
            hub.files.setdefault(name, {})
            return self.reply_json(url=f"{hub.url}/{name}")
        if self.path == "/api/validate-yaml":
            return self.reply_json(errors=[], warnings=[])
        name, action = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path).groups()
        if action == "preupload":
            return self.reply_json(files=[{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                                          for file in json.loads(body)["files"]])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                hub.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.reply_json(success=True, commitOid=COMMIT, commitUrl=f"{hub.url}/{name}/commit/{COMMIT}")
