"""The program as people start it: a real process, asked on loopback, ended by signals."""

import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from chain_model import chain_model, chain_tokenizer
from tiny_checkpoint import save

from nanochat.chat.limits import Limits
from nanochat.common import ConfigError
from nanochat.configurator import parse
from scripts.chat_web import Config, listen, main

ROOT = Path(__file__).resolve().parents[1]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, share_compiled):
    """A checkpoint whose answers go round ten letters for as long as they may."""
    base = share_compiled(tmp_path_factory.mktemp("base"))
    before, os.environ["NANOCHAT_BASE_DIR"] = os.environ.get("NANOCHAT_BASE_DIR"), str(base)
    tokenizer = chain_tokenizer()
    model = chain_model(tokenizer, "<|assistant_start|>ABCDEFGHIJA", context=2048)
    path = save(stage="sft", tag="round", model=model, tokenizer=tokenizer)
    os.environ.pop("NANOCHAT_BASE_DIR")
    if before is not None:
        os.environ["NANOCHAT_BASE_DIR"] = before
    return path


def environment(**more) -> dict:
    kept = {k: v for k, v in os.environ.items() if k not in ("SSH_CONNECTION", "NANOCHAT_API_KEY")}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "NANOCHAT_CPU_KERNELS": "torch",
        **more,
    }


@contextlib.contextmanager
def started(checkpoint, *flags, **env):
    """(process, port, lines so far) of a server; it is ended if the test did not end it."""
    command = [sys.executable, "-m", "scripts.chat_web", "-i", str(checkpoint), "--port=0", *flags]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        lines: list[str] = []
        while not any("chat at http" in line for line in lines):
            assert select.select([process.stdout], [], [], 300)[0], f"silent after {lines}"
            line = process.stdout.readline().decode()
            assert line, f"ended after {lines}"
            lines.append(line)
        yield process, int(re.search(r":(\d+)", lines[-1].split("http")[1]).group(1)), lines
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_sigterm_lets_answers_end_and_takes_no_more(checkpoint):
    ssh = "10.0.0.9 50123 10.0.0.5 22"
    with started(checkpoint, "--drain-seconds=100", SSH_CONNECTION=ssh) as (process, port, _):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=100)
        body = {"messages": [{"role": "user", "content": "secret"}], "stream": True}
        body |= {"max_tokens": 400, "temperature": 0}
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        first = response.readline()
        process.send_signal(signal.SIGTERM)
        rest = response.read().decode()
        text = first.decode() + rest
        deltas = [json.loads(line[6:])["choices"][0] for line in text.split("\n\n")[:-2]]
        said = "".join(choice["delta"].get("content", "") for choice in deltas)
        assert said == "ABCDEFGHIJ" * 40 and text.endswith("data: [DONE]\n\n")
        connection.close()
        assert process.wait(100) == 0
        out = process.stdout.read().decode()
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection("127.0.0.1", port, timeout=5).request("GET", "/health")
    assert "from your own machine: ssh" in out and "stopped" in out
    assert "400 written (length)" in out and "secret" not in out and "ABCDEF" not in out


def test_answers_that_do_not_end_are_cut_off_when_the_time_is_up(checkpoint, monkeypatch, capsys):
    """In this process, which a client in a thread interrupts."""
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    statuses, texts = [], []

    def client():
        for _ in range(1000):
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.1)
        body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "stream": True, "n": 8})
        for key in ("", "Bearer sesame"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=100)
            headers = {"content-type": "application/json", "authorization": key}
            connection.request("POST", "/v1/chat/completions", body, headers)
            response = connection.getresponse()
            statuses.append(response.status)
            texts.append(response.readline())
        signal.raise_signal(signal.SIGINT)
        with contextlib.suppress(http.client.IncompleteRead, ConnectionResetError):
            texts.append(response.read())
        connection.close()

    monkeypatch.setenv("NANOCHAT_API_KEY", "sesame")
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=client)
    thread.start()
    try:
        limits = Limits(max_tokens=1900)
        main(Config(source=str(checkpoint), port=port, drain_seconds=0, limits=limits))
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    thread.join()
    assert statuses == [401, 200] and not any(b"[DONE]" in text for text in texts)
    assert "nanochat-sft-round, step 1\n" in capsys.readouterr().out


def test_a_port_that_is_taken_is_told_of(checkpoint):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: .*--port"):
            main(Config(source=str(checkpoint), port=port))


def test_flags():
    config = parse(Config, [])
    assert (config.host, config.port, config.source) == ("127.0.0.1", 8000, "sft")
    assert config.api_key is None and config.allow_origin == () and not config.log_messages
    config = parse(Config, ["--allow-origin", "https://a", "https://b", "--in-flight=3"])
    assert config.allow_origin == ("https://a", "https://b") and config.limits.in_flight == 3
