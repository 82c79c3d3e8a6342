"""Batched generation with a key/value cache and tool calls; `GPT.generate` is its slow twin.

Rows join when there is room and leave when they end, so thousands of prompts stream through one
batch. What stands between <|python_start|> and <|python_end|> is run, and its result is forced in
between <|output_start|> and <|output_end|>.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from nanochat.calculator import evaluate
from nanochat.common import ConfigError
from nanochat.conversation import PART_MARKS, render_for_completion
from nanochat.gpt import GPT
from nanochat.kv_cache import KVCache
from nanochat.sampling import SamplingParams, sample, uniform

STOP_TOKENS = ("<|assistant_end|>", "<|bos|>")

Tool = Callable[[str], str]  # text of a call -> text of its result, or of what went wrong


class ToolCalls:
    """The state machine of one sample's tool calls: reads each token, and holds the ids that must
    come next.

    Example: after <|python_start|> 1+1 <|python_end|>, `forced` is <|output_start|> 2
    <|output_end|>.
    """

    def __init__(self, tokenizer, tool: Tool):
        self.tokenizer, self.tool = tokenizer, tool
        self.forced: deque[int] = deque()
        self._call: list[int] | None = None  # ids since <|python_start|>; None outside a call

    def read(self, token: int) -> None:
        """Takes note of a token that the model chose."""
        special = self.tokenizer.special
        if token == special("<|python_start|>"):
            self._call = []
        elif token == special("<|python_end|>") and self._call is not None:
            result = self.tool(self.tokenizer.decode(self._call))
            self._call = None
            self.forced.append(special("<|output_start|>"))
            self.forced.extend(self.tokenizer.encode_ordinary(result))
            self.forced.append(special("<|output_end|>"))
        elif self._call is not None:
            self._call.append(token)


class AnswerReader:
    """Reads the ids of an answer as they come, into the parts of a message.

    push(token) returns the text that the token completes, whole characters only; `kind` is then
    the type of part that the next text belongs to: "text", "python" or "python_output".
    """

    def __init__(self, tokenizer):
        self.kind, self.parts = "text", []
        self._decoder = tokenizer.stream_decoder()
        marks = {kind: marks for kind, marks in PART_MARKS.items() if marks[0]}
        self._starts = {tokenizer.special(start): kind for kind, (start, _, _) in marks.items()}
        self._ends = {tokenizer.special(end) for _, end, _ in marks.values()}

    def push(self, token: int) -> str:
        if token not in self._starts and token not in self._ends:
            return self._add(self._decoder.push(token))
        text = self.flush()
        self.kind = self._starts.get(token, "text")
        return text

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, else
        nothing."""
        return self._add(self._decoder.flush())

    def _add(self, text: str) -> str:
        if text and (not self.parts or self.parts[-1]["type"] != self.kind):
            self.parts.append({"type": self.kind, "text": ""})
        if text:
            self.parts[-1]["text"] += text
        return text


@dataclass
class Row:
    """One sample in the making."""

    prompt_index: int
    sample_index: int
    room: int  # tokens that may still come
    calls: ToolCalls
    position: int = 0  # tokens that came


class Engine:
    """Generates from a model; holds a copy of its weights in compute dtype, which `refresh` brings
    up to date.

    Where the compute dtype is float32 the weights are the model's own. `tool` gets the text of a
    tool call and returns the text of its result.

    Example: Engine(model, tokenizer).complete([tokenizer.encode("<|bos|>The sky is")],
    max_tokens=8) == [[" blue ..."]]
    """

    def __init__(self, model: GPT, tokenizer, tool: Tool = evaluate):
        self.master, self.tokenizer, self.tool = model, tokenizer, tool
        self.model = model
        if model.compute_dtype != torch.float32:
            with torch.device("meta"):
                twin = GPT(model.config).to(model.compute_dtype)
            self.model = twin.to_empty(device=model.device).requires_grad_(False)
            self.model.compute_dtype = model.compute_dtype
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copies the model's present weights into the engine's, in place."""
        if self.model is not self.master:
            for mine, master in zip(self.model.parameters(), self.master.parameters(), strict=True):
                mine.copy_(master)

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
        params = SamplingParams(temperature, top_k, top_p, seed)
        context = self.model.config.sequence_len
        for i, prompt in enumerate(prompts):
            if not 0 < len(prompt) < context:
                raise ConfigError(
                    f"prompt {i} has {len(prompt):,} tokens; a context of {context:,} takes "
                    f"1 to {context - 1:,}, to leave room for an answer. Cut its oldest part"
                )
        counts = {"max_tokens": max_tokens, "num_samples": num_samples, "max_batch": max_batch}
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; choose at least 1")
        stops = {self.tokenizer.special(name) for name in STOP_TOKENS} if stop is None else {*stop}
        waiting = deque(
            (i, range(first, min(first + max_batch, num_samples)))
            for i in range(len(prompts))
            for first in range(0, num_samples, max_batch)
        )
        # subtle: a generator would check nothing before its first token is asked for
        return self._loop(prompts, waiting, max_tokens, params, stops, max_batch, on_end)

    def complete(
        self, prompts: Sequence[Sequence[int]], *, num_samples: int = 1, **options
    ) -> list[list[str]]:
        """The completions of every prompt as text, special tokens named; options as in generate."""
        ids: list[list[list[int]]] = [[[] for _ in range(num_samples)] for _ in prompts]
        for i, s, token, _ in self.generate(prompts, num_samples=num_samples, **options):
            ids[i][s].append(token)
        return [[self.tokenizer.decode(one) for one in samples] for samples in ids]

    @torch.inference_mode()
    def next_logits(
        self, prompts: Sequence[Sequence[int]], cache: KVCache | None = None
    ) -> torch.Tensor:
        """(B, V) float32: the logits after the last token of each prompt; prompts of any lengths in
        one pass.

        A new `cache` of len(prompts) rows is filled with the prompts on the way.
        """
        lengths = [len(prompt) for prompt in prompts]
        padded = torch.zeros(len(prompts), max(lengths), dtype=torch.int64)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        features = self.model.features(padded.to(self.model.device), cache)  # (B, T, D)
        if cache is not None:
            cache.set_lengths(lengths)
        last = torch.tensor(lengths, device=features.device) - 1
        return self.model.logits(features[torch.arange(len(prompts), device=features.device), last])

    @torch.inference_mode()
    def _loop(self, prompts, waiting, max_tokens, params, stops, max_batch, on_end):
        """Reads joining prompts, draws a token for every row, lets rows end, computes the next
        logits."""
        model = self.model
        rows: list[Row] = []
        cache = KVCache(model.config, 0, model.device, model.compute_dtype)
        logits = torch.empty(0, model.config.vocab_size, device=model.device)
        while waiting or rows:
            # subtle: some room is let grow before newcomers are read; a reading costs a step
            if not rows or max_batch - len(rows) >= max(1, max_batch // 8):
                joining = take_fitting(waiting, max_batch - len(rows))
                if joining:
                    rows += self._new_rows(prompts, joining, max_tokens)
                    logits = torch.cat([logits, self._join(prompts, joining, cache)])
            noise = uniform(params.seed, [r.sample_index for r in rows], [r.position for r in rows])
            tokens = sample(logits, params, noise).tolist()
            keep = []
            for i, row in enumerate(rows):
                forced = bool(row.calls.forced)
                if forced:
                    tokens[i] = row.calls.forced.popleft()
                elif tokens[i] in stops:
                    on_end()
                    continue
                else:
                    row.calls.read(tokens[i])
                yield row.prompt_index, row.sample_index, tokens[i], forced
                row.position += 1
                if row.position == row.room:
                    on_end()
                else:
                    keep.append(i)
            if len(keep) < len(rows):
                keep = fill_holes(keep)
                rows, tokens = [rows[i] for i in keep], [tokens[i] for i in keep]
                cache.select(keep)
            logits = logits[:0]
            if rows:
                inputs = torch.tensor(tokens, device=model.device)[:, None]  # (B, 1)
                logits = model.logits(model.features(inputs, cache)[:, -1])

    def _new_rows(self, prompts, joining, max_tokens: int) -> list[Row]:
        context = self.model.config.sequence_len
        return [
            Row(
                i,
                s,
                min(max_tokens, context - len(prompts[i])),
                ToolCalls(self.tokenizer, self.tool),
            )
            for i, samples in joining
            for s in samples
        ]

    def _join(self, prompts, joining, cache: KVCache) -> torch.Tensor:
        """Reads each joining prompt once, adds a row per sample to `cache`; returns the rows'
        logits (B, V)."""
        new = KVCache(self.model.config, len(joining), cache.device, cache.dtype)
        logits = self.next_logits([prompts[i] for i, _ in joining], new)
        copies = [j for j, (_, samples) in enumerate(joining) for _ in samples]
        new.select(copies)
        cache.append(new)
        return logits[torch.tensor(copies, device=logits.device)]


def take_fitting(waiting: deque, room: int) -> list[tuple[int, range]]:
    """Removes from the front of `waiting`, which holds (prompt_index, samples), as many as fit into
    `room` rows."""
    taken = []
    while waiting and len(waiting[0][1]) <= room:
        room -= len(waiting[0][1])
        taken.append(waiting.popleft())
    return taken


def fill_holes(keep: Sequence[int]) -> list[int]:
    """The kept row numbers, ordered so that as few rows as possible move: the last ones go into the
    holes.

    Example: fill_holes([0, 2, 3]) == [0, 3, 2]: row 2 stays, row 3 moves to place 1.
    """
    stays = {i for i in keep if i < len(keep)}
    moves = [i for i in keep if i >= len(keep)]
    return [i if i in stays else moves.pop() for i in range(len(keep))]


def fit_context(messages: list[dict], engine: Engine) -> tuple[list[int], int]:
    """(the ids after which the assistant answers, messages left out): the oldest turns go until a
    quarter of the context is free. Raises ConfigError if the last question alone is too long."""
    room = engine.model.config.sequence_len * 3 // 4
    for first in range(0, len(messages), 2):
        ids = render_for_completion({"messages": messages[first:]}, engine.tokenizer)
        if len(ids) <= room:
            return ids, first
    raise ConfigError(f"the question has {len(ids):,} tokens; at most {room:,} fit. Shorten it")
