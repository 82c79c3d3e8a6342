"""What clients may send: OpenAI's requests, and some extensions.

Unknown fields are ignored; those that would change the answer and cannot be obeyed are refused.
"""

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from nanochat.chat.limits import Limits
from nanochat.inference.sampling import SamplingParams

StopString = Annotated[str, Field(min_length=1, max_length=200)]


class Part(BaseModel):
    """A part of a message's content; in an assistant's message also a tool call (`python`) and its
    result (`python_output`)."""

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
    """One message. `nanochat.parts`, which answers carry, keeps the order of an assistant's text
    and tool calls; it is ignored if its text is not the content's."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    nanochat: Extension | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class Sampling(BaseModel):
    """The fields that chat and plain completions share."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1, le=2**31, description="At most the server's limit.")
    n: int | None = Field(None, ge=1, le=128, description="Number of answers.")
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Default: random.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: FiniteFloat | None = Field(None, ge=0, le=2, description="0: the likeliest token.")
    top_p: FiniteFloat | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31, description="Extension; 0 or -1: all tokens.")
    min_p: FiniteFloat | None = Field(None, ge=0, le=1, description="Extension.")
    repetition_penalty: FiniteFloat | None = Field(None, gt=0, le=10, description="Extension.")

    @model_validator(mode="after")
    def check_supported(self):
        extra: dict[str, Any] = self.model_extra or {}
        for name in ("frequency_penalty", "presence_penalty", "logit_bias", "suffix", "echo"):
            if extra.get(name):
                hint = "; repetition_penalty is" if name.endswith("penalty") else ""
                raise ValueError(f"{name} is not supported{hint}")
        if extra.get("best_of") not in (None, 1, self.n or 1):
            raise ValueError("best_of is not supported; n is")
        form = extra.get("response_format")
        if isinstance(form, dict) and form.get("type", "text") != "text":
            raise ValueError("response_format is not supported, except type text")
        return self

    def params(self, limits: Limits) -> SamplingParams:
        """How tokens are sampled; the server's defaults fill what the client left out."""
        top_k = limits.top_k if self.top_k is None else self.top_k
        return SamplingParams(
            temperature=limits.temperature if self.temperature is None else self.temperature,
            top_k=top_k if top_k and top_k > 0 else None,
            top_p=self.top_p,
            seed=secrets.randbits(63) if self.seed is None else self.seed,
            min_p=self.min_p or None,
            repetition_penalty=self.repetition_penalty or 1.0,
        )


class ChatRequest(Sampling):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tool_choice: Any = Field(None, description='"none" keeps the model from using its tool.')
    truncation: Literal["auto", "disabled"] = Field(
        "auto",
        description="Extension. auto: leave out the oldest turns of a conversation that is longer "
        "than the context, and count them in `nanochat.forgotten_turns`. disabled: refuse it.",
    )


class CompletionRequest(Sampling):
    """The body of `POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(min_length=1)
    logprobs: int | None = Field(None, ge=0, le=20)


class Problem(BaseModel):
    message: str
    type: str
    code: str | None


class ErrorBody(BaseModel):
    """What comes instead of an answer."""

    error: Problem
