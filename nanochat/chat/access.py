"""Who may use the server: names, sites, API key, size of the body; and a log line a request."""

import asyncio
import secrets
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
BODY_SECONDS = 30.0  # that a body may take to arrive
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
SAFE_HEADERS = [
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
]
MESSAGES = {
    "Not Found": "nothing is at this address; the API's begin with /v1, and /docs lists them",
    "There was an error parsing the body": "the body is not JSON in UTF-8",
}


class APIError(HTTPException):
    """An HTTP error with the `code` that OpenAI's clients read."""

    def __init__(self, status: int, message: str, code: str | None = None, headers=None):
        super().__init__(status, message, headers)
        self.code = code


def error_response(error: HTTPException) -> JSONResponse:
    """An error in OpenAI's form."""
    message, code = MESSAGES.get(error.detail, error.detail), getattr(error, "code", None)
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "code": code}}
    return JSONResponse(body, error.status_code, error.headers)


def without_message(error: Exception) -> str:
    """A traceback without the message, which may quote what somebody wrote."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{frames}{type(error).__name__} (message left out)"


def hostname(authority: str) -> str:
    """The host of "host:port", "[::1]:port" or a whole origin."""
    try:
        return urlsplit(authority if "//" in authority else f"//{authority}").hostname or ""
    except ValueError:  # brackets without an address in them
        return ""


class AccessMiddleware:
    """Refuses requests, limits their bodies, and calls `log` with one line for each.

    origins: other sites whose pages may POST ("*": all). hosts: the names that the server answers
    to, None for all (subtle: else an attacker's DNS name that points at this machine makes their
    page the server's own). paths: those that the log may name. Forgiven are doubled slashes, HEAD
    for GET, and JSON of another content type, as `curl -d` sends it.
    """

    def __init__(
        self, app: ASGIApp, *, body_bytes: int, api_key: str | None, origins: Collection[str],
        hosts: Collection[str] | None, paths: Collection[str], log: Callable[[str], object],
    ):  # fmt: skip
        self.app, self.body_bytes, self.api_key = app, body_bytes, api_key
        self.origins, self.paths, self.log = origins, paths, log
        self.hosts = None if hosts is None else {*hosts, *map(hostname, origins)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status, method = time.monotonic(), None, scope["method"]
        path = "/" + "/".join(filter(None, scope["path"].split("/")))
        headers = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
        headers.append((b"content-type", b"application/json"))
        asked = "GET" if method == "HEAD" else method  # uvicorn leaves the body out
        scope = {**scope, "method": asked, "path": path, "headers": headers}

        async def send_safely(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *SAFE_HEADERS]
            await send(message)

        try:
            if refusal := self._refusal(scope):
                await error_response(refusal)(scope, receive, send_safely)
            else:
                await self.app(scope, self._limited(receive), send_safely)
        except Exception as error:
            self.log(without_message(error))
            if status is None:
                failure = APIError(500, "the server failed; its log says where")
                await error_response(failure)(scope, receive, send_safely)
        finally:
            path = path if path in self.paths else "(another path)"
            client = (scope.get("client") or ("?",))[0]
            seconds = time.monotonic() - start
            self.log(f"{client} {method} {path} {status or 'gone'} {seconds:.2f} s")

    def _refusal(self, scope: Scope) -> APIError | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and hostname(host) not in self.hosts:
            message = (
                "this server answers only to this machine's own names. For another, start it with "
                "--allow-origin and the page's address, as in https://chat.example.com"
            )
            return APIError(403, message, "host_not_allowed")
        # subtle: the browser's Sec-Fetch-Site also holds where a proxy changed Host
        site = headers.get("sec-fetch-site")
        own = site == "same-origin" if site else urlsplit(origin or "").netloc == host
        listed = origin in self.origins or "*" in self.origins
        if scope["method"] == "POST" and origin and not (own or listed):
            message = "pages of other sites are refused; --allow-origin with their address lets in"
            return APIError(403, message, "origin_not_allowed")
        if self.api_key is not None and scope["path"].startswith("/v1/"):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            right = secrets.compare_digest(key.strip().encode("latin-1"), self.api_key.encode())
            if scheme.lower() != "bearer" or not right:
                message = "no or a wrong API key; expected the header Authorization: Bearer KEY"
                return APIError(401, message, "invalid_api_key", {"www-authenticate": "Bearer"})
        if headers.get("content-encoding", "identity").lower() != "identity":
            return APIError(415, "the body is compressed; send it without Content-Encoding")
        return None

    def _limited(self, receive: Receive) -> Receive:
        """A `receive` that raises APIError for a body that is too long or too slow."""
        size, deadline = 0, asyncio.get_running_loop().time() + BODY_SECONDS

        async def receive_limited() -> Message:
            nonlocal size, deadline
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise APIError(408, f"no body within {BODY_SECONDS:.0f} s", "timeout") from None
            size += len(message.get("body", b""))
            if size > self.body_bytes:
                problem = f"the body is longer than {self.body_bytes:,} bytes"
                raise APIError(413, problem, "request_too_large")
            if not message.get("more_body"):
                deadline = None  # what follows is that the client leaves
            return message

        return receive_limited


def startup_banner(host: str, port: int, env: Mapping[str, str], api_key: str | None) -> list[str]:
    """What to print at the start: address, a warning of an open host, the way over SSH."""
    everywhere = host in ("0.0.0.0", "::", "")
    shown = "127.0.0.1" if everywhere else f"[{host}]" if ":" in host else host
    lines = [f"chat at http://{shown}:{port}"]
    if host not in LOOPBACK:
        key = "with the API key" if api_key else "without a key (--api-key asks for one)"
        lines.append(
            f"warning: open to every network that reaches {host}, {key}; chats travel "
            f"unencrypted. Leave --host out to serve this machine alone"
        )
    if len(connection := env.get("SSH_CONNECTION", "").split()) == 4:
        *_, address, ssh_port = connection
        option = f" -p {ssh_port}" if ssh_port != "22" else ""
        lines.append(
            f"from your own machine: ssh{option} -N -L {port}:{shown}:{port} "
            f"{env.get('USER') or 'USER'}@{address}   then http://127.0.0.1:{port}"
        )
    return lines
