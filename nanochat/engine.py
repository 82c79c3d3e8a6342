"""Continuous batching over a key/value cache; `GPT.generate` is its slow twin.

Requests join and leave at every step: the scheduler says what a step computes, the inference model
computes it in one pass, sampling chooses a token for every sequence that knows no more, and each
token becomes an event. What stands between <|python_start|> and <|python_end|> is run while other
sequences go on, and its result is forced in between <|output_start|> and <|output_end|>.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import torch

from nanochat.common import ConfigError
from nanochat.gpt import GPT
from nanochat.hardware import attention_backends
from nanochat.inference.calculator import evaluate
from nanochat.inference.cuda_graphs import DecodeGraphs
from nanochat.inference.fused_model import InferenceModel
from nanochat.inference.kv_cache import AttentionBatch, KVCache, TokenSpan, padded_size
from nanochat.inference.request import Request, RequestState, TokenOutput
from nanochat.inference.sampling import SamplingParams, logprobs, sample, uniform
from nanochat.inference.scheduler import ScheduledStep, Scheduler
from nanochat.inference.tool_calls import AnswerReader, Tool, ToolRunner

__all__ = ["AnswerReader", "Engine", "TokenOutput", "Request", "SamplingParams"]

STEPS_REMEMBERED = 4096  # for the tokens per second


class Engine:
    """Generates from a model; holds a copy of its weights in compute dtype, which `refresh` brings
    up to date. It is used by one thread.

    `tool` gets the text of a tool call and returns the text of its result; it runs in threads of
    its own. `max_batch` requests run at once, the others wait. A step reads at most `chunk` tokens
    of prompts (default: 2,048 on CUDA, else 256). `graphs`: on CUDA, a step that reads no prompt is
    a captured graph.

    Example: Engine(model, tokenizer).complete([tokenizer.encode("<|bos|>The sky is")],
    max_tokens=8) == [[" blue ..."]]
    """

    def __init__(
        self,
        model: GPT,
        tokenizer,
        tool: Tool = evaluate,
        *,
        max_batch: int = 64,
        chunk: int | None = None,
        graphs: bool = True,
    ):
        self.model, self.tokenizer, self.tool = model, tokenizer, tool
        self.fast = InferenceModel(model)
        self.cache = KVCache(model.config, self.fast.device, self.fast.dtype)
        cuda = self.fast.device.type == "cuda"
        self.scheduler = Scheduler(max_batch, chunk or (2048 if cuda else 256))
        self.graphs = DecodeGraphs(self.fast, self.cache) if cuda and graphs else None
        self._answers: dict[int, RequestState] = {}
        self._ids = count()
        self._late: list[TokenOutput] = []  # events that the next step returns first
        self._tools = ToolRunner()
        self._answer_tokens = 0
        self._steps: deque[tuple[float, int]] = deque(maxlen=STEPS_REMEMBERED)  # time, tokens

    def refresh(self) -> None:
        """Copies the model's present weights into the engine's, in place. What is cached is
        forgotten; requests under way go on with the new weights."""
        self.fast.refresh()
        self.scheduler.forget()

    # ------------------------------------------------------------ requests and steps

    def add(self, request: Request) -> int:
        """Takes a request in; its id. Raises ConfigError for one that is impossible."""
        request.check(self.model.config.sequence_len, self.model.config.vocab_size)
        id = next(self._ids)
        answer = RequestState(id, request, self.tokenizer, self.model.config.sequence_len)
        self._answers[id] = answer
        self.scheduler.add(answer.sequence)
        return id

    def cancel(self, id: int) -> None:
        """Ends a request at once: its slot is free for the next step, which also returns its last
        event. An id that ended already is left alone."""
        if id in self._answers:
            self._late.append(self._answers[id].end("cancelled"))
            self._remove(id)

    @property
    def has_work(self) -> bool:
        """Whether a step would do or return anything."""
        return bool(self._answers or self._late)

    @torch.inference_mode()
    def step(self) -> list[TokenOutput]:
        """Computes one step; the events that came of it, in order for each request."""
        events, self._late = self._late, []
        try:
            events += self._collect_tool_results(patient=not events)
            scheduled = self.scheduler.schedule()
            if scheduled.chunks:
                with attention_backends(self.fast.device, fixed_shapes=False):
                    chosen, logits = self._compute(scheduled)
                sequences = [chunk.sequence for chunk in scheduled.chunks if chunk.last]
                for sequence, token, row in zip(sequences, chosen, logits, strict=True):
                    events.append(self._accept(self._answers[sequence.id], token, row))
        except BaseException:
            self.scheduler.forget()  # subtle: the step counts as done, and was not
            self._late = events
            raise
        self._count(events)
        return events

    def stats(self, seconds: float = 10.0) -> dict[str, float]:
        """How busy the engine is, and what it has done; tokens_per_second over the last
        `seconds`."""
        now = time.monotonic()
        recent = [tokens for when, tokens in self._steps if when > now - seconds]
        return {
            "running": len(self.scheduler.running),
            "waiting": len(self.scheduler.waiting),
            "slots": len(self.scheduler.slots),
            "tokens_per_second": sum(recent) / seconds,
            "read_tokens": self.scheduler.read_tokens,  # of prompts
            "reused_tokens": self.scheduler.reused_tokens,  # of prompts, found in the cache
            "answer_tokens": self._answer_tokens,
            "cache_bytes": self.cache.nbytes,
        }

    # ------------------------------------------------------------ many prompts at once

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
        answer) alone. At most `max_batch` rows run at once. Raises ConfigError for a prompt that is
        empty or leaves no room in the context.
        """
        for name, value in {"num_samples": num_samples, "max_batch": max_batch}.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; choose at least 1")
        params = SamplingParams(temperature, top_k, top_p, seed)
        stop = None if stop is None else tuple(stop)
        config = self.model.config
        for i, prompt in enumerate(prompts):
            request = Request(prompt, max_tokens, params)
            request.check(config.sequence_len, config.vocab_size, f"prompt {i}")
        max_batch = min(max_batch, max(1, len(prompts) * num_samples))  # slots that are needed
        requests = (
            (i, s, Request(prompt, max_tokens, params, s, stop))
            for i, prompt in enumerate(prompts)
            for s in range(num_samples)
        )
        # subtle: a generator would check nothing before its first token is asked for
        return self._loop(requests, max_batch, on_end)

    def complete(
        self, prompts: Sequence[Sequence[int]], *, num_samples: int = 1, **options
    ) -> list[list[str]]:
        """The completions of every prompt as text, special tokens named; options as in generate."""
        ids: list[list[list[int]]] = [[[] for _ in range(num_samples)] for _ in prompts]
        for i, s, token, _ in self.generate(prompts, num_samples=num_samples, **options):
            ids[i][s].append(token)
        return [[self.tokenizer.decode(one) for one in samples] for samples in ids]

    @torch.inference_mode()
    def next_logits(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """(B, V) float32: the logits after the last token of each prompt; prompts of any lengths in
        one pass. Leaves the cache alone."""
        spans = [TokenSpan(0, 0, len(prompt)) for prompt in prompts]
        step = AttentionBatch(spans, self.model.config, self.fast.device)
        return self._logits([id for prompt in prompts for id in prompt], step, step.last_rows())

    def _loop(self, requests, max_batch: int, on_end) -> Iterator[tuple[int, int, int, bool]]:
        """Keeps up to `max_batch` of the requests (prompt_index, sample_index, request) running."""
        self.scheduler.grow(max_batch)
        mine: dict[int, tuple[int, int]] = {}
        try:
            while True:
                while len(mine) < max_batch and (one := next(requests, None)) is not None:
                    mine[self.add(one[2])] = one[:2]
                if not mine:
                    return
                events = self.step()
                # those of others, who use the same engine in turns with this loop
                self._late += [event for event in events if event.id not in mine]
                for event in [event for event in events if event.id in mine]:
                    if event.token is not None:
                        yield *mine[event.id], event.token, event.forced
                    if event.finish is not None:
                        del mine[event.id]
                        on_end()
        finally:
            for id in mine:  # the caller wants no more, nor to be told
                self.cancel(id)
            self._late = [event for event in self._late if event.id not in mine]

    # ------------------------------------------------------------ inside a step

    def _compute(self, scheduled: ScheduledStep) -> tuple[list[int], torch.Tensor]:
        """The chosen token, and the logits (B, V), after each chunk that is its sequence's last."""
        chunks = scheduled.chunks
        self._reserve(scheduled)
        for copy in scheduled.copies:
            self.cache.copy(*copy)
        answers = [self._answers[chunk.sequence.id] for chunk in chunks if chunk.last]
        params = [answer.request.params for answer in answers]
        noise = uniform(
            [one.seed for one in params],
            [answer.request.sample_index for answer in answers],
            [answer.position for answer in answers],
        )
        plain = all(one.repetition_penalty == 1 for one in params)
        if self.graphs is not None and plain and all(c.last and c.single for c in chunks):
            return self.graphs.run(chunks, params, noise)
        spans = [TokenSpan(chunk.slot, chunk.start, len(chunk.tokens)) for chunk in chunks]
        step = AttentionBatch(spans, self.model.config, self.fast.device, self.cache)
        ids = [token for chunk in chunks for token in chunk.tokens]
        rows = [row for row, chunk in zip(step.last_rows(), chunks, strict=True) if chunk.last]
        logits = self._logits(ids, step, rows)
        if not answers:
            return [], logits
        histories = [answer.sequence.tokens for answer in answers]
        return sample(logits, params, noise, histories), logits

    def _reserve(self, scheduled: ScheduledStep) -> None:
        """Makes room in the cache; all of it at once where graphs hold its addresses."""
        if self.graphs is None:
            used = max(c.slot for c in scheduled.chunks) + 1
            used = max([used, *(copy.target + 1 for copy in scheduled.copies)])
            end = max(chunk.start + len(chunk.tokens) for chunk in scheduled.chunks)
            self.cache.reserve(used, end)
        elif self.cache.reserve(len(self.scheduler.slots), self.model.config.sequence_len + 1):
            self.graphs.clear()

    def _logits(self, ids: list[int], step: AttentionBatch, rows: list[int]) -> torch.Tensor:
        """(len(rows), V): the logits after those rows of a pass."""
        padding = [0] * (step.size - len(ids))
        features = self.fast.features(torch.tensor(ids + padding, device=step.device), step)
        if not rows:  # a prompt's end is still to come
            return features.new_empty(0, self.model.config.vocab_size, dtype=torch.float32)
        if rows != list(range(step.size)):
            padding = [0] * (padded_size(len(rows)) - len(rows))
            features = features[torch.tensor(rows + padding, device=step.device)]
        return self.fast.logits(features)[: len(rows)]

    def _accept(self, answer: RequestState, token: int, logits: torch.Tensor) -> TokenOutput:
        """The event of a token that the model chose; asks the tool if it completes a call."""
        wanted = answer.request.logprobs
        logprob, top = (None, ()) if wanted is None else logprobs(logits, token, wanted)
        event = answer.push(token, logprob=logprob, top_logprobs=top)
        self._append_or_finish(answer, event)
        if event.finish is None and answer.calls is not None:
            call = answer.calls.read(token)
            if call is not None:
                self._tools.ask(event.id, self.tool, call)
                answer.sequence.paused = True
        return event

    def _collect_tool_results(self, patient: bool) -> list[TokenOutput]:
        """The forced tokens of the tools that have answered; waits a moment for one, if `patient`,
        where no sequence could do anything else."""
        running, waiting = self.scheduler.running, self.scheduler.waiting
        full = len(running) == len(self.scheduler.slots)
        patient = patient and all(s.paused for s in running) and (full or not waiting)
        events = []
        for id, result in self._tools.results(patient):
            answer = self._answers[id]
            answer.sequence.paused = False
            for token in answer.calls.forced(result):
                events.append(answer.push(token, forced=True))
                self._append_or_finish(answer, events[-1])
                if events[-1].finish is not None:
                    break
        return events

    def _append_or_finish(self, answer: RequestState, event: TokenOutput) -> None:
        """Hands the token on to the scheduler, or lets the sequence leave."""
        if event.finish is None:
            self.scheduler.extend(event.id, [event.token])
        else:
            self._remove(event.id)

    def _remove(self, id: int) -> None:
        self.scheduler.remove(id)
        self._tools.drop(id)
        del self._answers[id]

    def _count(self, events: list[TokenOutput]) -> None:
        tokens = sum(event.token is not None for event in events)
        self._answer_tokens += tokens
        self._steps.append((time.monotonic(), tokens))
