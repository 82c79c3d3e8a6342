"""tokenizer.json, the Hugging Face file that holds a byte-level BPE tokenizer: written and read."""

import json
from collections.abc import Sequence

VOCAB_MULTIPLE = 64


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


def to_json(
    split_pattern: str,
    merges: Sequence[tuple[bytes, bytes]],
    ids: dict[bytes, int],
    special_ids: dict[str, int],
    vocab_size: int,
) -> str:
    """The file's text: merges, special tokens, and a post-processor that puts <|bos|> first.

    Every id below vocab_size gets a name, so that no reader finds holes.
    """
    alphabet = byte_alphabet()
    # subtle: no real token's name holds a space, so these names collide with none.
    names = [f"<|unused {token_id}|>" for token_id in range(vocab_size)]
    for token, token_id in ids.items():
        names[token_id] = "".join(alphabet[byte] for byte in token)
    specials = sorted((token_id, name) for name, token_id in special_ids.items())
    special_numbers = set(special_ids.values())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False}
    byte_level |= {"trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": split_pattern}}
    split |= {"behavior": "Isolated", "invert": False}
    bos = {"SpecialToken": {"id": "<|bos|>", "type_id": 0}}
    first, second = ({"Sequence": {"id": x, "type_id": i}} for i, x in enumerate("AB"))
    bos_ids = {"id": "<|bos|>", "ids": [special_ids["<|bos|>"]], "tokens": ["<|bos|>"]}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, "content": name, **flags, "special": True}
            for token_id, name in specials
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, first],
            "pair": [bos, first, second],
            "special_tokens": {"<|bos|>": bos_ids},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {name: i for i, name in enumerate(names) if i not in special_numbers},
            "merges": visible_merges(merges),
        },
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def from_json(text: str) -> tuple:
    """(split_pattern, merges, ids, special_ids, vocab_size) from the file's text.

    Raises KeyError, TypeError, ValueError or the like for a text of another kind.
    """
    document = json.loads(text)
    model = document["model"]
    steps = document["pre_tokenizer"]["pretokenizers"]
    patterns = [step["pattern"]["Regex"] for step in steps if step["type"] == "Split"]
    if len(patterns) != 1:
        raise ValueError(f"it splits text by {len(patterns)} patterns; expected one")
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    names = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    merges = [tuple(bytes(byte_of[c] for c in name) for name in pair) for pair in names]
    vocab = model["vocab"]
    ids = {bytes([byte]): vocab[name] for name, byte in byte_of.items()}
    ids |= {a + b: vocab[x + y] for (a, b), (x, y) in zip(merges, names, strict=True)}
    merged = list(ids.values())[256:]
    if len(merged) != len(merges) or merged != sorted(merged):
        raise ValueError("the ids of the merges do not rise in the order of the merges")
    special_ids = {token["content"]: token["id"] for token in document["added_tokens"]}
    largest = max(*vocab.values(), *special_ids.values())
    vocab_size = -(-(largest + 1) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return patterns[0], merges, ids, special_ids, vocab_size
