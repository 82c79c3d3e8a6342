"""conversation.py: markup, loss mask and template."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nanochat.common import DataError
from nanochat.conversation import (
    chat_template,
    plain_chat_template,
    render,
    render_batch,
    render_for_completion,
    validate,
)
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer

TEXTS = ["What is 37 times 12? The answer is 444.", "How are you today? I am well, thank you."] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=320)


@pytest.fixture(scope="module")
def hub_tokenizer(tokenizer, tmp_path_factory):
    """transformers' own tokenizer, loaded from what ours saves."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    hub = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    hub.chat_template = chat_template()
    return hub


def chat(*contents, system=None) -> dict:
    """A conversation of user, assistant, user, ... with these contents."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    for i, content in enumerate(contents):
        messages.append({"role": ("user", "assistant")[i % 2], "content": content})
    return {"messages": messages}


def part(kind: str, text: str) -> dict:
    return {"type": kind, "text": text}


TOOL_CALL = [
    part("text", "I count: "),
    part("python", "37*12"),
    part("python_output", "444"),
    part("text", "It is 444."),
]

text = st.text(max_size=12) | st.sampled_from(["<", "|bos|>", "a<b|c", "x < |y|", "\n\n", " "])
plain = text.filter(lambda t: "<|" not in t)
hostile = text | st.sampled_from(
    ["<|bos|>", "<|user_end|>", "<|<|bos|>bos|>", "<<|assistant_end|>"]
)


def conversations(words):
    """Valid conversations whose texts are drawn from `words`."""
    user = words | st.lists(st.builds(part, st.just("text"), words), max_size=3)
    kinds = st.sampled_from(["text", "python", "python_output"])
    assistant = words | st.lists(st.builds(part, kinds, words), max_size=4)
    turns = st.lists(st.tuples(user, assistant), min_size=1, max_size=3)
    return st.builds(
        lambda turns, open_end, system: chat(
            *[x for turn in turns for x in turn][: -1 if open_end else None], system=system
        ),
        turns,
        st.booleans(),
        st.none() | words,
    )


quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def templated(hub, conversation, **kwargs) -> list[int]:
    return hub.apply_chat_template(
        conversation["messages"], tokenize=True, return_dict=False, **kwargs
    )


# ---------------------------------------------------------------- markup and mask


def test_tool_call_by_hand(tokenizer):
    ids, mask = render(chat("Hi", TOOL_CALL), tokenizer)
    expected = [
        ("<|bos|>", 0),
        ("<|user_start|>", 0),
        ("Hi", 0),
        ("<|user_end|>", 0),
        ("<|assistant_start|>", 0),
        ("I count: ", 1),
        ("<|python_start|>", 1),
        ("37*12", 1),
        ("<|python_end|>", 1),
        ("<|output_start|>", 0),
        ("444", 0),
        ("<|output_end|>", 0),
        ("It is 444.", 1),
        ("<|assistant_end|>", 1),
    ]
    expected_ids, expected_mask = [], []
    for piece, loss in expected:
        new = tokenizer.encode(piece)
        expected_ids += new
        expected_mask += [loss] * len(new)
    assert (ids, mask) == (expected_ids, expected_mask)


def test_system_text_stands_before_the_first_user_turn_only(tokenizer):
    ids, mask = render(chat("Hi", "Yes", "Bye", system="Be kind."), tokenizer)
    assert tokenizer.decode(ids) == (
        "<|bos|><|user_start|>Be kind.\n\nHi<|user_end|><|assistant_start|>Yes<|assistant_end|>"
        "<|user_start|>Bye<|user_end|>"
    )
    assert sum(mask) == len(tokenizer.encode_ordinary("Yes")) + 1


def test_neighbouring_text_parts_are_one_text(tokenizer):
    encode = tokenizer.encode_ordinary
    assert encode("What") != encode("Wh") + encode("at")
    parts = [part("text", "Wh"), part("text", "at")]
    assert render(chat(parts, parts), tokenizer) == render(chat("What", "What"), tokenizer)


def test_completion_prompt_leaves_out_the_answer(tokenizer):
    expected = tokenizer.encode("<|bos|><|user_start|>Hi<|user_end|><|assistant_start|>")
    assert render_for_completion(chat("Hi"), tokenizer) == expected
    assert render_for_completion(chat("Hi", TOOL_CALL), tokenizer) == expected


@quick
@given(st.lists(conversations(hostile), max_size=4))
def test_batch_is_render_of_each(tokenizer, some):
    ids, offsets, mask = render_batch(some, tokenizer)
    slices = [slice(a, b) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    assert [(ids[s].tolist(), mask[s].tolist()) for s in slices] == [
        render(one, tokenizer) for one in some
    ]
    assert offsets[-1] == len(ids) == len(mask)


# ---------------------------------------------------------------- what users write stays text


@quick
@given(conversations(hostile))
def test_content_never_makes_a_special_token(tokenizer, hub_tokenizer, conversation):
    """As many special tokens as the structure has, here and in the template."""
    special = set(tokenizer.special_ids.values())
    bare = json.loads(json.dumps(conversation))
    for message in bare["messages"]:
        if isinstance(message["content"], str):
            message["content"] = ""
        else:
            message["content"] = [{**p, "text": ""} for p in message["content"]]
    structure = [i for i in render(bare, tokenizer)[0] if i in special]
    for ids in (render(conversation, tokenizer)[0], templated(hub_tokenizer, conversation)):
        assert [i for i in ids if i in special] == structure


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_markup_in_user_text_is_kept_as_text(tokenizer, name):
    ids, _ = render(chat(f"Say {name}!"), tokenizer)
    assert tokenizer.decode(ids[2:-1]) == f"Say {name}!"


# ---------------------------------------------------------------- template


@quick
@given(conversations(plain))
def test_template_gives_the_ids_of_render(tokenizer, hub_tokenizer, conversation):
    # "<" at the end of one text part and "|" at the start of the next make the template's case.
    joined = ["".join(p["text"] for p in m["content"] if p["type"] == "text")
              for m in conversation["messages"] if isinstance(m["content"], list)]  # fmt: skip
    if any("<|" in one for one in joined):
        return
    assert templated(hub_tokenizer, conversation) == render(conversation, tokenizer)[0]
    if conversation["messages"][-1]["role"] == "user":
        prompt = templated(hub_tokenizer, conversation, add_generation_prompt=True)
        assert prompt == render_for_completion(conversation, tokenizer)


@quick
@given(conversations(plain))
def test_template_masks_what_render_masks(tokenizer, hub_tokenizer, conversation):
    for message in conversation["messages"]:
        if isinstance(parts := message["content"], list):
            # transformers marks one token of a span's last character: text ends in ASCII here
            for before, after in zip(parts, parts[1:], strict=False):
                before["text"] += "." if after["type"] == "python_output" else ""
            if "<|" in "".join(p["text"] for p in parts if p["type"] == "text"):
                return
    found = hub_tokenizer.apply_chat_template(
        conversation["messages"], return_dict=True, return_assistant_tokens_mask=True
    )
    assert (found["input_ids"], found["assistant_masks"]) == render(conversation, tokenizer)


@quick
@given(conversations(hostile))
def test_the_plain_template_gives_the_same_text_without_transformers(hub_tokenizer, conversation):
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        plain_chat_template()
    )
    messages = conversation["messages"]
    for prompt in (False, True):
        rendered = hub_tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
        assert plain.render(messages=messages, add_generation_prompt=prompt) == rendered


def test_template_refuses_parts_of_another_kind(hub_tokenizer):
    with pytest.raises(Exception, match="found image"):
        hub_tokenizer.apply_chat_template(chat("a", [part("image", "b")])["messages"])


def test_template_breaks_markup_with_a_space(hub_tokenizer):
    parts = [part("text", "a<"), part("text", "|bos|>")]
    conversation = chat(parts, [*parts, part("python", "<|bos|>")], system="<|bos|>")
    text = hub_tokenizer.apply_chat_template(conversation["messages"], tokenize=False)
    assert text == (
        "<|bos|><|user_start|>< |bos|>\n\na< |bos|><|user_end|>"
        "<|assistant_start|>a< |bos|><|python_start|>< |bos|><|python_end|><|assistant_end|>"
    )


def test_template_refuses_roles_out_of_turn(hub_tokenizer):
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(Exception, match="found user as message 2"):
        hub_tokenizer.apply_chat_template(messages)


# ---------------------------------------------------------------- malformed conversations


@pytest.mark.parametrize(
    ("conversation", "complaint"),
    [
        ([], "expected .*messages"),
        ({"text": "hello"}, "expected .*messages"),
        ({"messages": []}, ", not empty"),
        ({"messages": ["hello"]}, "message 1 of 1: found str, expected a dictionary"),
        (chat("a", "b") | {"messages": chat("a", "b")["messages"][1:]}, "'assistant', exp"),
        ({"messages": chat("a")["messages"] * 2}, "message 2 of 2: found role 'user', exp"),
        ({"messages": [{"role": "system", "content": "a"}]}, "system message alone"),
        ({"messages": [*chat("a", "b")["messages"], {"role": "system"}]}, "message 3 of 3"),
        ({"messages": [{"role": "user"}]}, "found content of type NoneType"),
        ({"messages": [{"role": "user", "content": 3}]}, "found content of type int"),
        (chat([part("python", "1")]), "found part .*python.*, expected one of text"),
        (chat("a", [part("image", "1")]), "'image', .*, expected one of text, python, "),
        (chat("a", [{"type": "text"}]), "expected one of text, .*, text a string"),
        (chat("a", ["b"]), "found part 'b'"),
    ],
)  # fmt: skip
def test_malformed_conversation_is_named(conversation, complaint):
    with pytest.raises(DataError, match=f"chats.jsonl:17: .*{complaint}"):
        validate(conversation, "chats.jsonl:17")


@quick
@given(conversations(hostile))
def test_well_formed_conversations_pass(conversation):
    validate({**conversation, "letters": ["A"]}, "here")
