"""A small server on loopback for the chat page's tests: it replays scripted answers as a stream.

A model cannot be made to write an attack or to stop at a chosen word; this can. It speaks the
stream format that nanochat.chat.server speaks, serves nanochat/chat/page/ under the
server's own content policy, and records every request.
"""

import json
import mimetypes
import select
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from nanochat.chat.access import CONTENT_POLICY
from nanochat.chat.server import PAGE

LONGEST_WAIT = 60.0  # seconds that a script may wait for its gate


@dataclass
class Script:
    """One answer. A piece is text; ("python", code); ("output", text); an Event to wait for; a
    number of seconds to sleep; or a bytes object that is sent as it is."""

    pieces: list = field(default_factory=list)
    status: int = 200
    headers: dict = field(default_factory=dict)
    error: str = ""
    finish: str | None = "stop"
    breaks: bool = False  # the connection ends without [DONE]
    timing: dict | None = None


class PageServer:
    """Use as a context manager; `scripts` are replayed in turn, `default` when there are none."""

    def __init__(self, port: int = 0):
        self.scripts: list[Script] = []
        self.default = Script(["Paris."])
        self.requests: list[dict] = []  # bodies of /v1/chat/completions
        self.paths: list[str] = []
        self.api_key = ""
        self.defaults = {"temperature": 0.6, "top_k": 50, "max_tokens": 512}
        self.left = threading.Event()  # a client left in the middle of an answer
        self.gate = threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.gate.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, *pieces, **settings) -> None:
        """Adds the next answer."""
        self.scripts.append(Script(list(pieces), **settings))


class _Handler(BaseHTTPRequestHandler):
    owner: PageServer

    def log_message(self, *arguments):
        pass

    def reply(self, status: int, kind: str, text: str, **headers) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def error(self, status: int, message: str, **headers) -> None:
        error = {"message": message, "type": "error", "code": status}
        self.reply(status, "application/json", json.dumps({"error": error}), **headers)

    def allowed(self) -> bool:
        key = self.owner.api_key
        return not key or self.headers["Authorization"] == f"Bearer {key}"

    def do_GET(self):
        self.owner.paths.append(self.path)
        file = PAGE / (self.path[1:] or "index.html")
        if file.parent == PAGE and file.is_file():
            kind = mimetypes.guess_type(file)[0]
            policy = {"Content_Security_Policy": CONTENT_POLICY}
            self.reply(200, kind, file.read_text("utf-8"), **policy)
        elif self.path == "/health":
            self.reply(200, "application/json", '{"status": "ok"}')
        elif self.path == "/v1/models" and self.allowed():
            model = {"id": "nanochat-d4", "object": "model", "defaults": self.owner.defaults}
            models = {"object": "list", "data": [model]}
            self.reply(200, "application/json", json.dumps(models))
        elif self.path == "/v1/models":
            self.error(401, "This server wants an API key.")
        else:
            self.error(404, f"nothing at {self.path}")

    def do_POST(self):
        self.owner.paths.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return self.error(401, "Wrong API key.")
        self.owner.requests.append(body)
        scripts = self.owner.scripts
        script = scripts.pop(0) if scripts else self.owner.default
        if script.status != 200:
            return self.error(script.status, script.error, **script.headers)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self.stream(script)
        except OSError:
            self.owner.left.set()
        self.close_connection = True

    def stream(self, script: Script) -> None:
        self.send_delta({"role": "assistant"})
        for piece in script.pieces:
            if isinstance(piece, threading.Event):
                self.wait_for(piece)
            elif isinstance(piece, (int, float)):
                time.sleep(piece)
            elif isinstance(piece, bytes):
                self.wfile.write(piece)
                self.wfile.flush()
            elif isinstance(piece, str):
                self.send_delta({"content": piece})
            else:
                kind = {"python": "python", "output": "python_output"}[piece[0]]
                self.send_delta({"nanochat": {"type": kind, "text": piece[1]}})
        if script.breaks:
            return
        last = {"nanochat": {"type": "timing", **script.timing}} if script.timing else {}
        self.send_delta(last, script.finish)
        usage = {"prompt_tokens": 7, "completion_tokens": len(script.pieces), "total_tokens": 0}
        self.send_event({"object": "chat.completion.chunk", "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def send_delta(self, delta: dict, finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        self.send_event({"object": "chat.completion.chunk", "choices": [choice]})

    def send_event(self, event: dict) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def wait_for(self, gate: threading.Event) -> None:
        """Until the gate opens; raises ConnectionError as soon as the client is gone."""
        end = time.monotonic() + LONGEST_WAIT
        while not gate.is_set() and time.monotonic() < end:
            readable, _, _ = select.select([self.connection], [], [], 0.01)
            if readable and not self.connection.recv(1):
                raise ConnectionError("the client left")
