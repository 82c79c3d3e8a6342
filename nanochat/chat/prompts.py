"""What clients send -> conversations, and the engine's Requests.

conversation.py encodes all of their text, so none of it becomes a special id.
"""

from nanochat.chat.limits import Limits
from nanochat.chat.schema import ChatRequest, CompletionRequest, Message, Sampling
from nanochat.common import ConfigError
from nanochat.conversation import fit_turns, validate
from nanochat.engine import Request
from nanochat.tokenizer import Tokenizer

ROLES = {"developer": "system", "tool": "assistant"}


def conversation_of(messages: list[Message]) -> list[dict]:
    """The messages of a valid conversation in conversation.py's form.

    Neighbours of one role become one message; a tool's result follows the call it answers, in the
    assistant's message. Raises DataError or ConfigError if they make no conversation.
    """
    merged: list[dict] = []
    for number, message in enumerate(messages, 1):
        role, parts = ROLES.get(message.role, message.role), parts_of(message)
        previous = merged[-1] if merged and merged[-1]["role"] == role else None
        if message.role == "tool":
            insert_result(previous["content"] if previous else [], message, parts, number)
        elif previous is None:
            merged.append({"role": role, "content": parts})
        else:
            old = previous["content"]
            if old and parts and old[-1]["type"] == parts[0]["type"] == "text":
                old.append({"type": "text", "text": "\n\n"})
            old += parts
    for message in merged:
        for part in message["content"]:
            part.pop("id", None)
    validate({"messages": merged}, "messages")
    return merged


def parts_of(message: Message) -> list[dict]:
    """The parts of one message; those of calls carry an `id`, by which a result finds its call."""
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
    for call in message.tool_calls or []:
        parts.append({"type": "python", "text": call.function.arguments, "id": call.id})
    return parts


def text_of(parts: list[dict]) -> str:
    return "".join(part["text"] for part in parts if part["type"] == "text")


def insert_result(parts: list[dict], message: Message, result: list[dict], number: int) -> None:
    """Puts a tool's result after the call with its id, or else after a call that ends `parts`."""
    wanted = message.tool_call_id or ""
    places = [i for i, p in enumerate(parts) if p["type"] == "python" and p.get("id") == wanted]
    if not places and parts and parts[-1]["type"] == "python":
        places = [len(parts) - 1]
    if not places:
        raise ConfigError(
            f"message {number} is the result of a tool call {wanted!r} that no message before it "
            f"made. Send the assistant's message with its tool_calls first"
        )
    parts.insert(places[-1] + 1, {"type": "python_output", "text": text_of(result)})


def chat_requests(
    body: ChatRequest, tokenizer: Tokenizer, context: int, limits: Limits
) -> tuple[list[Request], int]:
    """(one engine Request per answer, turns of the conversation that were left out)."""
    if len(body.messages) > limits.messages:
        raise ConfigError(f"{len(body.messages)} messages were sent, at most {limits.messages}")
    forget = body.truncation == "auto"
    ids, forgotten = fit_turns(conversation_of(body.messages), tokenizer, context, forget)
    max_tokens = body.max_completion_tokens or body.max_tokens or limits.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    tools = body.tool_choice != "none"
    return engine_requests(body, [ids], max_tokens, logprobs, tools, context, limits), forgotten


def completion_requests(
    body: CompletionRequest, tokenizer: Tokenizer, context: int, limits: Limits
) -> list[Request]:
    """One engine Request per answer: n of the first prompt, n of the second, ..."""
    one = isinstance(body.prompt, str) or isinstance(body.prompt[0], int)
    prompts = [plain_prompt(p, tokenizer) for p in ([body.prompt] if one else body.prompt)]
    max_tokens = body.max_tokens or 16  # OpenAI's default
    return engine_requests(body, prompts, max_tokens, body.logprobs, False, context, limits)


def plain_prompt(prompt: str | list[int], tokenizer: Tokenizer) -> list[int]:
    """<|bos|> and the prompt's text or ids, which may name no other special token."""
    if isinstance(prompt, str):
        return [tokenizer.bos, *tokenizer.encode_ordinary(prompt)]
    ids = prompt[1:] if prompt[:1] == [tokenizer.bos] else prompt
    if special := set(ids).intersection(tokenizer.special_ids.values()):
        raise ConfigError(f"prompt holds special tokens, {special}; expected ids of ordinary text")
    return [tokenizer.bos, *ids]


def engine_requests(
    body: Sampling, prompts: list[list[int]], max_tokens: int, logprobs: int | None, tools: bool,
    context: int, limits: Limits,
) -> list[Request]:  # fmt: skip
    """n samples of every prompt; raises ConfigError for more answers than the server gives."""
    n = body.n or 1
    if n * len(prompts) > limits.samples:
        raise ConfigError(f"{n * len(prompts)} answers were asked for, at most {limits.samples}")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    params = body.params(limits)
    return [
        Request(
            prompt=ids,
            max_tokens=min(max_tokens, limits.max_tokens, context - len(ids)),
            params=params,
            sample_index=sample,
            stop_strings=stop,
            logprobs=logprobs,
            tools=tools,
        )
        for ids in prompts
        for sample in range(n)
    ]
