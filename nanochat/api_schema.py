"""What clients may send, and what it means: OpenAI's requests -> conversations and engine Requests.

Fields that are not named here are ignored; those that would change the answer and cannot be
obeyed are refused. No text of a client's becomes a special id: conversation.py encodes it all.
"""

import secrets
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from nanochat.common import ConfigError
from nanochat.conversation import validate
from nanochat.engine import Request
from nanochat.sampling import SamplingParams
from nanochat.tokenizer import Tokenizer
from nanochat.turns import fit_turns

StopString = Annotated[str, Field(min_length=1, max_length=200)]


@dataclass(frozen=True)
class Limits:
    """What keeps a server up whatever it is sent."""

    body_bytes: int = 1 << 20
    messages: int = 512
    samples: int = 16  # answers to one call
    max_tokens: int = 1024  # of one answer
    in_flight: int = 256  # answers that may run and wait
    seconds: float = 300.0  # for one call, waiting included
    temperature: float = 0.6  # for calls that name none
    top_k: int | None = 50


class Part(BaseModel):
    """A piece of a message's content. Of an assistant's message, a tool call (`python`) and its
    result (`python_output`) are pieces too."""

    type: Literal["text", "python", "python_output"]
    text: str


class Function(BaseModel):
    name: str = ""
    arguments: str = ""


class ToolCall(BaseModel):
    id: str = ""
    function: Function = Function()


class Extension(BaseModel):
    parts: list[Part] | None = None


class Message(BaseModel):
    """One message. `nanochat.parts`, as answers carry it, says in which order an assistant's text
    and tool calls came; it counts where its text is the content's."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    nanochat: Extension | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class Sampling(BaseModel):
    """What chat and plain completions have in common."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1, le=2**31, description="At most the server's limit.")
    n: int | None = Field(None, ge=1, le=128, description="Answers to make.")
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="None: another every time.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: FiniteFloat | None = Field(None, ge=0, le=2, description="0: the likeliest token.")
    top_p: FiniteFloat | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31, description="Extension; 0 or -1: all tokens.")
    min_p: FiniteFloat | None = Field(None, ge=0, le=1, description="Extension.")
    repetition_penalty: FiniteFloat | None = Field(None, gt=0, le=10, description="Extension.")

    @model_validator(mode="after")
    def refuse_what_cannot_be_obeyed(self):
        """Raises ValueError for a field that asks for what is not there."""
        asked: dict[str, Any] = self.model_extra or {}
        for name in ("frequency_penalty", "presence_penalty", "logit_bias", "suffix", "echo"):
            if asked.get(name):
                hint = "; repetition_penalty is" if name.endswith("penalty") else ""
                raise ValueError(f"{name} is not supported{hint}")
        if asked.get("best_of") not in (None, 1, self.n or 1):
            raise ValueError("best_of is not supported; n is")
        wanted = asked.get("response_format")
        if isinstance(wanted, dict) and wanted.get("type", "text") != "text":
            raise ValueError("response_format is not supported, but for type text")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def params(self, limits: Limits) -> SamplingParams:
        """How tokens are drawn; what the client left open is the server's choice."""
        top_k = limits.top_k if self.top_k is None else self.top_k
        return SamplingParams(
            temperature=limits.temperature if self.temperature is None else self.temperature,
            top_k=top_k if top_k and top_k > 0 else None,
            top_p=self.top_p,
            seed=secrets.randbits(63) if self.seed is None else self.seed,
            min_p=self.min_p or None,
            repetition_penalty=self.repetition_penalty or 1.0,
        )


class Problem(BaseModel):
    message: str
    type: str
    code: str | None


class ErrorBody(BaseModel):
    """What comes instead of an answer."""

    error: Problem


class ChatRequest(Sampling):
    """Of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tool_choice: Any = Field(None, description='"none" keeps the model from using its tool.')
    truncation: Literal["auto", "disabled"] = Field(
        "auto",
        description="Extension: auto leaves out the oldest turns of what is longer than the "
        "context, and says so in `nanochat.forgotten_turns`; disabled refuses it.",
    )


class CompletionRequest(Sampling):
    """Of `POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(min_length=1)
    logprobs: int | None = Field(None, ge=0, le=20)


# ---------------------------------------------------------------- messages -> conversation

ROLES = {"developer": "system", "tool": "assistant"}


def conversation_of(messages: list[Message]) -> list[dict]:
    """The messages of a valid conversation, as conversation.py knows them.

    Neighbours of one role become one message; a tool's result stands after the call it answers, in
    the assistant's message. Raises DataError or ConfigError for what makes no conversation.
    """
    merged: list[dict] = []
    for i, message in enumerate(messages):
        role = ROLES.get(message.role, message.role)
        same = merged and merged[-1]["role"] == role
        if message.role == "tool":
            if not same:
                raise ConfigError(
                    f"message {i + 1} is a tool's result, expected the assistant's call before it"
                )
            add_result(merged[-1]["content"], message, i)
            continue
        parts = parts_of(message)
        if same:
            old = merged[-1]["content"]
            if old and parts and old[-1]["type"] == parts[0]["type"] == "text":
                old.append({"type": "text", "text": "\n\n"})
            old += parts
        else:
            merged.append({"role": role, "content": parts})
    for message in merged:
        for part in message["content"]:
            part.pop("id", None)
    validate({"messages": merged}, "messages")
    return merged


def parts_of(message: Message) -> list[dict]:
    """The parts of one message; a call's carries its `id`, for the result to find it."""
    if isinstance(message.content, list):
        parts = [part.model_dump() for part in message.content]
    else:
        parts = [{"type": "text", "text": message.content}] if message.content else []
    if message.role != "assistant":
        return parts
    if message.nanochat and message.nanochat.parts:
        ordered = [part.model_dump() for part in message.nanochat.parts]
        if text_of(ordered) == text_of(parts):
            return ordered
    calls = [call for call in message.tool_calls or []]
    return parts + [{"type": "python", "text": c.function.arguments, "id": c.id} for c in calls]


def text_of(parts: list[dict]) -> str:
    return "".join(part["text"] for part in parts if part["type"] == "text")


def add_result(parts: list[dict], message: Message, number: int) -> None:
    """Puts a tool's result after the call that has its id, or else after a call that ends
    `parts`."""
    texts = [part["text"] for part in parts_of(message)]
    result = {"type": "python_output", "text": "".join(texts)}
    wanted = message.tool_call_id or ""
    places = [i for i, p in enumerate(parts) if p["type"] == "python" and p.get("id") == wanted]
    if not places and parts and parts[-1]["type"] == "python":
        places = [len(parts) - 1]
    if not places:
        raise ConfigError(
            f"message {number + 1} is the result of a tool call {wanted!r} that no message before "
            f"it made. Send the assistant's message with its tool_calls first"
        )
    parts.insert(places[-1] + 1, result)


# ---------------------------------------------------------------- requests -> engine


def check_samples(number: int, limits: Limits) -> None:
    """Raises ConfigError for more answers to one call than the server gives."""
    if number > limits.samples:
        raise ConfigError(f"{number} answers were asked for in one call, at most {limits.samples}")


def chat_requests(
    asked: ChatRequest, tokenizer: Tokenizer, context: int, limits: Limits
) -> tuple[list[Request], int]:
    """(one engine Request an answer, turns of the conversation that were left out)."""
    check_samples(asked.n or 1, limits)
    if len(asked.messages) > limits.messages:
        raise ConfigError(f"{len(asked.messages)} messages were sent, at most {limits.messages}")
    forget = asked.truncation == "auto"
    ids, forgotten = fit_turns(conversation_of(asked.messages), tokenizer, context, forget)
    most = asked.max_completion_tokens or asked.max_tokens or limits.max_tokens
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    tools = asked.tool_choice != "none"
    return engine_requests(asked, ids, asked.n or 1, most, logprobs, tools, context, limits), (
        forgotten
    )


def completion_requests(
    asked: CompletionRequest, tokenizer: Tokenizer, context: int, limits: Limits
) -> list[Request]:
    """One engine Request an answer: n of the first prompt, n of the second, ..."""
    prompts = asked.prompt
    if isinstance(prompts, str) or isinstance(prompts[0], int):
        prompts = [prompts]
    check_samples((asked.n or 1) * len(prompts), limits)
    requests = []
    for prompt in prompts:
        ids = plain_prompt(prompt, tokenizer)
        if len(ids) >= context:
            raise ConfigError(
                f"the prompt has {len(ids):,} tokens; the context of {context:,} takes at most "
                f"{context - 1:,}, to leave room for an answer. Shorten it"
            )
        n, most = asked.n or 1, asked.max_tokens or 16
        requests += engine_requests(asked, ids, n, most, asked.logprobs, False, context, limits)
    return requests


def plain_prompt(prompt: str | list[int], tokenizer: Tokenizer) -> list[int]:
    """<|bos|> and the text or the ids of a prompt, which may name no other special token."""
    if isinstance(prompt, str):
        return [tokenizer.bos, *tokenizer.encode_ordinary(prompt)]
    ids = prompt[1:] if prompt[:1] == [tokenizer.bos] else prompt
    special = set(tokenizer.special_ids.values())
    for token in ids:
        if not 0 <= token < tokenizer.vocab_size or token in special:
            raise ConfigError(
                f"prompt holds the id {token}; expected ids of ordinary text, 0 to "
                f"{tokenizer.vocab_size - 1} without the special tokens {sorted(special)}"
            )
    return [tokenizer.bos, *ids]


def engine_requests(
    asked: Sampling, ids: list[int], n: int, most: int, logprobs: int | None, tools: bool,
    context: int, limits: Limits,
) -> list[Request]:  # fmt: skip
    """n samples of one prompt."""
    params = asked.params(limits)
    return [
        Request(
            prompt=ids,
            max_tokens=min(most, limits.max_tokens, context - len(ids)),
            params=params,
            sample_index=sample,
            stop_strings=asked.stops,
            logprobs=logprobs,
            tools=tools,
        )
        for sample in range(n)
    ]
