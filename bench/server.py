"""What the server costs: tokens/s of its streams beside the engine alone, on random weights.

    python -m bench.server                        depth 4 on whatever device is there
    python -m bench.server --depth 12 --streams 1 32 200

Both take turns on one model. The server's clients are one other process on loopback, which reads
every event of plain completions. Prints tokens/s and the time to the first token, medians of the
turns. Writes bench/results/server-<machine>.json.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import torch
import uvicorn
from rich.console import Console
from rich.table import Table

from bench.record import write_record
from nanochat.chat.async_engine import AsyncEngine
from nanochat.chat.completions import AppState
from nanochat.chat.limits import Limits
from nanochat.chat.server import create_app
from nanochat.common import choose_dtype, compute_init
from nanochat.configurator import cli
from nanochat.engine import Engine, Request, SamplingParams
from nanochat.gpt import GPT, GPTConfig
from nanochat.hardware import device_name
from nanochat.tokenizer import Tokenizer


@dataclass(frozen=True)
class Config:
    depth: int = 4
    """Layers; the width follows."""
    streams: tuple[int, ...] = (1, 32, 200)
    """Answers that are asked for at once."""
    prompt_tokens: int = 64
    """Tokens of every prompt; no two begin alike."""
    new_tokens: int = 64
    """Tokens of every answer."""
    turns: int = 3
    """How often each takes its turn."""
    device_type: str = "auto"
    """auto, cuda, mps or cpu."""
    client: int = 0
    """Port of a server to ask; how this program starts its own clients."""


def random_model(config: Config, device) -> tuple[GPT, Tokenizer]:
    """A model whose projections are random too, and a small tokenizer."""
    tokenizer = Tokenizer.train(["the cat sat on the mat"], 320)
    with torch.device(device):
        model = GPT(GPTConfig.from_depth(config.depth, vocab_size=320)).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02, generator=generator)
    model.compute_dtype = choose_dtype(device)[0]
    return model, tokenizer


def prompts(config: Config, streams: int, turn: int) -> list[list[int]]:
    """Ids of ordinary text, others in every turn, so that nothing can be reused."""
    generator = torch.Generator().manual_seed(turn)
    shape = streams, config.prompt_tokens
    return torch.randint(0, 256, shape, generator=generator).tolist()


def engine_alone(engine: Engine, config: Config, streams: int, turn: int) -> dict:
    """One turn of the engine without a server."""
    params = SamplingParams(temperature=1.0, top_k=50)
    begun, first, tokens = time.perf_counter(), {}, 0
    for prompt in prompts(config, streams, turn):
        engine.add(Request([engine.tokenizer.bos, *prompt], config.new_tokens, params))
    while engine.has_work:
        for event in engine.step():
            tokens += event.token is not None
            first.setdefault(event.id, time.perf_counter() - begun)
    seconds = time.perf_counter() - begun
    return {"tokens_per_second": tokens / seconds, "first": statistics.median(first.values())}


# ---------------------------------------------------------------- the clients: another process


async def read_stream(port: int, prompt: list[int], config: Config) -> tuple[int, float]:
    """(tokens, seconds to the first) of one streamed completion."""
    body = {"prompt": prompt, "max_tokens": config.new_tokens, "temperature": 1, "top_k": 50}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    data = json.dumps(body).encode()
    begun, first, tokens = time.perf_counter(), None, 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n")
    head = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    async for line in reader:
        if not line.startswith(b"data: {"):
            continue
        first = first or time.perf_counter() - begun
        if b'"usage":{' in line:
            tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    writer.close()
    return tokens, first or float("inf")


async def clients(config: Config, streams: int, turn: int) -> dict:
    """One turn of the server, as its clients see it."""
    begun = time.perf_counter()
    asked = [read_stream(config.client, p, config) for p in prompts(config, streams, turn)]
    read = await asyncio.gather(*asked)
    seconds = time.perf_counter() - begun
    tokens, first = zip(*read, strict=True)
    return {"tokens_per_second": sum(tokens) / seconds, "first": statistics.median(first)}


def be_clients(config: Config) -> None:
    """Reads "streams turn" from each line of standard input, answers with the turn's figures."""
    for line in sys.stdin:
        streams, turn = map(int, line.split())
        print(json.dumps(asyncio.run(clients(config, streams, turn))), flush=True)


# ---------------------------------------------------------------- turns


def measure(config: Config, device) -> list[dict]:
    """A row for every number of streams: medians of both, and their ratio."""
    model, tokenizer = random_model(config, device)
    alone = Engine(model, tokenizer)
    limits = Limits(in_flight=max(config.streams))
    engine = AsyncEngine(Engine(model, tokenizer), limits.in_flight)
    app = create_app(AppState(engine, "bench", limits, log=lambda line: None))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    runner = threading.Thread(target=server.run)
    runner.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    flags = [f"--{name}={getattr(config, name)}" for name in ("prompt_tokens", "new_tokens")]
    command = [sys.executable, "-m", "bench.server", f"--client={port}", *flags]
    pipe = subprocess.PIPE
    rows = []
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        for streams in config.streams:
            turns = {"engine": [], "server": []}
            for turn in range(config.turns + 1):
                turns["engine"].append(engine_alone(alone, config, streams, turn))
                process.stdin.write(f"{streams} {turn}\n")
                process.stdin.flush()
                turns["server"].append(json.loads(process.stdout.readline()))
            row = {"streams": streams}
            for name, figures in turns.items():
                for key in ("tokens_per_second", "first"):  # the first turn only warms up
                    row[f"{name}_{key}"] = statistics.median(one[key] for one in figures[1:])
            row["share"] = row["server_tokens_per_second"] / row["engine_tokens_per_second"]
            rows.append(row)
        process.stdin.close()
    server.should_exit = True
    runner.join()
    return rows


def main(config: Config) -> None:
    if config.client:
        be_clients(config)
        return
    device = compute_init(config.device_type)[-1]
    rows, machine = measure(config, device), device_name(device)
    table = Table(title=f"server beside engine, depth {config.depth}, {machine}")
    for name in ("streams", "engine tok/s", "server tok/s", "share", "first alone s", "first s"):
        table.add_column(name, justify="right")
    for row in rows:
        speeds = [f"{row[f'{name}_tokens_per_second']:,.0f}" for name in ("engine", "server")]
        firsts = [f"{row[f'{name}_first']:.3f}" for name in ("engine", "server")]
        table.add_row(str(row["streams"]), *speeds, f"{row['share']:.0%}", *firsts)
    Console().print(table)
    write_record("server", config, device, {"results": rows})


if __name__ == "__main__":
    cli(main, Config)
