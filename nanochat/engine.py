"""Continuous batching over a key/value cache; `GPT.generate` is its slow twin.

Requests join and leave at every step: the scheduler says what to compute, the fused model computes
it in one pass, and a token is sampled for every sequence whose tokens are all computed. What stands
between <|python_start|> and <|python_end|> is run while other sequences go on, and its result is
forced in between <|output_start|> and <|output_end|>.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import accumulate, count, islice

import torch

from nanochat.common import ConfigError
from nanochat.gpt import GPT
from nanochat.hardware import attention_backends
from nanochat.inference.calculator import evaluate
from nanochat.inference.cpu_decoder import cpu_decoder
from nanochat.inference.cuda_graphs import DecodeGraphs
from nanochat.inference.fused_model import FusedModel
from nanochat.inference.kv_cache import KVCache
from nanochat.inference.request import Request, RequestState, TokenOutput
from nanochat.inference.sampling import SamplingParams, sample, uniform
from nanochat.inference.scheduler import Chunk, ScheduledStep, Scheduler

RATE_SECONDS = 10  # over which tokens per second are counted
TOOL_THREADS = 4
TOOL_WAIT = 0.05  # seconds, for a tool's result where there is nothing else to do


class Engine:
    """Generates from a copy of a model's weights in compute dtype. Used by one thread.

    tool: text of a tool call -> text of its result; runs in threads of its own. max_batch: requests
    that run at once; the others wait. graphs: on CUDA, a step that reads no prompt is a captured
    graph. weights: what a CPU keeps the matrices as, float32, bfloat16 or int8; None: the compute
    dtype.

    Example: Engine(model, tokenizer).complete([tokenizer.encode("<|bos|>The sky is")],
    max_tokens=8) == [[" blue ..."]]
    """

    def __init__(
        self,
        model: GPT,
        tokenizer,
        tool: Callable[[str], str] = evaluate,
        *,
        max_batch: int = 64,
        graphs: bool = True,
        weights: str | None = None,
    ):
        self.model, self.tokenizer, self.tool = model, tokenizer, tool
        self.fused = FusedModel(model)
        self.decoder = cpu_decoder(self.fused, weights)
        dtype = self.fused.dtype if self.decoder is None else self.decoder.cache_dtype
        self.cache = KVCache(model.config, self.fused.device, dtype)
        cuda = self.fused.device.type == "cuda"
        self.scheduler = Scheduler(max_batch, chunk=2048 if cuda else 256)
        self.graphs = DecodeGraphs(self.fused, self.cache) if cuda and graphs else None
        self._answers: dict[int, RequestState] = {}
        self._ids = count()
        self._early: list[TokenOutput] = []  # what the next step returns first
        self._tool_threads = ThreadPoolExecutor(TOOL_THREADS, "tool")
        self._tool_calls: dict[int, Future[str]] = {}
        self._answer_tokens = 0
        self._steps = deque(maxlen=4096)  # the last ones' time, tokens

    def refresh(self) -> None:
        """Takes the model's present weights and forgets the cache; requests under way go on."""
        self.fused.refresh()
        if self.decoder is not None:
            self.decoder.refresh()
        self.scheduler.forget()

    def add(self, request: Request) -> int:
        """Takes a request in and returns its id; ConfigError if it is impossible."""
        config, id = self.model.config, next(self._ids)
        request.check(config)
        answer = RequestState(id, request, self.tokenizer, config.sequence_len)
        self._answers[id] = answer
        self.scheduler.add(answer.sequence)
        return id

    def cancel(self, id: int) -> None:
        """Ends a request, unless it has ended; the next step returns its last output."""
        if id in self._answers:
            self._early.append(self._answers[id].end("cancelled"))
            self._remove(id)

    @property
    def has_work(self) -> bool:
        return bool(self._answers or self._early)

    @torch.inference_mode()
    def step(self) -> list[TokenOutput]:
        """Computes one step; the tokens that came of it, in order for each request."""
        outputs, self._early = self._early, []
        try:
            outputs += self._collect_tool_results()
            scheduled = self.scheduler.schedule()
            if scheduled.chunks:
                answers = [self._answers[c.sequence.id] for c in scheduled.chunks if c.last]
                with attention_backends(self.fused.device, fixed_shapes=False):
                    tokens, logits = self._compute(scheduled, answers)
                for answer, token, row in zip(answers, tokens, logits, strict=True):
                    outputs.append(self._append(answer, token, row))
            elif self._tool_calls and not outputs:
                wait(self._tool_calls.values(), TOOL_WAIT, FIRST_COMPLETED)
        except BaseException:
            self.scheduler.forget()  # subtle: the step counts as done, and was not
            self._early = outputs
            raise
        tokens_came = sum(output.token is not None for output in outputs)
        self._answer_tokens += tokens_came
        self._steps.append((time.monotonic(), tokens_came))
        return outputs

    def stats(self) -> dict[str, float]:
        """What the engine does and has done; any thread may ask."""
        since = time.monotonic() - RATE_SECONDS
        recent = [tokens for when, tokens in list(self._steps) if when > since]
        return {
            "running": len(self.scheduler.running),
            "waiting": len(self.scheduler.waiting),
            "slots": len(self.scheduler.slots),
            "tokens_per_second": sum(recent) / RATE_SECONDS,
            "read_tokens": self.scheduler.read_tokens,  # of prompts
            "reused_tokens": self.scheduler.reused_tokens,  # of prompts, found in the cache
            "answer_tokens": self._answer_tokens,
            "cache_bytes": sum(layer.nbytes for layer in self.cache.layers),
        }

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 42,
        stop: Sequence[int] | None = None,
        max_batch: int = 64,
        on_end: Callable[[], object] = lambda: None,
    ) -> Iterator[tuple[int, int, int, bool]]:
        """Yields (prompt_index, sample_index, token, forced) as tokens come, rows interleaved.

        A sample ends before a stop id (default: <|assistant_end|>, <|bos|>), after max_tokens, or
        when prompt and answer fill the context. `forced` marks the ids of a tool's result, which
        count as tokens. The noise of a token depends on (seed, sample_index, its place in the
        answer) alone. At most `max_batch` rows run at once; `on_end` is called after each.
        """
        for name, value in {"num_samples": num_samples, "max_batch": max_batch}.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; choose at least 1")
        params = SamplingParams(temperature, top_k, top_p, seed)
        stop = None if stop is None else tuple(stop)
        requests = [
            Request(prompt, max_tokens, params, sample, stop)
            for prompt in prompts
            for sample in range(num_samples)
        ]
        for i, request in enumerate(requests):
            request.check(self.model.config, f"prompt {i // num_samples}")

        def tokens():
            for index, output in self.run(requests, max_batch):
                if output.token is not None:
                    yield *divmod(index, num_samples), output.token, output.forced
                if output.finish is not None:
                    on_end()

        return tokens()  # subtle: a generator would check nothing before it is asked for a token

    def complete(
        self, prompts: Sequence[Sequence[int]], *, num_samples: int = 1, **options
    ) -> list[list[str]]:
        """Every prompt's completions as text, special tokens named; options as in generate."""
        ids = [[[] for _ in range(num_samples)] for _ in prompts]
        for i, s, token, _ in self.generate(prompts, num_samples=num_samples, **options):
            ids[i][s].append(token)
        return [[self.tokenizer.decode(one) for one in samples] for samples in ids]

    @torch.inference_mode()
    def next_logits(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """(B, V) float32: the logits after each prompt, in one pass without the cache."""
        return self._logits([Chunk(i, 0, prompt) for i, prompt in enumerate(prompts)], cache=None)

    def run(
        self, requests: Sequence[Request], max_batch: int = 64
    ) -> Iterator[tuple[int, TokenOutput]]:
        """Yields (index of the request, event) as events come; at most `max_batch` run at once."""
        max_batch = min(max_batch, len(requests))  # slots that are needed
        self.scheduler.grow(max_batch)
        waiting, mine = enumerate(requests), {}  # id -> index
        try:
            while True:
                for index, request in islice(waiting, max_batch - len(mine)):
                    mine[self.add(request)] = index
                if not mine:
                    return
                outputs = self.step()
                # those of others, who use the same engine in turns with this loop
                self._early += [output for output in outputs if output.id not in mine]
                for output in [output for output in outputs if output.id in mine]:
                    yield mine[output.id], output
                    if output.finish is not None:
                        del mine[output.id]
        finally:
            for id in mine:  # the caller wants no more
                self.cancel(id)
            self._early = [output for output in self._early if output.id not in mine]

    def _compute(
        self, scheduled: ScheduledStep, answers: list[RequestState]
    ) -> tuple[list[int], torch.Tensor]:
        """The next token of each answer, and the logits (B, V) that it is drawn from."""
        running, chunks = self.scheduler.running, scheduled.chunks
        if self.graphs is None:
            slots = max(sequence.slot for sequence in running) + 1
            self.cache.reserve(slots, max(len(sequence.tokens) for sequence in running))
        elif self.cache.reserve(len(self.scheduler.slots), self.model.config.sequence_len + 1):
            self.graphs.clear()  # they hold the cache's addresses
        for copy in scheduled.copies:
            self.cache.copy(*copy)
        params = [answer.request.params for answer in answers]
        noise = [
            uniform(answer.request.params.seed, answer.request.sample_index, answer.position)
            for answer in answers
        ]
        plain = all(one.repetition_penalty == 1 for one in params)
        if self.graphs is not None and plain and all(c.last and c.single for c in chunks):
            return self.graphs.run(chunks, params, noise)
        logits = self._logits(chunks, self.cache)
        histories = [answer.sequence.tokens for answer in answers]
        draw = None if self.decoder is None else self.decoder.draw
        return sample(logits, params, noise, histories, draw), logits

    def _logits(self, chunks: list[Chunk], cache: KVCache | None) -> torch.Tensor:
        """(B, V): the logits after each chunk that is its sequence's last."""
        ends = list(accumulate(len(chunk.tokens) for chunk in chunks))
        rows = [end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.last]
        if cache is not None and self.decoder is not None and self.decoder.is_faster(ends[-1]):
            return self.decoder.logits(chunks, rows, cache)
        return self.fused.logits_of_rows(chunks, rows, cache)

    def _append(
        self, answer: RequestState, token: int, logits: torch.Tensor | None = None
    ) -> TokenOutput:
        """As RequestState.push; also starts the tool whose call the token completes."""
        output = answer.push(token, logits)
        if output.finish is not None:
            self._remove(output.id)
            return output
        answer.sequence.tokens.append(token)
        call = answer.reader.call
        if call is not None and answer.request.tools:
            self._tool_calls[output.id] = self._tool_threads.submit(self.tool, call)
            answer.sequence.paused = True
        return output

    def _collect_tool_results(self) -> list[TokenOutput]:
        """The forced tokens of the tools that have answered."""
        special, outputs = self.tokenizer.special, []
        for id in [id for id, call in self._tool_calls.items() if call.done()]:
            call, answer = self._tool_calls.pop(id), self._answers[id]
            error = call.exception()
            result = call.result() if error is None else f"error: {error}"
            answer.sequence.paused = False
            ids = self.tokenizer.encode_ordinary(result)
            for token in [special("<|output_start|>"), *ids, special("<|output_end|>")]:
                outputs.append(self._append(answer, token))
                if outputs[-1].finish is not None:
                    break
        return outputs

    def _remove(self, id: int) -> None:
        """Frees the slot of a request that has ended, and forgets its tool call."""
        self.scheduler.remove(id)
        if call := self._tool_calls.pop(id, None):
            call.cancel()
        del self._answers[id]
