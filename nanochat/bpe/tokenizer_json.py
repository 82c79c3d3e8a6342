"""tokenizer.json, the Hugging Face file that holds a byte-level BPE tokenizer: written and read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from nanochat.common import DataError

VOCAB_MULTIPLE = 64
# What a ByteLevel step splits by when it is left to itself (Radford et al. 2019).
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def byte_alphabet() -> list[str]:
    """The visible character that stands for each byte in tokenizer.json: GPT-2's choice.

    Bytes that print in Latin-1 stand for themselves, the other 68 for U+0100 onwards.
    Example: byte_alphabet()[32] == "Ġ"
    """
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(hidden)) for byte in range(256)]


def visible_merges(merges: Sequence[tuple[bytes, bytes]]) -> list[list[str]]:
    """Merges in the file's alphabet. Example: visible_merges([(b" ", b"a")]) == [["Ġ", "a"]]."""
    alphabet = byte_alphabet()
    return [["".join(alphabet[byte] for byte in part) for part in pair] for pair in merges]


class Parts(NamedTuple):
    """What a tokenizer.json holds, tokens as byte strings."""

    split_pattern: str
    merges: list[tuple[bytes, bytes]]  # in the order they were learned
    ids: dict[bytes, int]  # of the bytes and the merges
    special_ids: dict[str, int]
    vocab_size: int  # a multiple of 64


def to_json(parts: Parts) -> str:
    """The file's text, with a post-processor that puts <|bos|> first. Every id below vocab_size has
    a name, so that no reader finds holes."""
    alphabet = byte_alphabet()
    # subtle: no real token's name holds a space, so these names collide with none.
    names = [f"<|unused {token_id}|>" for token_id in range(parts.vocab_size)]
    for token, token_id in parts.ids.items():
        names[token_id] = "".join(alphabet[byte] for byte in token)
    specials = sorted((token_id, name) for name, token_id in parts.special_ids.items())
    special_numbers = set(parts.special_ids.values())
    # subtle: a special token outside `vocab` gets the next free id, whatever the file says
    last = special_numbers == {*range(parts.vocab_size - len(specials), parts.vocab_size)}
    for token_id, name in specials:
        names[token_id] = name
    vocab = {name: i for i, name in enumerate(names) if not last or i not in special_numbers}
    file = tokenizers.Tokenizer(models.BPE(vocab, [*map(tuple, visible_merges(parts.merges))]))
    split = pre_tokenizers.Split(tokenizers.Regex(parts.split_pattern), "isolated")
    as_is = {"add_prefix_space": False, "use_regex": False}
    file.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(**as_is)])
    file.decoder = decoders.ByteLevel(**as_is)
    bos = [("<|bos|>", parts.special_ids["<|bos|>"])]
    file.post_processor = TemplateProcessing("<|bos|> $A", "<|bos|> $A $B:1", bos)
    added = [tokenizers.AddedToken(name, normalized=False) for _, name in specials]
    file.add_special_tokens(added)
    return file.to_str(pretty=True) + "\n"


def read_parts(path: Path) -> Parts:
    """Reads the tokenizer.json of a byte-level BPE, whoever wrote it."""
    try:
        return parts_of(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error!s:.200}"
        raise DataError(f"{path} is no tokenizer.json of a byte-level BPE: {reason}") from error


def parts_of(document: dict) -> Parts:
    """The parts of a tokenizer.json; ValueError or the like for what has no place in them."""
    model = document["model"]
    if model["type"] != "BPE":
        raise ValueError(f"found a {model['type']} model, expected BPE")
    if document.get("normalizer"):
        raise ValueError(f"found a normalizer ({document['normalizer']['type']}), expected none")
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    vocab = model["vocab"]
    names = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    merges = [tuple(bytes(byte_of[c] for c in name) for name in pair) for pair in names]
    ids = {bytes([byte]): vocab[name] for name, byte in byte_of.items()}
    ids |= {a + b: vocab[x + y] for (a, b), (x, y) in zip(merges, names, strict=True)}
    special_ids = {token["content"]: token["id"] for token in document["added_tokens"]}
    for name, number in [*vocab.items(), *special_ids.items()]:
        if type(number) is not int:
            raise ValueError(f"the id of {name!r:.40} is {number!r:.40}, expected a whole number")
    largest = max(*vocab.values(), *special_ids.values())
    vocab_size = -(-(largest + 1) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return Parts(split_pattern(document["pre_tokenizer"]), merges, ids, special_ids, vocab_size)


def split_pattern(step: dict) -> str:
    """The regular expression that a pre-tokenizer splits by; ValueError unless it is one."""
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    kinds = [step["type"] for step in steps]
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        if steps[0]["behavior"] != "Isolated" or steps[0]["invert"]:
            raise ValueError(f"text is split {steps[0]['behavior']}, expected Isolated")
        return steps[0]["pattern"]["Regex"]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return GPT2_PATTERN
    raise ValueError(f"text is split by {', '.join(kinds)}; expected Split, ByteLevel or ByteLevel")
