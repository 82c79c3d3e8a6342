"""Serve the model: a chat page, and an API that OpenAI's clients understand.

    python -m scripts.chat_web
    python -m scripts.chat_web --host 127.0.0.1 --port 8000 --source sft

Ctrl-C or SIGTERM lets the answers under way end, and then leaves.
"""

import os
import signal
import socket
from dataclasses import dataclass, field
from typing import Annotated

import tyro
import uvicorn

from nanochat.chat.access import LOOPBACK, startup_banner
from nanochat.chat.async_engine import AsyncEngine
from nanochat.chat.completions import AppState
from nanochat.chat.limits import Limits
from nanochat.chat.model import ModelConfig, open_engine
from nanochat.chat.server import create_app
from nanochat.common import ConfigError, print0
from nanochat.configurator import cli


@dataclass(frozen=True)
class Config(ModelConfig):
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 opens the server to every network."""
    port: int = 8000
    """Port to listen at; 0 takes any that is free."""
    api_key: str | None = None
    """Key that callers of the API must send; default: $NANOCHAT_API_KEY, or none."""
    allow_origin: tuple[str, ...] = ()
    """Other sites whose pages may use the server, as in https://chat.example.com; * for all."""
    log_messages: bool = False
    """Write what is said into the log, too."""
    drain_seconds: int = 30
    """How long answers under way may take after Ctrl-C or SIGTERM."""
    limits: Annotated[Limits, tyro.conf.OmitArgPrefixes] = field(default_factory=Limits)
    """What keeps the server up, and how answers are drawn if the caller does not say."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises ConfigError where that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}. Choose another "
            f"--port (0 takes any that is free) or --host"
        ) from error


def serve(app, config: Config, listening: socket.socket) -> None:
    """Answers until Ctrl-C or SIGTERM, and then until the answers under way are done."""
    options = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=config.drain_seconds,
        server_header=False,
    )
    server = uvicorn.Server(options)

    def leave(*_) -> None:
        server.should_exit = True

    # subtle: uvicorn has handlers of its own while it runs, and raises the signal again once it is
    # done, which would end the program as killed
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    server.run([listening])
    print0("stopped")


def main(config: Config) -> None:
    listening = listen(config.host, config.port)  # before the model is read: that takes a while
    hosts = LOOPBACK if config.host in LOOPBACK else None
    api_key = config.api_key
    if api_key is None:
        api_key = os.environ.get("NANOCHAT_API_KEY") or None
    with open_engine(config) as (engine, meta):
        name = f"nanochat-{meta['stage']}-{meta['tag']}"
        print0(f"{name}, step {meta['step']:,}")
        engine = AsyncEngine(engine, config.limits.in_flight)
        state = AppState(engine, name, config.limits, config.tool, log_messages=config.log_messages)
        app = create_app(state, api_key=api_key, origins=config.allow_origin, hosts=hosts)
        port = listening.getsockname()[1]
        for line in startup_banner(config.host, port, os.environ, api_key):
            print0(line)
        serve(app, config, listening)


if __name__ == "__main__":
    cli(main, Config)
