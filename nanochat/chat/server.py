"""The app: OpenAI's chat API over the engine, and the chat page. `scripts/chat_web.py` starts it.

    POST /v1/chat/completions, POST /v1/completions, GET /v1/models, GET /health, GET /, /docs

Extensions are under `nanochat`: in a stream's delta a call of the model's tool {"type": "python",
"text"}, its result {"type": "python_output", "text"}, or at the end {"type": "timing", ...}; in a
whole message `parts`.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import yaml
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from nanochat.chat.access import AccessMiddleware, APIError, error_response
from nanochat.chat.completions import AppState, Completion
from nanochat.chat.prompts import chat_requests, completion_requests
from nanochat.chat.schema import ChatRequest, CompletionRequest
from nanochat.common import ConfigError, NanochatError

PAGE = Path(__file__).with_name("page")
ERRORS = {
    "4XX": {"description": 'The request cannot be obeyed: {"error": {"message", ...}}'},
    "5XX": {"description": "The server cannot answer."},
}


def create_app(
    state: AppState, *, api_key: str | None = None, origins: Sequence[str] = (),
    hosts: Sequence[str] | None = None,
) -> FastAPI:  # fmt: skip
    """The app around an engine, which it starts and stops; the options are AccessMiddleware's."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI):
        state.engine.start()
        yield
        await state.engine.stop()

    api_key = api_key and api_key.strip()
    if api_key == "":
        raise ConfigError("the API key is empty; give one, or leave the option out")
    origins = [origin.lower().rstrip("/") for origin in origins]
    app = FastAPI(
        title="nanochat", lifespan=lifespan, responses=ERRORS, docs_url=None, redoc_url=None
    )
    add_api(app, state)
    for path in PAGE.iterdir():
        address = "/" if path.name == "index.html" else f"/{path.name}"
        app.add_route(address, lambda _, path=path: FileResponse(path), include_in_schema=False)
    for kind in (HTTPException, RequestValidationError, NanochatError):
        app.add_exception_handler(kind, answer_error)
    app.add_middleware(
        AccessMiddleware, body_bytes=state.limits.body_bytes, api_key=api_key, origins=origins,
        hosts=hosts, paths={route.path for route in app.routes}, log=state.log,
    )  # fmt: skip
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"],
            allow_headers=["*"], allow_private_network=True,
        )  # fmt: skip
    return app


def add_api(app: FastAPI, state: AppState) -> None:
    engine, limits = state.engine, state.limits
    tokenizer, context = engine.engine.tokenizer, engine.engine.model.config.sequence_len
    model = {
        "id": state.model_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "nanochat",
        "max_model_len": context,
        "defaults": {
            "temperature": limits.temperature,
            "top_k": limits.top_k or 0,
            "max_tokens": limits.max_tokens,
        },
    }

    def check_model(name: str | None) -> None:
        # "dummy" is what huggingface_hub's client says where nobody chose
        if name not in (None, "", "nanochat", "dummy", state.model_name):
            message = f"there is no such model here; there is {state.model_name}"
            raise APIError(404, message, "model_not_found")

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, http: HttpRequest) -> Response:
        """An answer to a conversation, whole or as server-sent events."""
        check_model(body.model)
        requests, forgotten = chat_requests(body, tokenizer, context, limits)
        return await Completion(state, body, requests, http, True, forgotten).response()

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, http: HttpRequest) -> Response:
        """What follows a text, whole or as server-sent events; no chat markup, no tools."""
        check_model(body.model)
        requests = completion_requests(body, tokenizer, context, limits)
        return await Completion(state, body, requests, http).response()

    @app.get("/v1/models")
    async def models() -> dict:
        """The one model that is served."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> dict:
        """The model, its context in tokens, and what holds where a request does not say."""
        check_model(name)
        return model

    @app.get("/health")
    async def health() -> Response:
        """Whether the engine runs, how much it has to do, and how fast it is."""
        body = {
            "status": "ok" if engine.failure is None else "failed",
            "model": state.model_name,
            "tool": state.tool_name,
            "in_flight": engine.in_flight,
            "max_in_flight": engine.max_in_flight,
            **engine.engine.stats(),
        }
        return JSONResponse(body, 200 if engine.failure is None else 503)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> PlainTextResponse:
        # subtle: FastAPI's viewers load scripts from another site, which could read conversations
        return PlainTextResponse(yaml.safe_dump(app.openapi(), sort_keys=False))

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(status_code=204)


def answer_error(_: HttpRequest, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        of_form = isinstance(error, RequestValidationError)
        message = validation_message(error.errors()) if of_form else str(error)
        code = "context_length_exceeded" if "context of" in message else "invalid_request"
        error = APIError(400, message, code)
    return error_response(error)


def validation_message(errors: Sequence[dict]) -> str:
    """One sentence from pydantic's errors, without the text that was sent."""
    # the deepest says most about a value that may have several forms
    deepest = max(errors, key=lambda error: len(error["loc"]))
    if deepest["type"] == "json_invalid":
        return f"the body is not JSON: {deepest['ctx']['error']}, character {deepest['loc'][-1]}"
    steps = [str(step) for step in deepest["loc"] if step != "body"]
    place = ".".join(step for step in steps if "[" not in step)  # those name a type, not a field
    return f"{place or 'body'}: {deepest['msg'].removeprefix('Value error, ')}"
