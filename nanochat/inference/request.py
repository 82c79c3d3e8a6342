"""What the engine is asked, and what it answers."""

from dataclasses import dataclass, replace

import torch

from nanochat.common import ConfigError
from nanochat.conversation import stop_ids
from nanochat.inference.answer_reader import AnswerReader
from nanochat.inference.sampling import SamplingParams, logprobs
from nanochat.inference.scheduler import Sequence

MOST_LOGPROBS = 100


@dataclass(frozen=True)
class Request:
    """What to continue, and how. stop: ids that end the answer, which they are no part of (default:
    <|assistant_end|>, <|bos|>). logprobs: alternatives to name at each token."""

    prompt: list[int]
    max_tokens: int
    params: SamplingParams = SamplingParams()
    sample_index: int = 0  # samples of one prompt and seed differ by this
    stop: tuple[int, ...] | None = None
    stop_strings: tuple[str, ...] = ()
    logprobs: int | None = None
    tools: bool = True

    def check(self, config, name: str = "the prompt") -> None:
        """Raises ConfigError unless a model of this GPTConfig can answer."""
        prompt, context, vocab_size = self.prompt, config.sequence_len, config.vocab_size
        if not 0 < len(prompt) < context:
            raise ConfigError(
                f"{name} has {len(prompt):,} tokens; a context of {context:,} takes "
                f"1 to {context - 1:,}, to leave room for an answer. Cut its oldest part"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ConfigError(
                f"{name} has ids from {min(prompt)} to {max(prompt)}; the model knows 0 to "
                f"{vocab_size - 1}. Encode it with the model's own tokenizer"
            )
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}; choose at least 1")
        if not 0 <= (self.logprobs or 0) <= MOST_LOGPROBS:
            raise ConfigError(f"logprobs is {self.logprobs}; choose 0 to {MOST_LOGPROBS}, or None")
        if "" in self.stop_strings:
            raise ConfigError("a stop string is empty; leave it out")


@dataclass(frozen=True)
class TokenOutput:
    """One token of request `id`; the last one has `finish`, and its token may be None.

    forced: an id of a tool's result. text: the whole characters that the token releases, of a part
    of type `kind`; marks have none. logprob: in the model's own distribution, before temperature,
    penalty and cuts; None unless asked for, and for forced ids. top_logprobs: (id, logprob), the
    likeliest first.
    """

    id: int
    token: int | None
    forced: bool = False
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    text: str = ""
    kind: str = "text"  # or "python", "python_output"
    finish: str | None = None  # "stop", "length" or "cancelled"
    stop_token: int | None = None  # the id that ended the answer


class RequestState:
    """An answer in the making: turns its tokens into outputs, and knows when to stop."""

    def __init__(self, id: int, request: Request, tokenizer, context: int):
        self.request, self.sequence = request, Sequence(id, list(request.prompt))
        self.reader = AnswerReader(tokenizer, request.stop_strings)
        self.position = 0  # tokens that came
        self._room = min(request.max_tokens, context - len(request.prompt))
        self._stops = frozenset(stop_ids(tokenizer) if request.stop is None else request.stop)

    def push(self, token: int, logits: torch.Tensor | None = None) -> TokenOutput:
        """The output for the next token, drawn from logits (V,), or forced where there are none; it
        has `finish` if the answer ends here."""
        forced, logprob, top_logprobs = logits is None, None, ()
        if self.request.logprobs is not None and not forced:
            logprob, top_logprobs = logprobs(logits, token, self.request.logprobs)
        if token in self._stops and not forced:
            return replace(self.end("stop"), stop_token=token, logprob=logprob)
        kind, text = self.reader.kind, self.reader.push(token)
        self.position += 1
        finish = None
        if self.reader.stopped:
            finish = "stop"
        elif self.position == self._room:
            finish, text = "length", text + self.reader.flush()
        id = self.sequence.id
        return TokenOutput(id, token, forced, logprob, top_logprobs, text, kind, finish)

    def end(self, finish: str) -> TokenOutput:
        """The last output of an answer that ends without a token: the text held back."""
        kind, text = self.reader.kind, self.reader.flush()
        return TokenOutput(self.sequence.id, None, text=text, kind=kind, finish=finish)
