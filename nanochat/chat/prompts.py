"""What clients send -> conversations, and the engine's Requests.

conversation.py encodes all of their text, so none of it becomes a special id.
"""

from nanochat.chat.limits import Limits
from nanochat.chat.schema import ChatRequest, CompletionRequest, Message, Sampling
from nanochat.common import ConfigError
from nanochat.conversation import fit_turns, validate
from nanochat.engine import Request
from nanochat.tokenizer import Tokenizer

ROLES = {"developer": "system", "tool": "assistant", "function": "assistant"}


def conversation_of(messages: list[Message]) -> list[dict]:
    """The messages in conversation.py's form, where user and assistant take turns.

    Neighbours of one role become one message. A later system text begins what the user says next,
    or is all of it; where the assistant speaks first, the user has said nothing. A tool's result
    follows the call with its id, or else the last. Raises ConfigError or DataError.
    """
    merged: list[dict] = []
    for number, message in enumerate(messages, 1):
        role, parts = ROLES.get(message.role, message.role), parts_of(message)
        if merged and merged[-1]["role"] != "system":
            role = "user" if role == "system" else role
        elif message.role == "assistant":
            merged.append({"role": "user", "content": []})
        if not merged or merged[-1]["role"] != role:
            merged.append({"role": role, "content": []})
        content = merged[-1]["content"]
        if message.role in ("tool", "function"):
            id = message.tool_call_id or ""
            calls = [i for i, part in enumerate(content) if part["type"] == "python"]
            places = [i for i in calls if content[i].get("id") == id]
            places = places or [i for i in calls if i == len(content) - 1]
            if not places:
                raise ConfigError(
                    f"message {number} is the result of a tool call {id!r} that no message before "
                    f"it made. Send the message with its tool_calls first"
                )
            content.insert(places[-1] + 1, {"type": "python_output", "text": text_of(parts)})
            continue
        if content and parts and content[-1]["type"] == parts[0]["type"] == "text":
            content.append({"type": "text", "text": "\n\n"})
        content += parts
    if len(merged) == 1:
        merged[0]["role"] = "user"
    validate({"messages": merged}, "messages")
    return merged


def parts_of(message: Message) -> list[dict]:
    """The parts of one message; those of calls have an `id`."""
    content = message.content or []
    is_text = isinstance(content, str)
    parts = [{"type": "text", "text": content}] if is_text else [p.model_dump() for p in content]
    if message.role != "assistant":
        return parts
    if message.nanochat and message.nanochat.parts:
        ordered = [part.model_dump() for part in message.nanochat.parts]
        if text_of(ordered) == text_of(parts):
            return ordered
    calls = [(call.function.arguments, call.id) for call in message.tool_calls or []]
    if message.function_call:  # as a call was sent before there were tool_calls
        calls.append((message.function_call.arguments, ""))
    return parts + [{"type": "python", "text": code, "id": id} for code, id in calls]


def text_of(parts: list[dict]) -> str:
    return "".join(part["text"] for part in parts if part["type"] == "text")


def chat_requests(
    body: ChatRequest, tokenizer: Tokenizer, context: int, limits: Limits
) -> tuple[list[Request], int]:
    """(one engine Request per answer, turns that were left out)."""
    if len(body.messages) > limits.messages:
        raise ConfigError(f"{len(body.messages)} messages were sent, at most {limits.messages}")
    conversation, forget = conversation_of(body.messages), body.truncation == "auto"
    ids, forgotten = fit_turns(conversation, tokenizer, context, forget)
    newest = body.max_completion_tokens
    max_tokens = body.max_tokens if newest is None else newest
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    tools = body.tool_choice != "none"
    return engine_requests(body, [ids], max_tokens, logprobs, tools, context, limits), forgotten


def completion_requests(
    body: CompletionRequest, tokenizer: Tokenizer, context: int, limits: Limits
) -> list[Request]:
    """One engine Request per answer: n of the first prompt, n of the second, ...; a prompt is
    <|bos|> and text or ids, which may name no other special token."""
    one = isinstance(body.prompt, str) or isinstance(body.prompt[0], int)
    prompts, specials = [], set(tokenizer.special_ids.values())
    for prompt in [body.prompt] if one else body.prompt:
        ids = tokenizer.encode_ordinary(prompt) if isinstance(prompt, str) else prompt
        ids = ids[1:] if ids[:1] == [tokenizer.bos] else ids
        if found := specials.intersection(ids):
            raise ConfigError(f"prompt holds special tokens, {found}; expected ordinary ids")
        prompts.append([tokenizer.bos, *ids])
    max_tokens = 16 if body.max_tokens is None else body.max_tokens  # OpenAI's default
    return engine_requests(body, prompts, max_tokens, body.logprobs, False, context, limits)


def engine_requests(
    body: Sampling, prompts: list[list[int]], max_tokens: int | None, logprobs: int | None,
    tools: bool, context: int, limits: Limits,
) -> list[Request]:  # fmt: skip
    """n samples of every prompt."""
    n = body.n or 1
    if n * len(prompts) > limits.samples:
        raise ConfigError(f"{n * len(prompts)} answers were asked for, at most {limits.samples}")
    longest = limits.max_tokens if max_tokens in (None, -1) else min(max_tokens, limits.max_tokens)
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    params = body.params(limits)
    return [
        Request(
            prompt=ids,
            max_tokens=min(longest, context - len(ids)),
            params=params,
            sample_index=sample,
            stop_strings=tuple(filter(None, stop)),
            logprobs=logprobs,
            tools=tools,
        )
        for ids in prompts
        for sample in range(n)
    ]
