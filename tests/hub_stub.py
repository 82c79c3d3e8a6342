"""As much of the hub as an upload of small files needs, served on loopback."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

from nanochat.mirror import git_object_id


class Hub(BaseHTTPRequestHandler):
    """server.files: path -> bytes; created: bodies; tokens: Authorization headers seen; fail: a
    status to answer commits with; spoil: what happens to a file on its way in."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers.get("Authorization"))
        files = self.server.files
        if self.path.endswith("/repos/create"):
            self.server.created.append(json.loads(body))
            return self.answer({"url": f"{self.server.url}/me/model"})
        if self.path.endswith("/validate-yaml"):
            return self.answer({"errors": [], "warnings": []})
        if self.server.fail:
            return self.answer({"error": "not today"}, self.server.fail)
        if "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            verdict = {"uploadMode": "regular", "shouldIgnore": False}
            return self.answer({"files": [{"path": f["path"], **verdict} for f in wanted]})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = self.server.spoil(base64.b64decode(value["content"]))
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            url = f"{self.server.url}/me/model/commit/1"
            return self.answer({"commitUrl": url, "commitOid": "1", "success": True})
        return self.answer(
            [entry(files, p) for p in parse_qs(body.decode())["paths"] if p in files]
        )

    def do_GET(self):
        files = self.server.files
        if "/tree/" in self.path:
            return self.answer([entry(files, path) for path in files])
        siblings = [{"rfilename": path} for path in files]
        return self.answer({"id": "me/model", "sha": "1", "siblings": siblings})

    def answer(self, reply, status=200):
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def entry(files: dict[str, bytes], path: str) -> dict:
    oid = git_object_id(files[path])
    return {"type": "file", "path": path, "size": len(files[path]), "oid": oid}


@contextmanager
def serve(monkeypatch):
    """The running server; huggingface_hub talks to it, as an account with a token."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.created, server.tokens = {}, [], set()
    server.fail, server.spoil = None, lambda content: content
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    yield server
    server.shutdown()
    server.server_close()
