"""The app: OpenAI's chat API over the engine, and the chat page. `scripts/chat_web.py` starts it.

    POST /v1/chat/completions, POST /v1/completions, GET /v1/models, GET /health, GET /, /docs

Extensions to OpenAI's forms stand under `nanochat`: in a stream's delta a tool's result
{"type": "python_output", "text"}, in its last {"type": "timing", ...}; in a whole message `parts`.
"""

import base64
import contextlib
import hashlib
import re
import time
from collections.abc import Sequence

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from nanochat.chat.access import AccessMiddleware, Refusal, error_body
from nanochat.chat.async_engine import EngineStopped, QueueFull
from nanochat.chat.completions import AppState, Completion
from nanochat.chat.docs import docs_page
from nanochat.chat.prompts import chat_requests, completion_requests
from nanochat.chat.schema import ChatRequest, CompletionRequest, ErrorBody
from nanochat.chat.static import add_page
from nanochat.common import ConfigError, DataError, NanochatError

ERRORS = {
    400: "The request cannot be understood or obeyed.",
    401: "No API key, or a wrong one.",
    404: "No such model.",
    413: "The body is too long.",
    429: "Too many answers run and wait; Retry-After says when to come back.",
    503: "The engine has stopped, or no place was free in time.",
    "4XX": "Whatever else is wrong, in the same form.",
}


def create_app(
    served: AppState,
    *,
    api_key: str | None = None,
    origins: Sequence[str] = (),
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """The app around an engine's thread, which it starts and stops.

    api_key: asked for under /v1/; origins: other sites whose pages may call ("*": all); hosts:
    names that the server answers to, None for all. Raises ConfigError for an empty key.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI):
        served.thread.start()
        yield
        await served.thread.stop()

    app = FastAPI(title="nanochat", lifespan=lifespan, docs_url=None, redoc_url=None)
    add_api(app, served)
    add_pages(app)
    add_error_forms(app)
    paths = {route.path for route in app.routes}
    limits = served.limits
    app.add_middleware(
        AccessMiddleware, body_bytes=limits.body_bytes, api_key=api_key, origins=origins,
        hosts=hosts, paths=paths, log=served.log,
    )  # fmt: skip
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )  # fmt: skip
    return app


def add_api(app: FastAPI, served: AppState) -> None:
    """The addresses that programs ask."""
    begun, engine = time.time(), served.thread.engine
    context = engine.model.config.sequence_len
    errors = {status: {"description": text, "model": ErrorBody} for status, text in ERRORS.items()}
    model = {
        "id": served.name,
        "object": "model",
        "created": int(begun),
        "owned_by": "nanochat",
        "max_model_len": context,
    }

    def check_model(name: str | None) -> None:
        if name not in (None, "", "nanochat", served.name):
            raise Refusal(
                404, f"there is no such model here; there is {served.name}", "model_not_found"
            )

    @app.post("/v1/chat/completions", responses=errors, response_model=None)
    async def chat(asked: ChatRequest, http: HttpRequest) -> Response:
        """An answer to a conversation, whole or as server-sent events."""
        check_model(asked.model)
        requests, forgotten = chat_requests(asked, engine.tokenizer, context, served.limits)
        call = await Completion.start(served, asked, requests, http, True, forgotten)
        return await call.response()

    @app.post("/v1/completions", responses=errors, response_model=None)
    async def complete(asked: CompletionRequest, http: HttpRequest) -> Response:
        """What follows a text, whole or as server-sent events; no chat markup, no tools."""
        check_model(asked.model)
        requests = completion_requests(asked, engine.tokenizer, context, served.limits)
        return await (await Completion.start(served, asked, requests, http, False)).response()

    @app.get("/v1/models")
    async def models() -> dict:
        """The one model that is served."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name}", responses={404: errors[404]})
    async def one_model(name: str) -> dict:
        """What is known of a model; `max_model_len` is its context in tokens."""
        check_model(name)
        return model

    @app.get("/health", responses={503: errors[503]}, response_model=None)
    async def health() -> Response:
        """Whether the engine runs, how much there is to do, and how fast it is."""
        thread = served.thread
        body = {
            "status": "ok" if thread.failure is None else "failed",
            "model": served.name,
            "tool": served.tool_name,
            "uptime_seconds": time.time() - begun,
            "in_flight": thread.in_flight,
            "max_in_flight": thread.max_in_flight,
            "time_to_first_token": thread.time_to_first_token,
            **thread.stats,
        }
        return JSONResponse(body, 200 if thread.failure is None else 503)


def add_pages(app: FastAPI) -> None:
    """The addresses that people look at."""
    add_page(app)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        written = docs_page(app.openapi())
        policy = content_security_policy(written)
        return HTMLResponse(written, headers={"content-security-policy": policy})

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(status_code=204)


def add_error_forms(app: FastAPI) -> None:
    """Every error in OpenAI's form, whoever raised it."""

    def failed(status: int, message: str, code: str | None = None, headers=None) -> JSONResponse:
        return JSONResponse(error_body(status, message, code), status, headers)

    @app.exception_handler(Refusal)
    async def refused(_, error: Refusal):
        headers = {name.decode(): value.decode() for name, value in error.headers}
        return failed(error.status, str(error), error.code, headers)

    @app.exception_handler(HTTPException)
    async def not_found(_, error: HTTPException):
        return failed(error.status_code, str(error.detail), None, error.headers)

    @app.exception_handler(RequestValidationError)
    async def not_valid(_, error: RequestValidationError):
        return failed(400, what_is_wrong(error.errors()), "invalid_request")

    @app.exception_handler(NanochatError)
    async def not_possible(_, error: NanochatError):
        if isinstance(error, QueueFull):
            wait = {"retry-after": str(error.retry_after)}
            return failed(429, str(error), "queue_full", wait)
        if isinstance(error, EngineStopped):
            return failed(503, str(error), "engine_stopped")
        if not isinstance(error, (ConfigError, DataError)):
            raise error
        too_long = "context of" in str(error)
        return failed(400, str(error), "context_length_exceeded" if too_long else "invalid_request")


def what_is_wrong(errors: Sequence[dict]) -> str:
    """One sentence of pydantic's findings, without the text that was found.

    Of a value that may have several forms, the deepest finding says most.
    """
    deepest = max(errors, key=lambda error: len(error["loc"]))
    steps = [str(step) for step in deepest["loc"] if step != "body"]
    place = ".".join(step for step in steps if "[" not in step)  # those name a type, not a field
    return f"{place or 'body'}: {deepest['msg'].removeprefix('Value error, ')}"


def content_security_policy(html: str) -> str:
    """A policy under which only the page's own inline scripts and styles run, by their hashes, and
    talk to this server alone."""

    def sources(tag: str) -> str:
        texts = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", html, re.DOTALL | re.IGNORECASE)
        digests = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in texts]
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    return (
        f"default-src 'none'; script-src {sources('script')}; style-src {sources('style')}; "
        f"connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
