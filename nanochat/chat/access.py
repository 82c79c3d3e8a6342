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
ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class APIError(HTTPException):
    """An HTTP error with the `code` that OpenAI's clients read."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict | None = None
    ):
        super().__init__(status, message, headers)
        self.code = code


def error_body(error: HTTPException) -> dict:
    """An error in OpenAI's form."""
    kind = ERROR_TYPES.get(error.status_code, "invalid_request_error")
    code = getattr(error, "code", None)
    return {"error": {"message": error.detail, "type": kind, "code": code}}


def error_response(error: HTTPException) -> JSONResponse:
    return JSONResponse(error_body(error), error.status_code, error.headers)


def hostname(authority: str) -> str:
    """The host of "host:port", "[::1]:port" or a whole origin, in lower case.

    Example: hostname("https://Chat.example.com:8443") == "chat.example.com"
    """
    try:
        return urlsplit(authority if "//" in authority else f"//{authority}").hostname or ""
    except ValueError:  # brackets without an address in them
        return ""


class AccessMiddleware:
    """Refuses requests, limits their bodies, and calls `log` with one line for each.

    api_key: required under /v1/. origins: other sites whose pages may POST ("*": all). hosts: the
    names that the server answers to, None for all (subtle: else an attacker's DNS name that points
    at this machine makes their page the server's own). paths: those that the log may name.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        body_bytes: int,
        api_key: str | None = None,
        origins: Collection[str] = (),
        hosts: Collection[str] | None = None,
        paths: Collection[str] = (),
        log: Callable[[str], object] = print,
    ):
        self.app, self.body_bytes, self.api_key = app, body_bytes, api_key
        self.origins, self.paths, self.log = origins, paths, log
        self.hosts = None if hosts is None else {*hosts, *map(hostname, origins)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), None

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
            # subtle: frames and type only, because a message may quote what somebody wrote
            frames = "".join(traceback.format_tb(error.__traceback__))
            self.log(f"{frames}{type(error).__name__} (message left out)")
            if status is None:
                failure = APIError(500, "the server failed; its log says where")
                await error_response(failure)(scope, receive, send_safely)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "(another path)"
            client = (scope.get("client") or ("?",))[0]
            seconds = time.monotonic() - start
            self.log(f"{client} {scope['method']} {path} {status or 'gone'} {seconds:.2f} s")

    def _refusal(self, scope: Scope) -> APIError | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and hostname(host) not in self.hosts:
            message = (
                "this server answers only to this machine's own names. For another name, start it "
                "with --allow-origin and the page's address, as in https://chat.example.com"
            )
            return APIError(403, message, "host_not_allowed")
        # subtle: the browser's Sec-Fetch-Site also holds where a proxy changed Host
        site = headers.get("sec-fetch-site")
        own = site == "same-origin" if site else urlsplit(origin or "").netloc == host
        listed = origin in self.origins or "*" in self.origins
        if scope["method"] == "POST" and origin and not (own or listed):
            message = (
                "pages of other sites are refused; --allow-origin with their address lets them"
            )
            return APIError(403, message, "origin_not_allowed")
        if self.api_key is not None and scope["path"].startswith("/v1/"):
            given = headers.get("authorization", "").encode("latin-1")
            if not secrets.compare_digest(given, f"Bearer {self.api_key}".encode()):
                message = (
                    "no API key, or a wrong one; expected the header Authorization: Bearer KEY"
                )
                return APIError(401, message, "invalid_api_key", {"www-authenticate": "Bearer"})
        return None

    def _limited(self, receive: Receive) -> Receive:
        """A `receive` that raises APIError for a body that is too long, or too slow to arrive."""
        size, complete, deadline = 0, False, asyncio.get_running_loop().time() + BODY_SECONDS

        async def receive_limited() -> Message:
            nonlocal size, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                late = f"the body did not arrive within {BODY_SECONDS:.0f} s"
                raise APIError(408, late, "timeout") from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body")
            if size > self.body_bytes:
                long = f"the body is longer than {self.body_bytes:,} bytes"
                raise APIError(413, long, "request_too_large")
            return message

        return receive_limited


def startup_banner(host: str, port: int, env: Mapping[str, str], api_key: str | None) -> list[str]:
    """What to print at the start: the address, whom an open host lets in, the way over SSH.

    Example: startup_banner("127.0.0.1", 8000, {}, None) == ["chat at http://127.0.0.1:8000"]
    """
    everywhere = host in ("0.0.0.0", "::", "")
    shown = "127.0.0.1" if everywhere else f"[{host}]" if ":" in host else host
    lines = [f"chat at http://{shown}:{port}"]
    if host not in LOOPBACK:
        network = "every network of this machine" if everywhere else f"the network of {host}"
        key = "without a key (--api-key asks for one)" if api_key is None else "with the API key"
        lines.append(
            f"warning: open to {network}: whoever reaches port {port} can use the model {key}, and "
            f"chats travel unencrypted. Leave --host out to serve this machine alone"
        )
    if len(connection := env.get("SSH_CONNECTION", "").split()) == 4:
        _, _, address, ssh_port = connection
        option = f" -p {ssh_port}" if ssh_port != "22" else ""
        lines.append(
            f"from your own machine: ssh{option} -N -L {port}:{shown}:{port} "
            f"{env.get('USER') or env.get('LOGNAME') or 'USER'}@{address}   then http://127.0.0.1:{port}"
        )
    return lines
