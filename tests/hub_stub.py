"""As much of the hub as an upload and a download need, served on loopback."""

import base64
import hashlib
import json
import math
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

from huggingface_hub.utils.sha import git_hash


class Hub(BaseHTTPRequestHandler):
    """server.files: path -> bytes; created: bodies; private: whether the repository is, None before
    there is one; tokens: Authorization headers seen; fail: a status to answer commits with; spoil:
    what happens to a file on its way in.

    Files that are at least server.large bytes come by git's large file storage, those over
    server.part in parts: server.objects has them by SHA-256, server.puts says what was sent, and
    the sending that is number server.fail_put is refused.
    """

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers.get("Authorization"))
        files = self.server.files
        if self.path.endswith("/repos/create"):
            self.server.created.append(json.loads(body))
            if self.server.private is None:
                asked = self.server.created[-1]  # in the words of older and newer clients
                self.server.private = asked.get("visibility") == "private" or bool(
                    asked.get("private")
                )
            return self.answer({"url": f"{self.server.url}/me/model"})
        if self.path.endswith("/validate-yaml"):
            return self.answer({"errors": [], "warnings": []})
        if self.server.fail:
            return self.answer({"error": "not today"}, self.server.fail)
        if "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            for file in wanted:
                mode = "lfs" if file["size"] >= self.server.large else "regular"
                file |= {"uploadMode": mode, "shouldIgnore": False}
            return self.answer({"files": wanted})
        if self.path.endswith("/objects/batch"):
            return self.answer({"objects": [self.wanted(o) for o in json.loads(body)["objects"]]})
        if self.path.startswith("/complete/"):
            done = json.loads(body)
            keys = [(done["oid"], part["partNumber"]) for part in done["parts"]]
            self.server.objects[done["oid"]] = b"".join(map(self.server.parts.pop, keys))
            return self.answer({"success": True})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = self.server.spoil(base64.b64decode(value["content"]))
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
                    self.server.stored_apart.add(value["path"])
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            url = f"{self.server.url}/me/model/commit/1"
            return self.answer({"commitUrl": url, "commitOid": "1", "success": True})
        paths = parse_qs(body.decode())["paths"]
        return self.answer([entry(self.server, p) for p in paths if p in files])

    def wanted(self, file: dict) -> dict:
        """How a large file is to be sent; nothing to do for one that is there."""
        oid, size, part, url = file["oid"], file["size"], self.server.part, self.server.url
        if oid in self.server.objects:
            return file
        upload = {"href": f"{url}/put/{oid}/1"}
        if size > part:
            numbers = range(1, math.ceil(size / part) + 1)
            places = {str(n): f"{url}/put/{oid}/{n}" for n in numbers}
            header = {"chunk_size": str(part), **places}
            upload = {"href": f"{url}/complete/{oid}", "header": header}
        return {**file, "actions": {"upload": upload}}

    def do_PUT(self):
        _, _, oid, number = self.path.split("/")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.puts.append((oid, int(number)))
        if len(self.server.puts) == self.server.fail_put:
            return self.answer({"error": "not this one"}, 403)
        if hashlib.sha256(content).hexdigest() == oid:
            self.server.objects[oid] = content
        else:
            self.server.parts[oid, int(number)] = content
        self.answer({}, etag=number)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        files = self.server.files
        if "/me/nothing" in self.path:
            return self.answer({}, 404, **{"X-Error-Code": "RepoNotFound"})
        if "/resolve/" in self.path:
            content = files[self.path.partition("/resolve/")[2].partition("/")[2]]
            self.send_response(200)
            etag = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.server.commit}
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            return self.command == "GET" and self.wfile.write(content)
        if "/tree/" in self.path:
            return self.answer([entry(self.server, path) for path in files])
        siblings = [{"rfilename": path} for path in files]
        about = {"id": "me/model", "sha": self.server.commit, "private": self.server.private}
        return self.answer({**about, "siblings": siblings})

    def answer(self, reply, status=200, **headers):
        data = json.dumps(reply).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def entry(server, path: str) -> dict:
    content = server.files[path]
    found = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    if path in server.stored_apart:
        sha256 = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return found


@contextmanager
def serve(monkeypatch):
    """The running server; huggingface_hub talks to it, as an account with a token."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.created, server.tokens = {}, [], set()
    server.private, server.fail, server.spoil = None, None, lambda content: content
    server.large, server.part, server.fail_put = math.inf, math.inf, None
    server.objects, server.parts, server.puts, server.stored_apart = {}, {}, [], set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.commit = "1" * 40
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage has no stand-in
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    yield server
    server.shutdown()
    server.server_close()
