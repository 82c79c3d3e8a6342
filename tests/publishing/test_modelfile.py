"""Ollama's Modelfile by its documented grammar, and its template by the rules of Go's.

Written from Ollama's documents (docs/modelfile.mdx and docs/template.mdx of ollama/ollama): Ollama
is a program of Go, which no Python package brings.
"""

import re

import pytest
from tiny_checkpoint import tiny_model, tiny_tokenizer

from nanochat.conversation import render_for_completion
from nanochat.publishing.gguf import modelfile

INSTRUCTIONS = {"FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE"}
INSTRUCTIONS |= {"REQUIRES"}
PARAMETERS = {"num_ctx", "repeat_last_n", "repeat_penalty", "temperature", "seed", "num_predict"}
PARAMETERS |= {"stop", "top_k", "top_p", "min_p", "draft_num_predict"}
VARIABLES = {".System", ".Messages", ".Role", ".Content"}


def parse(text: str) -> list[tuple[str, str]]:
    """(instruction, argument) in order; ValueError for what is no Modelfile."""
    found, rest = [], text
    while rest := rest.lstrip():
        if rest.startswith("#"):
            rest = rest.partition("\n")[2]
            continue
        word, _, rest = rest.partition(" ")
        if word.upper() not in INSTRUCTIONS:
            raise ValueError(f"unknown instruction {word!r}")
        name = ""
        if word.upper() in ("PARAMETER", "MESSAGE"):
            name, _, rest = rest.lstrip().partition(" ")
        rest = rest.lstrip(" ")
        mark = next((mark for mark in ('"""', '"') if rest.startswith(mark)), None)
        if mark:
            argument, end, rest = rest[len(mark) :].partition(mark)
            if not end:
                raise ValueError(f"{word}: no closing {mark}")
        else:
            argument, _, rest = rest.partition("\n")
            argument = argument.strip()
        if word.upper() == "PARAMETER" and name not in PARAMETERS:
            raise ValueError(f"unknown parameter {name!r}")
        found.append((" ".join([word.upper(), name]).strip(), argument))
    if "FROM" not in dict(found):
        raise ValueError("FROM is required")
    return found


def go_template(template: str, system: str, messages: list[dict]) -> str:
    """What Go's text/template makes of it: actions, trimming, range, if, variables, eq."""
    parts = re.split(r"(\{\{-? .*? ?-?\}\})", template)
    tokens = []
    for i, part in enumerate(parts):
        if i % 2:
            tokens.append(("action", part.strip("{}").strip("-").strip()))
            continue
        if i > 0 and parts[i - 1].endswith("-}}"):
            part = part.lstrip()
        if i + 1 < len(parts) and parts[i + 1].startswith("{{-"):
            part = part.rstrip()
        tokens.append(("text", part))
    variables: dict[str, str] = {}

    def value(word: str, dot: dict) -> str:
        if word.startswith('"'):
            return word[1:-1]
        if word.startswith("$"):
            return variables[word]
        assert word in VARIABLES, word
        return dot[word[1:]]

    def holds(condition: str, dot: dict) -> bool:
        words = re.findall(r'"[^"]*"|\S+', condition)
        if words[0] == "eq":
            return value(words[1], dot) == value(words[2], dot)
        return bool(value(words[0], dot))

    def block(at: int, dot: dict, run: bool) -> tuple[str, int]:
        """(text, the place of the action that ends it) of what stands from `at` on."""
        out = ""
        while at < len(tokens):
            kind, text = tokens[at]
            if kind == "text":
                out += text if run else ""
            elif text == "end" or text.startswith("else"):
                return out, at
            elif text.startswith("range "):
                rows = value(text.split()[1], dot) if run else []
                for row in rows:
                    out += block(at + 1, row, run)[0]
                at = block(at + 1, dot, False)[1]
            elif text.startswith("if "):
                done, condition = False, text.removeprefix("if ")
                while True:
                    chosen = run and not done and (condition is None or holds(condition, dot))
                    inner, at = block(at + 1, dot, chosen)
                    out, done = out + inner, done or chosen
                    if tokens[at][1] == "end":
                        break
                    following = tokens[at][1].removeprefix("else").strip()
                    condition = following.removeprefix("if ") or None
            elif match := re.fullmatch(r"(\$\w+) :?= (.+)", text):
                if run:
                    variables[match[1]] = value(match[2], dot)
            else:
                out += value(text, dot) if run else ""
            at += 1
        return out, at

    return block(0, {"System": system, "Messages": messages}, True)[0]


def written() -> dict[str, str]:
    return dict(parse(modelfile("model-f16.gguf", tiny_model().config)))


def test_the_file_follows_the_grammar():
    found = written()
    assert found.keys() == {"FROM", "TEMPLATE", "PARAMETER stop", "PARAMETER num_ctx"}
    assert found["FROM"] == "./model-f16.gguf" and found["PARAMETER num_ctx"] == "64"
    assert found["PARAMETER stop"] == "<|assistant_end|>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TEMPLATE x", "FROM is required"),
        ("FROM ./x\nPARAMETER tempo 1", "unknown parameter 'tempo'"),
        ("FROM ./x\nPROMPT y", "unknown instruction 'PROMPT'"),
        ('FROM ./x\nTEMPLATE """y', "no closing"),
    ],
)
def test_the_parser_refuses_what_ollama_does(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


TURNS = [("user", "the cat"), ("assistant", "sat"), ("user", "on\n the mat ")]


@pytest.mark.parametrize("turns", [TURNS[:1], TURNS], ids=len)
@pytest.mark.parametrize("system", ["", "the dog"])
def test_the_template_gives_the_ids_of_a_conversation(system, turns):
    """Ollama puts <|bos|> first, and gathers the system messages in .System."""
    tokenizer = tiny_tokenizer()
    messages = [{"Role": "system", "Content": system}] if system else []
    messages += [{"Role": role, "Content": content} for role, content in turns]
    text = go_template(written()["TEMPLATE"], system, messages)
    ours = [{"role": m["Role"], "content": m["Content"]} for m in messages]
    expected = render_for_completion({"messages": ours}, tokenizer)
    assert [tokenizer.bos, *tokenizer.encode(text)] == expected
