"""Speed of the engine beside Hugging Face's generate, and llama.cpp, on random weights.

    python -m bench.engine                                    depth 12 on whatever device is there
    python -m bench.engine --depth 20 --streams 1 32 --gguf model.gguf

Hugging Face reads the same weights from a checkpoint folder, in the same dtype (needs the export
extra); llama.cpp reads --gguf through llama-cpp-python, where that is installed. All take turns.
Prints time to first token, tokens/s while tokens come, and the share of the memory bandwidth that
the bytes read (weights but the embedding table, and cache) reach; the bandwidth is measured in the
same turns, on a buffer as large as the weights. Writes bench/results/engine-<machine>.json.
"""

import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from bench.record import write_record
from nanochat.checkpoint_manager import prepare_checkpoint
from nanochat.common import choose_dtype, compute_init
from nanochat.configurator import cli
from nanochat.engine import Engine, Request, SamplingParams
from nanochat.gpt import GPT, GPTConfig
from nanochat.hardware import device_name, synchronize
from nanochat.tokenizer import Tokenizer


@dataclass(frozen=True)
class Config:
    depth: int = 12
    """Layers; the width follows."""
    vocab_size: int = 65536
    """Ids."""
    streams: tuple[int, ...] = (1, 8, 32, 128)
    """Answers that are made at once."""
    hf_streams: tuple[int, ...] = (1, 8, 32)
    """The same for Hugging Face's generate; -1 alone leaves it out."""
    prompt_tokens: int = 64
    """Tokens of every prompt; no two prompts begin alike."""
    new_tokens: int = 64
    """Tokens of every answer."""
    temperature: float = 0.8
    """0 takes the likeliest token."""
    top_k: int = 50
    """Choose among this many."""
    repeats: int = 3
    """Turns; tables show medians."""
    gguf: str = ""
    """A GGUF file for llama.cpp."""
    device_type: str = "auto"
    """auto, cuda, mps or cpu."""


# ---------------------------------------------------------------- what is measured

Speeds = tuple[float, float]  # seconds to the first token, tokens/s afterwards


def prompts(config: Config, streams: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(streams)
    shape = (streams, config.prompt_tokens)
    return torch.randint(256, config.vocab_size - 9, shape, generator=generator).tolist()


def random_model(config: Config, device: torch.device) -> GPT:
    """Weights that make no token certain, drawn once."""
    shape = GPTConfig.from_depth(config.depth, config.vocab_size)
    model = GPT(shape)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02, generator=generator)
    model = model.to(device).requires_grad_(False)
    model.compute_dtype = choose_dtype(device)[0]
    return model


def run_engine(engine: Engine, config: Config, streams: int) -> Speeds:
    """All requests at once, to an idle engine that has forgotten everything. The speed is that of
    the steps in which every stream gets a token."""
    engine.scheduler.forget()
    params = SamplingParams(config.temperature, config.top_k)
    start = now = time.perf_counter()
    for i, prompt in enumerate(prompts(config, streams)):
        engine.add(Request(prompt, config.new_tokens, params, i, stop=(), tools=False))
    first: dict[int, float] = {}
    full_steps = []
    while engine.has_work:
        full = len(first) == streams
        events = engine.step()  # it has read the chosen tokens, so the device is done
        before, now = now, time.perf_counter()
        for event in events:
            first.setdefault(event.id, now - start)
        if full and len(events) == streams:
            full_steps.append(now - before)
    return statistics.median(first.values()), streams / statistics.median(full_steps)


def hugging_face(model: GPT, tokenizer: Tokenizer, config: Config) -> Callable[[int], Speeds]:
    """The same weights, saved as a checkpoint and loaded by transformers; a function that measures
    them."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        previous = os.environ.get("NANOCHAT_BASE_DIR")
        os.environ["NANOCHAT_BASE_DIR"] = folder
        path = prepare_checkpoint("base", "bench", 0, model=model, tokenizer=tokenizer,
                                  run={"config": {}}, state={})()  # fmt: skip
        os.environ.pop("NANOCHAT_BASE_DIR")
        if previous is not None:
            os.environ["NANOCHAT_BASE_DIR"] = previous
        other = AutoModelForCausalLM.from_pretrained(path, dtype=model.compute_dtype)
        other = other.to(model.device)

    def measure(streams: int) -> Speeds:
        inputs = torch.tensor(prompts(config, streams), device=model.device)
        seconds = []
        for new in (1, config.new_tokens):
            choice = {"do_sample": False}
            if config.temperature > 0:
                choice = {"do_sample": True, "temperature": config.temperature}
                choice["top_k"] = config.top_k
            synchronize(model.device)
            start = time.perf_counter()
            with torch.inference_mode():
                out = other.generate(
                    inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=new,
                    min_new_tokens=new, pad_token_id=tokenizer.bos, **choice,
                )  # fmt: skip
            synchronize(model.device)
            seconds.append(time.perf_counter() - start)
            assert out.shape[1] == config.prompt_tokens + new
        return seconds[0], streams * (config.new_tokens - 1) / (seconds[1] - seconds[0])

    return measure


def llama_cpp(config: Config) -> Callable[[int], Speeds] | None:
    """One stream of llama.cpp on the GGUF file; None, and the reason, where it cannot be run."""
    if not config.gguf:
        print("llama.cpp: left out, for no --gguf FILE was given")
        return None
    if importlib.util.find_spec("llama_cpp") is None:
        print("llama.cpp: left out, for llama-cpp-python is not installed")
        return None
    from llama_cpp import Llama

    context = config.prompt_tokens + config.new_tokens + 1
    llama = Llama(config.gguf, n_ctx=context, n_threads=torch.get_num_threads(), verbose=False)

    def measure(streams: int) -> Speeds:
        assert streams == 1
        llama.reset()
        [prompt] = prompts(config, 1)
        prompt = [id % llama.n_vocab() for id in prompt]
        start = time.perf_counter()
        choice = {"top_k": config.top_k, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
        rows = llama.generate(prompt, temp=config.temperature, **choice)
        times = [time.perf_counter() for _, _ in zip(range(config.new_tokens), rows, strict=False)]
        return times[0] - start, (len(times) - 1) / (times[-1] - times[0])

    return measure


def bandwidth(buffer: torch.Tensor) -> float:
    """Bytes/s of the fastest of three readings of the whole buffer."""
    seconds = []
    for _ in range(3):
        synchronize(buffer.device)
        start = time.perf_counter()
        buffer.sum()
        synchronize(buffer.device)
        seconds.append(time.perf_counter() - start)
    return buffer.nbytes / min(seconds)


def bytes_per_step(engine: Engine, config: Config, streams: int) -> float:
    """What a step reads: the weights, and the cache of every stream, half of its answer long."""
    c = engine.model.config
    of_token = 2 * c.n_layer * c.n_kv_head * c.head_dim * engine.cache.dtype.itemsize
    cached = streams * (config.prompt_tokens + config.new_tokens / 2) * of_token
    return engine.fused.bytes_per_token() + cached


# ---------------------------------------------------------------- turns and tables


def measure_all(config: Config, device: torch.device) -> tuple[list[dict], list[float]]:
    """A row for each program and number of streams; the bandwidth of every turn."""
    model = random_model(config, device)
    tokenizer = Tokenizer.train(["two programs take turns"], config.vocab_size)
    engine = Engine(model, tokenizer, max_batch=max(config.streams))
    programs: dict[tuple[str, int], Callable[[], Speeds]] = {}
    for n in config.streams:
        programs["nanochat", n] = lambda n=n: run_engine(engine, config, n)
    if hf_streams := [n for n in config.hf_streams if n > 0]:
        other = hugging_face(model, tokenizer, config)
        for n in hf_streams:
            programs["Hugging Face generate", n] = lambda n=n: other(n)
    if llama := llama_cpp(config):
        programs["llama.cpp", 1] = lambda: llama(1)
    buffer = torch.ones(engine.fused.bytes_per_token() // 4, device=device)
    speeds = {key: [] for key in programs}
    bandwidths = []
    for turn in range(config.repeats + 1):  # the first warms up, and is not counted
        for key, run in sorted(programs.items(), key=lambda item: item[0][1]):
            read = bandwidth(buffer)
            measured = run()
            print(
                f"turn {turn}: {key[0]}, {key[1]} streams: {measured[1]:,.1f} tokens/s", flush=True
            )
            if turn:
                bandwidths.append(read)
                speeds[key].append(measured)
    rows = [summary(*key, found) for key, found in speeds.items()]
    read = statistics.median(bandwidths)
    for row in rows:
        if row["program"] == "nanochat":
            n = row["streams"]
            steps = row["tokens_per_second"] / n
            row["bandwidth_share"] = steps * bytes_per_step(engine, config, n) / read
    return rows, bandwidths


def summary(program: str, streams: int, found: list[Speeds]) -> dict:
    return {
        "program": program,
        "streams": streams,
        "seconds_to_first_token": statistics.median(first for first, _ in found),
        "tokens_per_second": statistics.median(speed for _, speed in found),
        "all": found,
    }


def print_table(rows: list[dict], title: str) -> None:
    """Ratios: to Hugging Face's generate with as many streams, and to one stream."""
    table = Table("program", "streams", "first token", "tokens/s", "of bandwidth", title=title)
    table.add_column("nanochat is")
    table.add_column("of one stream")
    mine = {r["streams"]: r["tokens_per_second"] for r in rows if r["program"] == "nanochat"}
    for r in sorted(rows, key=lambda r: (r["streams"], r["program"] != "nanochat")):
        speed, n = r["tokens_per_second"], r["streams"]
        share = f"{r['bandwidth_share']:.0%}" if "bandwidth_share" in r else ""
        times = f"{mine[n] / speed:.1f}x" if n in mine and not share else ""
        of_one = f"{speed / mine[1]:.1f}x" if share and 1 in mine else ""
        first = f"{r['seconds_to_first_token']:.3f} s"
        table.add_row(r["program"], str(n), first, f"{speed:,.1f}", share, times, of_one)
    Console().print(table)


def main(config: Config) -> None:
    device = compute_init(config.device_type)[-1]
    rows, bandwidths = measure_all(config, device)
    machine, dtype = device_name(device), str(choose_dtype(device)[0]).removeprefix("torch.")
    print_table(rows, f"generation, depth {config.depth}, {machine}, {dtype}")
    print(f"memory bandwidth: {statistics.median(bandwidths) / 1e9:.1f} GB/s (reading a buffer as "
          f"large as the weights, median of {len(bandwidths)} turns)")  # fmt: skip
    write_record(
        "engine",
        config,
        device,
        {
            "compute_dtype": dtype,
            "bandwidth_bytes_per_second": bandwidths,
            "results": rows,
        },
    )


if __name__ == "__main__":
    cli(main, Config)
