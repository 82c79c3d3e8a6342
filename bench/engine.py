"""Speed of the engine beside Hugging Face's generate and llama.cpp, on the same random weights.

    python -m bench.engine                            depth 12 on whatever device is there
    python -m bench.engine --depth 8 --vocab-size 16384 --streams 1 8 32

Hugging Face reads the weights from a checkpoint folder (needs the export extra); llama.cpp reads
GGUF files made of it, where llama-cpp-python is installed (`pip install llama-cpp-python` compiles
it, for some minutes). All take turns. Prints time to first token, tokens/s while tokens come, and
the share of the memory bandwidth that the bytes read (weights but the embedding table, and cache)
reach; the bandwidth is measured in the same turns. Writes bench/results/engine-<machine>.json,
on a CPU engine-<instructions>-<machine>.json.
"""

import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

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
    streams: tuple[int, ...] = (1, 8, 32)
    """Answers that are made at once."""
    weights: tuple[str, ...] = ("float32", "bfloat16", "int8")
    """On a CPU: what the engine keeps its matrices as."""
    hf_dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """Those of Hugging Face's generate; none alone leaves it out."""
    llama_types: tuple[str, ...] = ("f16", "q8_0")
    """Those of llama.cpp; none alone leaves it out."""
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
    device_type: str = "auto"
    """auto, cuda, mps or cpu."""


# ---------------------------------------------------------------- what is measured

Speeds = tuple[float, float]  # seconds to the first token, tokens/s afterwards
# int8: and a scale for 64 of them
BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1 + 4 / 64}


def prompts(config: Config, streams: int) -> list[list[int]]:
    shape, generator = (streams, config.prompt_tokens), torch.Generator().manual_seed(streams)
    return torch.randint(256, config.vocab_size - 9, shape, generator=generator).tolist()


def random_model(config: Config, device: torch.device) -> GPT:
    """Weights that make no token certain, drawn once."""
    # llama.cpp has no soft-cap
    model = GPT(GPTConfig.from_depth(config.depth, config.vocab_size, logit_softcap=None))
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


def hugging_face(
    checkpoint: Path, dtype: str, bos: int, config: Config, device: torch.device
) -> Callable[[int], Speeds]:
    """Measures transformers' generate for a number of streams."""
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).to(device)

    def measure(streams: int) -> Speeds:
        inputs = torch.tensor(prompts(config, streams), device=device)
        seconds = []
        for new in (1, config.new_tokens):
            choice = {"do_sample": config.temperature > 0}
            if config.temperature > 0:
                choice |= {"temperature": config.temperature, "top_k": config.top_k}
            synchronize(device)
            start = time.perf_counter()
            with torch.inference_mode():
                out = other.generate(
                    inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=new,
                    min_new_tokens=new, pad_token_id=bos, **choice,
                )  # fmt: skip
            synchronize(device)
            seconds.append(time.perf_counter() - start)
            assert out.shape[1] == config.prompt_tokens + new
        return seconds[0], streams * (config.new_tokens - 1) / (seconds[1] - seconds[0])

    return measure


def llama_cpp(gguf: Path, config: Config) -> Callable[[int], Speeds]:
    """Measures llama.cpp: one batch a step with a token of every stream, as its server's slots."""
    import llama_cpp as c

    model = c.llama_model_load_from_file(str(gguf).encode(), c.llama_model_default_params())
    assert model, f"llama.cpp cannot read {gguf}"

    def decode(context, tokens: list[tuple[int, int, int, bool]]) -> None:
        """tokens: (stream, position, id, whether its logits are wanted)."""
        batch = c.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (stream, position, id, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = id, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, stream
        assert c.llama_decode(context, batch) == 0
        c.llama_batch_free(batch)

    def measure(streams: int) -> Speeds:
        params = c.llama_context_default_params()
        params.n_ctx = streams * (config.prompt_tokens + config.new_tokens)
        params.n_batch = params.n_ubatch = max(512, streams)
        params.n_seq_max, params.kv_unified = streams, False
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        context = c.llama_init_from_model(model, params)
        chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
        if config.temperature > 0:
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_top_k(config.top_k))
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_temp(config.temperature))
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_dist(1))
        else:
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_greedy())
        start, first, ids = time.perf_counter(), [], []
        last = config.prompt_tokens - 1
        for stream, prompt in enumerate(prompts(config, streams)):
            decode(context, [(stream, i, id, i == last) for i, id in enumerate(prompt)])
            ids.append(c.llama_sampler_sample(chain, context, -1))
            first.append(time.perf_counter() - start)
        seconds = []
        for step in range(config.new_tokens - 1):
            before, at = time.perf_counter(), config.prompt_tokens + step
            decode(context, [(stream, at, id, True) for stream, id in enumerate(ids)])
            ids = [c.llama_sampler_sample(chain, context, i) for i in range(streams)]
            seconds.append(time.perf_counter() - before)
        c.llama_sampler_free(chain)
        c.llama_free(context)
        return statistics.median(first), streams / statistics.median(seconds)

    return measure


def bandwidth(buffer: torch.Tensor) -> float:
    """Bytes/s of the fastest of three readings of the whole buffer."""
    seconds = []
    for _ in range(3):
        synchronize(buffer.device)
        start = time.perf_counter()
        buffer.sum().item()
        seconds.append(time.perf_counter() - start)
    return buffer.nbytes / min(seconds)


def bytes_per_step(engine: Engine, config: Config, streams: int) -> float:
    """What a step reads: the weights, and the cache of every stream, half of its answer long."""
    c, model = engine.model.config, engine.model
    kind = engine.decoder.weights if engine.decoder else str(engine.fused.dtype).split(".")[-1]
    weights = model.num_params() - model.model.embed_tokens.weight.numel()
    of_token = 2 * c.n_layer * c.n_kv_head * c.head_dim * engine.cache.dtype.itemsize
    cached = streams * (config.prompt_tokens + config.new_tokens / 2) * of_token
    return BYTES_PER_WEIGHT[kind] * weights + cached


# ---------------------------------------------------------------- turns and tables


def programs_of(
    config: Config, model: GPT, device: torch.device, folder: str
) -> tuple[dict[str, Callable[[int], Speeds]], dict[str, Engine]]:
    """What is measured, by its name; the engines among them."""
    tokenizer = Tokenizer.train(["two programs take turns"], config.vocab_size)
    with patch.dict(os.environ, NANOCHAT_BASE_DIR=folder):
        parts = {"model": model, "tokenizer": tokenizer, "run": {"config": {}}, "state": {}}
        checkpoint = prepare_checkpoint("base", "bench", 0, **parts)()
    programs, engines = {}, {}
    for weights in config.weights if device.type == "cpu" else (None,):
        name = f"nanochat {weights}" if weights else "nanochat"
        engine = Engine(model, tokenizer, max_batch=max(config.streams), weights=weights)
        engines[name], programs[name] = engine, partial(run_engine, engine, config)
    for dtype in filter("none".__ne__, config.hf_dtypes):
        measure = hugging_face(checkpoint, dtype, tokenizer.bos, config, device)
        programs[f"Hugging Face generate {dtype}"] = measure
    if importlib.util.find_spec("llama_cpp") is None:
        print("llama.cpp: left out; pip install llama-cpp-python")
        return programs, engines
    from nanochat.publishing.gguf import write_gguf

    for kind in filter("none".__ne__, config.llama_types):
        path = Path(folder) / f"{kind}.gguf"
        write_gguf(checkpoint, path, kind)
        programs[f"llama.cpp {kind}"] = llama_cpp(path, config)
    return programs, engines


def measure_all(config: Config, device: torch.device) -> tuple[list[dict], list[float]]:
    """A row for each program and number of streams; the bandwidth of every turn."""
    model = random_model(config, device)
    with tempfile.TemporaryDirectory() as folder:
        programs, engines = programs_of(config, model, device, folder)
    buffer = torch.ones(2 * model.num_params() // 4, device=device)
    speeds = {(name, n): [] for n in config.streams for name in programs}
    bandwidths = []
    for turn in range(config.repeats + 1):  # the first warms up, and is not counted
        for name, n in speeds:
            read = bandwidth(buffer)
            measured = programs[name](n)
            print(f"turn {turn}: {name}, {n} streams: {measured[1]:,.1f} tokens/s", flush=True)
            if turn:
                bandwidths.append(read)
                speeds[name, n].append(measured)
    rows, read = [], statistics.median(bandwidths)
    for (program, n), found in speeds.items():
        first, speed = (statistics.median(part) for part in zip(*found, strict=True))
        row = {"program": program, "streams": n, "seconds_to_first_token": first}
        row |= {"tokens_per_second": speed, "all": found}
        if program in engines:
            row["bandwidth_share"] = speed / n * bytes_per_step(engines[program], config, n) / read
        rows.append(row)
    return rows, bandwidths


def print_table(rows: list[dict], title: str) -> None:
    """Each program's tokens/s also as a multiple of its own with one stream."""
    columns = "program", "streams", "first token", "tokens/s", "of bandwidth", "of one stream"
    table = Table(*columns, title=title)
    one = {r["program"]: r["tokens_per_second"] for r in rows if r["streams"] == 1}
    for r in rows:
        speed = r["tokens_per_second"]
        share = f"{r['bandwidth_share']:.0%}" if "bandwidth_share" in r else ""
        of_one = f"{speed / one[r['program']]:.1f}x" if one else ""
        first = f"{r['seconds_to_first_token']:.3f} s"
        table.add_row(r["program"], str(r["streams"]), first, f"{speed:,.1f}", share, of_one)
    Console().print(table)


def main(config: Config) -> None:
    device = compute_init(config.device_type)[-1]
    rows, bandwidths = measure_all(config, device)
    machine, dtype = device_name(device), str(choose_dtype(device)[0]).removeprefix("torch.")
    print_table(rows, f"generation, depth {config.depth}, {machine}, {dtype}")
    print(f"memory bandwidth: {statistics.median(bandwidths) / 1e9:.1f} GB/s (reading a buffer as "
          f"large as the weights, median of {len(bandwidths)} turns)")  # fmt: skip
    processor = torch.backends.cpu.get_cpu_capability().lower()
    name = f"engine-{processor}" if device.type == "cpu" else "engine"
    figures = {"compute_dtype": dtype, "bandwidth_bytes_per_second": bandwidths, "results": rows}
    write_record(name, config, device, figures)


if __name__ == "__main__":
    cli(main, Config)
