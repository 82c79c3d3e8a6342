"""What clients may send: OpenAI's requests, and some extensions.

Unknown fields are ignored; what would change the answer and cannot be obeyed is refused.
"""

import secrets
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from nanochat.chat.limits import Limits
from nanochat.inference.sampling import SamplingParams

MaxTokens = Annotated[int, Field(ge=-1, le=2**31)] | None
StopString = Annotated[str, Field(max_length=200)]
# What would change the answer and cannot be obeyed, unless it is null, 0, false, empty or without
# effect.
UNSUPPORTED = """
    audio bad_words best_of dry_multiplier echo frequency_penalty function_call grammar
    guided_choice guided_grammar guided_json guided_regex ignore_eos json_schema logit_bias
    min_tokens mirostat modalities presence_penalty prompt_logprobs response_format stop_token_ids
    structured_outputs suffix typical_p use_beam_search web_search_options xtc_probability
"""
NO_EFFECT = {
    "best_of": [1],
    "function_call": ["auto", "none"],
    "modalities": [["text"]],
    "response_format": [{"type": "text"}],
    "typical_p": [1],
}


class Part(BaseModel):
    """Text; in an assistant's message also a tool call (`python`) and its result."""

    type: Literal["text", "python", "python_output"]
    text: str


class Function(BaseModel):
    arguments: str = ""


class ToolCall(BaseModel):
    id: str = ""
    function: Function = Function()


class Extension(BaseModel):
    parts: list[Part] | None = None


class Message(BaseModel):
    """One message; `nanochat.parts` counts where its text is the content's."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None
    tool_call_id: str | None = None
    nanochat: Extension | None = None


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class Sampling(BaseModel):
    """The fields that chat and plain completions share."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    max_tokens: MaxTokens = Field(
        None, validation_alias=AliasChoices("max_tokens", "n_predict"),
        description="At most the server's limit, which -1 asks for.",
    )  # fmt: skip
    n: int | None = Field(None, ge=1, le=128)
    stop: StopString | Annotated[list[StopString | None], Field(max_length=64)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Default, and -1: random.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: FiniteFloat | None = Field(None, ge=0, le=2, description="0: the likeliest token.")
    top_p: FiniteFloat | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31, description="Extension; 0 or -1: all tokens.")
    min_p: FiniteFloat | None = Field(None, ge=0, le=1, description="Extension.")
    repetition_penalty: FiniteFloat | None = Field(
        None, validation_alias=AliasChoices("repetition_penalty", "repeat_penalty"),
        gt=0, le=10, description="Extension.",
    )  # fmt: skip

    @model_validator(mode="after")
    def check_supported(self):
        for name, value in (self.model_extra or {}).items():
            if value and name in UNSUPPORTED.split() and value not in NO_EFFECT.get(name, []):
                hint = "; repetition_penalty is" if name.endswith("penalty") else ""
                raise ValueError(f"{name} is not supported{hint}")
        return self

    def params(self, limits: Limits) -> SamplingParams:
        """How tokens are sampled; the defaults fill what the client left out."""
        temperature = limits.temperature if self.temperature is None else self.temperature
        top_k = limits.top_k if self.top_k is None else self.top_k
        return SamplingParams(
            temperature=0 if self.top_p == 0 else temperature,
            top_k=top_k if top_k and top_k > 0 else None,
            top_p=self.top_p or None,
            seed=secrets.randbits(63) if self.seed in (None, -1) else self.seed,
            min_p=self.min_p or None,
            repetition_penalty=self.repetition_penalty or 1.0,
        )


class ChatRequest(Sampling):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: MaxTokens = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tool_choice: Literal["auto", "none"] | None = Field(
        None, description="none: the model's own tool is not run."
    )
    truncation: Literal["auto", "disabled"] = Field(
        "auto",
        description="Extension. auto: of what is longer than the context the oldest turns go, "
        "counted in `nanochat.forgotten_turns`.",
    )


class CompletionRequest(Sampling):
    """The body of `POST /v1/completions`."""

    prompt: str | Annotated[list[str] | list[int] | list[list[int]], Field(min_length=1)]
    logprobs: int | None = Field(None, ge=0, le=20)
