"""The door: names, sites, and what is printed at the start."""

import asyncio

import pytest

from nanochat.chat import access
from nanochat.chat.access import AccessMiddleware, APIError, hostname, startup_banner
from nanochat.chat.server import create_app
from nanochat.common import ConfigError


@pytest.mark.parametrize(
    "authority, expected",
    [
        ("localhost:8000", "localhost"),
        ("[::1]:8000", "::1"),
        ("https://Chat.Example.com:8443", "chat.example.com"),
        ("", ""),
        ("[", ""),
    ],
)
def test_hostname(authority, expected):
    assert hostname(authority) == expected


def test_on_this_machine_alone_there_is_nothing_to_warn_of():
    assert startup_banner("127.0.0.1", 8000, {}, None) == ["chat at http://127.0.0.1:8000"]
    assert startup_banner("::1", 8000, {}, None) == ["chat at http://[::1]:8000"]


def test_an_open_host_says_what_it_exposes():
    lines = startup_banner("0.0.0.0", 80, {}, None)
    assert lines[0] == "chat at http://127.0.0.1:80"
    assert "every network" in lines[1] and "without a key" in lines[1] and "unencrypted" in lines[1]
    assert "with the API key" in startup_banner("0.0.0.0", 80, {}, "k")[1]
    assert "reaches 10.0.0.5, without" in startup_banner("10.0.0.5", 80, {}, None)[1]


def test_over_ssh_the_way_is_told():
    env = {"SSH_CONNECTION": "10.0.0.9 50123 10.0.0.5 22", "USER": "ada"}
    assert startup_banner("127.0.0.1", 8000, env, None)[1] == (
        "from your own machine: ssh -N -L 8000:127.0.0.1:8000 ada@10.0.0.5   "
        "then http://127.0.0.1:8000"
    )
    env["SSH_CONNECTION"] = "10.0.0.9 50123 10.0.0.5 2222"
    assert "ssh -p 2222 -N" in startup_banner("127.0.0.1", 8000, env, None)[1]


@pytest.mark.parametrize("key", ["", " "])
def test_an_empty_key_is_refused(key):
    with pytest.raises(ConfigError, match="API key is empty"):
        create_app(None, api_key=key)


def test_a_body_that_does_not_arrive_is_not_waited_for(monkeypatch):
    async def app(scope, receive, send):
        with pytest.raises(APIError, match="408"):
            await receive()
        await send({"type": "http.response.start", "status": 408, "headers": []})

    async def send(message):
        assert message["status"] == 408

    monkeypatch.setattr(access, "BODY_SECONDS", 0.01)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    options = {"api_key": None, "origins": (), "hosts": None, "paths": (), "log": print}
    middleware = AccessMiddleware(app, body_bytes=10, **options)
    asyncio.run(middleware(scope, asyncio.Event().wait, send))
