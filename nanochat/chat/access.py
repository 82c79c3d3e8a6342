"""The door of the server: who may come in, with how much, and the one line that is kept of it.

Plain ASGI around the app. What it refuses never reaches the app; what the app cannot cope with
ends here, as an error of the API's form and without a word of anybody's text in the log.
"""

import asyncio
import getpass
import json
import secrets
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from urllib.parse import urlsplit

from nanochat.common import ConfigError

SAFE_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
LOOPBACK = ("localhost", "127.0.0.1", "::1")
ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


def error_body(status: int, message: str, code: str | None = None) -> dict:
    """An error as OpenAI's clients read it."""
    kind = ERROR_TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "code": code}}


def hostname(authority: str) -> str:
    """The host of "host:port", "[::1]:port" or a whole origin, in lower case.

    Example: hostname("https://Chat.example.com:8443") == "chat.example.com"
    """
    try:
        return urlsplit(authority if "//" in authority else f"//{authority}").hostname or ""
    except ValueError:  # brackets without an address in them
        return ""


class Refusal(Exception):
    """Ends a request with a status and a message; the client's doing, never a failure."""

    def __init__(self, status: int, message: str, code: str | None = None, headers=()):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, list(headers)


class AccessMiddleware:
    """Lets a request in, or says why not.

    body_bytes: the longest body; api_key: wanted under /v1/; origins: pages of other sites that may
    use the server ("*": all); hosts: names that the server answers to, None for all (a name that an
    attacker's DNS points at this machine is then the attacker's page's own); paths: those that are
    named in the log; log gets one line a request.
    """

    def __init__(
        self,
        app,
        *,
        body_bytes: int,
        api_key: str | None = None,
        origins: Sequence[str] = (),
        hosts: Collection[str] | None = None,
        paths: Collection[str] = (),
        log: Callable[[str], object] = print,
        body_seconds: float = 30.0,
    ):
        if api_key is not None and not api_key.strip():
            raise ConfigError("the API key is empty; give one, or leave the option out")
        self.app, self.body_bytes, self.body_seconds = app, body_bytes, body_seconds
        self.api_key = None if api_key is None else api_key.encode()
        self.origins, self.paths, self.log = set(origins), set(paths), log
        self.hosts = None if hosts is None else {*hosts, *map(hostname, origins)}

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.monotonic(), None

        async def sending(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *SAFE_HEADERS]}
            await send(message)

        try:
            self._check(scope)
            body = await self._body(scope, receive)
            await self.app(scope, replay(body, receive), sending)
        except Refusal as refusal:
            body = error_body(refusal.status, str(refusal), refusal.code)
            await respond(sending, refusal.status, body, refusal.headers)
        except Exception as problem:
            # subtle: frames and type only, for a message may quote what somebody wrote
            frames = "".join(traceback.format_tb(problem.__traceback__))
            self.log(f"{frames}{type(problem).__name__} (message left out)")
            if status is not None:
                raise
            await respond(sending, 500, error_body(500, "the server failed; its log says where"))
        finally:
            path = scope["path"] if scope["path"] in self.paths else "(another path)"
            client = (scope.get("client") or ("?",))[0]
            seconds = time.monotonic() - begun
            self.log(f"{client} {scope['method']} {path} {status or 'gone'} {seconds:.2f} s")

    def _check(self, scope) -> None:
        """Raises Refusal for a name, a site or a key that is not let in."""
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        host = headers.get("host", b"").decode("latin-1")
        if self.hosts is not None and hostname(host) not in self.hosts:
            raise Refusal(
                403,
                "this server answers to names of this machine only, found another in Host. Start "
                "it with --allow-origin and the address of the page, as in https://chat.example.com",
                "host_not_allowed",
            )
        origin = headers.get("origin", b"").decode("latin-1")
        if scope["method"] == "POST" and origin and not self._same_site(origin, host, headers):
            raise Refusal(
                403,
                "a page of another site asked. Start the server with --allow-origin and that "
                "site's address to let it",
                "origin_not_allowed",
            )
        if self.api_key is not None and scope["path"].startswith("/v1/"):
            given = headers.get("authorization", b"")
            if not secrets.compare_digest(given, b"Bearer " + self.api_key):
                raise Refusal(
                    401,
                    "no API key, or a wrong one; expected the header Authorization: Bearer KEY",
                    "invalid_api_key",
                    [(b"www-authenticate", b"Bearer")],
                )

    def _same_site(self, origin: str, host: str, headers: Mapping[str, bytes]) -> bool:
        """Whether the asking page is the server's own, or one that was let in.

        subtle: a browser says so itself in Sec-Fetch-Site, also where a proxy changed Host.
        """
        if origin in self.origins or "*" in self.origins:
            return True
        site = headers.get("sec-fetch-site")
        return site == b"same-origin" if site else urlsplit(origin).netloc == host

    async def _body(self, scope, receive) -> bytes:
        """The whole body; raises Refusal if it is too long, or too long in coming."""
        too_long = Refusal(
            413, f"the body is longer than {self.body_bytes:,} bytes", "request_too_large"
        )
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self.body_bytes:
                raise too_long
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_seconds):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > self.body_bytes:
                        raise too_long
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            seconds = self.body_seconds
            raise Refusal(408, f"the body was not here after {seconds:.0f} s", "timeout") from None


def replay(body: bytes, receive):
    """A `receive` that gives the whole body first, and then what comes."""
    given = False

    async def again() -> dict:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def respond(send, status: int, body: dict, headers=()) -> None:
    """Sends a JSON response."""
    data = json.dumps(body).encode()
    length = (b"content-length", str(len(data)).encode())
    headers = [(b"content-type", b"application/json"), length, *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def startup_banner(host: str, port: int, env: Mapping[str, str], api_key: str | None) -> list[str]:
    """What to print at the start: the address, how to reach it over SSH, what an open host shows.

    Example: startup_banner("127.0.0.1", 8000, {}, None) == ["chat at http://127.0.0.1:8000"]
    """
    local = host in LOOPBACK
    everywhere = host in ("0.0.0.0", "::", "")
    shown = "127.0.0.1" if everywhere else f"[{host}]" if ":" in host else host
    lines = [f"chat at http://{shown}:{port}"]
    if not local:
        what = "every network that this machine is on" if everywhere else f"the network of {host}"
        key = (
            "with the API key (the page and /health are open)"
            if api_key is not None
            else "without a key (--api-key asks for one)"
        )
        lines.append(
            f"warning: open to {what}: who reaches port {port} can use the model {key}, and what "
            f"is said travels unencrypted. For yourself alone leave --host out"
        )
    connection = env.get("SSH_CONNECTION", "").split()
    if len(connection) == 4:
        _, _, address, ssh_port = connection
        other = f" -p {ssh_port}" if ssh_port != "22" else ""
        lines.append(
            f"from your own machine: ssh{other} -N -L {port}:{shown}:{port} "
            f"{env.get('USER') or getpass.getuser()}@{address}   then http://127.0.0.1:{port}"
        )
    return lines
