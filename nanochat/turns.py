"""Conversations as chat programs keep them: made to fit the context, or continued in the middle.

Chat markup stays conversation.py's; here whole turns are left out, or an answer is left open.
"""

from collections.abc import Sequence

from nanochat.common import ConfigError
from nanochat.conversation import render, render_for_completion
from nanochat.tokenizer import Tokenizer


def prompt_ids(messages: list[dict], tokenizer: Tokenizer) -> list[int]:
    """The ids after which the assistant speaks; a last message of its own is gone on with."""
    if messages[-1]["role"] != "assistant":
        return render_for_completion({"messages": messages}, tokenizer)
    ids, _ = render({"messages": messages}, tokenizer)
    assert ids[-1] == tokenizer.special("<|assistant_end|>")
    return ids[:-1]


def turns_of(messages: Sequence[dict]) -> tuple[list[dict], list[list[dict]]]:
    """(the system message or nothing, the turns: each a user's message and the answer to it)."""
    system = [m for m in messages[:1] if m["role"] == "system"]
    rest = messages[len(system) :]
    return system, [list(rest[i : i + 2]) for i in range(0, len(rest), 2)]


def fit_turns(
    messages: Sequence[dict], tokenizer: Tokenizer, context: int, forget: bool = True
) -> tuple[list[int], int]:
    """(the ids after which the assistant speaks, turns left out) of a valid conversation.

    If `forget`, the oldest turns go until a quarter of the `context` is free, or until only the
    last is left; the system message stays. Raises ConfigError where no room for an answer is left.

    Example: ids, forgotten = fit_turns([user, assistant, user], tokenizer, 2048)
    """
    system, turns = turns_of(messages)
    # subtle: the parts are measured apart, so that a long history is tokenized twice, not once a
    # turn; where they meet a token or two may differ, so the choice is made on this estimate
    lengths = [len(render({"messages": turn}, tokenizer)[0]) for turn in turns]
    held = sum(lengths) + (len(prompt_ids(system + turns[-1], tokenizer)) - lengths[-1])
    first = 0
    while forget and first < len(turns) - 1 and held > context * 3 // 4:
        held -= lengths[first]
        first += 1
    ids = prompt_ids([*system, *(m for turn in turns[first:] for m in turn)], tokenizer)
    if len(ids) >= context:
        what = "last message with the system message" if forget else "conversation"
        raise ConfigError(
            f"the {what} has {len(ids):,} tokens; the context of {context:,} takes at most "
            f"{context - 1:,}, to leave room for an answer. Shorten it"
        )
    return ids, first
