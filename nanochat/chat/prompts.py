"""What clients' requests mean: messages -> conversations, requests -> the engine's Requests.

No text of a client's becomes a special id: conversation.py encodes it all.
"""

from nanochat.chat.schema import ChatRequest, CompletionRequest, Limits, Message, Sampling
from nanochat.common import ConfigError
from nanochat.conversation import fit_turns, validate
from nanochat.engine import Request
from nanochat.tokenizer import Tokenizer

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
