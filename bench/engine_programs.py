"""What bench.engine measures: our engine, Hugging Face's generate and llama.cpp under one load."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat.engine import Engine, Request, SamplingParams
from nanochat.hardware import synchronize

Speeds = tuple[float, float]  # seconds to the first token, tokens/s afterwards


@dataclass(frozen=True)
class Load:
    """Answers that are made at once; no two prompts begin alike. temperature 0: the likeliest."""

    streams: int
    prompt_tokens: int
    new_tokens: int
    vocab_size: int
    temperature: float
    top_k: int

    def prompts(self) -> list[list[int]]:
        shape = self.streams, self.prompt_tokens
        generator = torch.Generator().manual_seed(self.streams)
        return torch.randint(256, self.vocab_size - 9, shape, generator=generator).tolist()


Measure = Callable[[Load], Speeds]


def run_engine(engine: Engine, load: Load) -> Speeds:
    """All requests at once, to an idle engine that has forgotten everything. The speed is that of
    the steps in which every stream gets a token."""
    engine.scheduler.forget()
    params = SamplingParams(load.temperature, load.top_k)
    start = now = time.perf_counter()
    for i, prompt in enumerate(load.prompts()):
        engine.add(Request(prompt, load.new_tokens, params, i, stop=(), tools=False))
    first: dict[int, float] = {}
    full_steps = []
    while engine.has_work:
        full = len(first) == load.streams
        events = engine.step()  # it has read the chosen tokens, so the device is done
        before, now = now, time.perf_counter()
        for event in events:
            first.setdefault(event.id, now - start)
        if full and len(events) == load.streams:
            full_steps.append(now - before)
    return statistics.median(first.values()), load.streams / statistics.median(full_steps)


def hugging_face(checkpoint: Path, dtype: str, bos: int, device: torch.device) -> Measure:
    """Measures transformers' generate."""
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).to(device)

    def measure(load: Load) -> Speeds:
        inputs = torch.tensor(load.prompts(), device=device)
        seconds = []
        for new in (1, load.new_tokens):
            choice = {"do_sample": load.temperature > 0}
            if load.temperature > 0:
                choice |= {"temperature": load.temperature, "top_k": load.top_k}
            synchronize(device)
            start = time.perf_counter()
            with torch.inference_mode():
                out = other.generate(
                    inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=new,
                    min_new_tokens=new, pad_token_id=bos, **choice,
                )  # fmt: skip
            synchronize(device)
            seconds.append(time.perf_counter() - start)
            assert out.shape[1] == load.prompt_tokens + new
        return seconds[0], load.streams * (load.new_tokens - 1) / (seconds[1] - seconds[0])

    return measure


def llama_cpp(gguf: Path) -> Measure:
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

    def measure(load: Load) -> Speeds:
        streams = load.streams
        params = c.llama_context_default_params()
        params.n_ctx = streams * (load.prompt_tokens + load.new_tokens)
        params.n_batch = params.n_ubatch = max(512, streams)
        params.n_seq_max, params.kv_unified = streams, False
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        context = c.llama_init_from_model(model, params)
        chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
        if load.temperature > 0:
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_top_k(load.top_k))
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_temp(load.temperature))
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_dist(1))
        else:
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_greedy())
        start, first, ids = time.perf_counter(), [], []
        last = load.prompt_tokens - 1
        for stream, prompt in enumerate(load.prompts()):
            decode(context, [(stream, i, id, i == last) for i, id in enumerate(prompt)])
            ids.append(c.llama_sampler_sample(chain, context, -1))
            first.append(time.perf_counter() - start)
        seconds = []
        for step in range(load.new_tokens - 1):
            before, at = time.perf_counter(), load.prompt_tokens + step
            decode(context, [(stream, at, id, True) for stream, id in enumerate(ids)])
            ids = [c.llama_sampler_sample(chain, context, i) for i in range(streams)]
            seconds.append(time.perf_counter() - before)
        c.llama_sampler_free(chain)
        c.llama_free(context)
        return statistics.median(first), streams / statistics.median(seconds)

    return measure
