"""The tokenizer: hand-made merges, a plain-Python twin, Hugging Face's readers, any Unicode."""

import argparse
import hashlib
import inspect
import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.bpe.tokenizer_json import Parts, byte_alphabet
from nanochat.common import ConfigError, DataError
from nanochat.inference.answer_reader import AnswerReader
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

LANGUAGES = "Straße naïve façade Привет мир, как дела? 你好世界 今日は 오늘은 नमस्ते مرحبا "
LANGUAGES += "🙂🙃 \U0001f469\u200d\U0001f467 e\u0301 "
MARKUP = "<|bos|><|user_start|>What's 37 * 12?<|user_end|><|assistant_start|>"
# Assigned characters only: which letters are letters differs by Unicode version.
characters = st.characters(exclude_categories=["Cs", "Cn", "Co"])
texts = st.text(characters, max_size=60) | st.lists(
    st.sampled_from(
        [*SPECIAL_TOKENS, " ", "\n", "  x", "don't", "1234567", "é", "'S", "<|", "\r\n"]
    )
).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([inspect.getsource(argparse), LANGUAGES * 20], 1024)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


def plain_encode(text: str, merges: list, pattern: str) -> list[int]:
    """Byte-level BPE by its definition: in each piece, merge the pair learned first, repeatedly."""
    rank = {pair: 256 + i for i, pair in enumerate(merges)}
    ids = {bytes([byte]): byte for byte in range(256)}
    ids |= {a + b: number for (a, b), number in rank.items()}
    found = []
    for piece in regex.findall(pattern, text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while known := [pair for pair in pairwise(parts) if pair in rank]:
            i = list(pairwise(parts)).index(min(known, key=rank.get))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        found += [ids[part] for part in parts]
    return found


# ---------------------------------------------------------------- training


def test_merges_by_hand():
    # Pieces: "ab" once, " ab" twice, " abc" once. (a, b) occurs 4 times, then (" ", ab) 3 times,
    # then (" ab", c) once; nothing is left.
    tokenizer = Tokenizer.train(["ab ab ab abc"], 320)
    assert tokenizer.merges == [(b"a", b"b"), (b" ", b"ab"), (b" ab", b"c")]
    assert tokenizer.encode_ordinary("ab abc abca") == [256, 258, 258, ord("a")]


def test_layout_of_ids(capsys):
    tokenizer = Tokenizer.train(["ab ab ab abc"], 320)
    assert "52 of 320 ids stay unused" in capsys.readouterr().out  # 320 - 256 - 3 - 9
    assert [tokenizer.decode_bytes([i]) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert list(tokenizer.special_ids.items()) == [
        (name, 311 + i) for i, name in enumerate(SPECIAL_TOKENS)
    ]
    assert tokenizer.vocab_size == 320 and tokenizer.bos == tokenizer.special("<|bos|>") == 311
    assert tokenizer.decode([104, 259, 310, 105]) == "hi"  # 259..310 are unused
    expected = np.array([1] * 256 + [2, 3, 4] + [0] * 61)
    np.testing.assert_array_equal(tokenizer.token_bytes(), expected)


@pytest.mark.parametrize("wanted, nearest", [(300, 320), (1000, 1024), (64, 320), (256, 320)])
def test_impossible_size_names_the_nearest(wanted, nearest):
    with pytest.raises(ConfigError, match=f"Nearest: {nearest}$"):
        Tokenizer.train(["text"], wanted)


def test_bad_split_pattern():
    with pytest.raises(ConfigError, match="does not compile"):
        Tokenizer.train(["text"], 320, split_pattern="(")


def test_special_names_in_training_text_stay_text():
    tokenizer = Tokenizer.train(["<|bos|>" * 50], 320)
    assert tokenizer.encode("<|bos|>") == [tokenizer.bos]
    assert tokenizer.bos not in tokenizer.encode_ordinary("<|bos|>")


def test_training_is_deterministic(tokenizer):
    again = Tokenizer.train([inspect.getsource(argparse), LANGUAGES * 20], 1024)
    assert again.merges == tokenizer.merges


# ---------------------------------------------------------------- encoding


@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_round_trip_and_plain_twin(tokenizer, text):
    ids = tokenizer.encode_ordinary(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert not set(ids) & set(tokenizer.special_ids.values())
    assert ids == plain_encode(text, tokenizer.merges, SPLIT_PATTERN)


@settings(max_examples=50, deadline=None)
@given(text=st.text())
@pytest.mark.slow
def test_round_trip_of_any_unicode(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


def test_markup_is_honoured_only_by_encode(tokenizer):
    ids = tokenizer.encode(MARKUP)
    assert [i for i in ids if i >= 1015] == [1015, 1016, 1017, 1018]
    assert tokenizer.decode(ids) == tokenizer.decode(tokenizer.encode_ordinary(MARKUP)) == MARKUP
    assert max(tokenizer.encode_ordinary(MARKUP)) < 1015


def test_lone_surrogates_are_replaced(tokenizer):
    text = "a\ud800b \ud83d\ude42 \udfff"  # the two in the middle are a pair
    for encode in (tokenizer.encode, tokenizer.encode_ordinary):
        assert tokenizer.decode(encode(text)) == "a\ufffdb 🙂 \ufffd"
    assert Tokenizer.train([text], 320).decode([ord("a")]) == "a"


def test_long_runs_of_white_space(tokenizer):
    for text in ("x" + " " * 1_000_000 + "x", "\u3000" * 700_000):
        assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text
    Tokenizer.train([" " * 10_000], 320)


def test_batch_equals_one_by_one(tokenizer):
    batch = ["one", "", "<|bos|> two\n\n", LANGUAGES, "a\ud800"]
    ids, offsets = tokenizer.encode_ordinary_batch(batch)
    assert (ids.dtype, offsets.dtype) == (np.uint16, np.int64)
    for i, text in enumerate(batch):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == tokenizer.encode_ordinary(text)
    assert len(offsets) == len(batch) + 1 and offsets[-1] == len(ids)
    ids, offsets = tokenizer.encode_ordinary_batch([])
    assert ids.tolist() == [] and offsets.tolist() == [0]


def test_ids_beyond_uint16():
    tokenizer = Tokenizer.train(["abc"], 65536 + 64)
    assert tokenizer.encode_ordinary_batch(["abc"])[0].dtype == np.uint32


def test_unknown_special_names_those_there_are(tokenizer):
    with pytest.raises(KeyError, match="no special token.*<|user_end|>"):
        tokenizer.special("<|nothing|>")


# ---------------------------------------------------------------- streaming


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 1014), max_size=30))
def test_stream_equals_decode(tokenizer, ids):
    reader = AnswerReader(tokenizer)
    assert "".join(map(reader.push, ids)) + reader.flush() == tokenizer.decode(ids)


# ---------------------------------------------------------------- on disk


def test_save_and_load(tokenizer, saved, tmp_path):
    loaded = Tokenizer.load(saved)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.vocab_size, loaded.special_ids) == (1024, tokenizer.special_ids)
    assert loaded.encode(LANGUAGES + MARKUP) == tokenizer.encode(LANGUAGES + MARKUP)
    loaded.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()


def test_fingerprint_is_of_pattern_merges_and_specials():
    tokenizer = Tokenizer.train(["ab ab ab abc"], 320)
    identity = {
        "merges": [["a", "b"], ["Ġ", "ab"], ["Ġab", "c"]],
        "specials": {name: 311 + i for i, name in enumerate(SPECIAL_TOKENS)},
        "split": SPLIT_PATTERN,
    }
    expected = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    assert tokenizer.fingerprint == expected
    assert Tokenizer.train(["ab ab ab abd"], 320).fingerprint != expected
    assert Tokenizer.train(["ab ab ab abc"], 384).fingerprint != expected


def test_other_split_pattern_is_kept(tmp_path):
    tokenizer = Tokenizer.train(["to be or not to be " * 9], 384, split_pattern=r"\S+ ?|\s+")
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.split_pattern == r"\S+ ?|\s+"
    assert [loaded.decode([i]) for i in loaded.encode("to be not ")] == ["to ", "be ", "not "]
    text = "to be,  or not\n\n2 b "
    expected = plain_encode(text, loaded.merges, loaded.split_pattern)
    assert loaded.encode_ordinary(text) == expected
    fast = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert fast.encode(text, add_special_tokens=False).ids == expected


@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_hugging_face_tokenizers_give_equal_ids(tokenizer, saved, text):
    fast = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
    ids = tokenizer.encode(text)
    assert fast.encode(text, add_special_tokens=False).ids == ids
    assert fast.encode(text).ids == [tokenizer.bos, *ids]


@pytest.mark.slow
def test_every_letter_is_split_as_hugging_face_does(tmp_path):
    """Merges over every boundary that the pattern may draw, so that ids show where it cut."""
    pairs = [
        (x, bytes([b])) for x in (b"a", b"1", b"!", b"'", b" ", b"\n") for b in range(194, 245)
    ]
    ids = {bytes([byte]): byte for byte in range(256)}
    ids |= {a + b: 256 + i for i, (a, b) in enumerate(pairs)}
    specials = {name: 631 + i for i, name in enumerate(SPECIAL_TOKENS)}
    tokenizer = Tokenizer(Parts(SPLIT_PATTERN, pairs, ids, specials, 640))
    tokenizer.save(tmp_path)
    fast = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for first in range(128, 0x20000, 128):
        block = [chr(c) for c in range(first, first + 128) if not 0xD800 <= c < 0xE000]
        text = "".join(f"a{c}1{c}!{c}'{c} {c}\n{c}" for c in block)
        assert fast.encode(text, add_special_tokens=False).ids == tokenizer.encode(text), first


@pytest.mark.slow
def test_transformers_loads_it(tokenizer, saved):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    fast = transformers.AutoTokenizer.from_pretrained(saved, use_fast=True, trust_remote_code=False)
    text = LANGUAGES + MARKUP
    assert fast(text).input_ids == [tokenizer.bos, *tokenizer.encode(text)]
    assert fast.decode(tokenizer.encode(text)) == text
    assert (fast.bos_token, fast.eos_token, fast.pad_token) == (
        "<|bos|>",
        "<|assistant_end|>",
        "<|bos|>",
    )
    assert len(fast) == 1024


def test_merges_in_the_older_notation_load(tokenizer, saved, tmp_path):
    document = json.loads((saved / "tokenizer.json").read_text())
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="does not exist; train a tokenizer"):
        Tokenizer.load(tmp_path)


def remove_special(document):
    document["added_tokens"].pop()


def swap_merges(document):
    merges = document["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def remove_byte(document):
    del document["model"]["vocab"]["a"]


def another_model(document):
    document["pre_tokenizer"] = None


@pytest.mark.parametrize(
    "change, complaint",
    [
        (remove_special, r"has no <\|output_end\|>.*Restore the file"),
        (swap_merges, "ids of the merges do not rise .*Restore the file"),
        (remove_byte, "is no tokenizer.json of a byte-level BPE: KeyError"),
        (another_model, "is no tokenizer.json of a byte-level BPE: TypeError"),
    ],
)
def test_changed_file_is_refused(saved, tmp_path, change, complaint):
    document = json.loads((saved / "tokenizer.json").read_text())
    change(document)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=f"tokenizer.json.* {complaint}"):
        Tokenizer.load(tmp_path)


def test_truncated_file_is_refused(saved, tmp_path):
    whole = (saved / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match="is no tokenizer.json of a byte-level BPE: JSONDecodeError"
    ):
        Tokenizer.load(tmp_path)


def test_byte_alphabet_is_the_usual_one():
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256
    assert [alphabet[byte] for byte in (0, 9, 10, 32, 65, 127, 173, 255)] == list("ĀĉĊĠAġŃÿ")


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"\p{N}{1,3}+|\P{N}+", "differently"),  # possessive in one of the two alone
        (r"\w+|\W+", "differently"),
        (r"(?P<word>\S+)|\s+", "does not take it"),
    ],
)
def test_a_pattern_that_others_read_differently_is_refused(pattern, reason):
    with pytest.raises(ConfigError, match=reason):
        Tokenizer.train(["text"], 320, split_pattern=pattern)


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def test_a_pattern_that_others_know_is_taken():
    tokenizer = Tokenizer.train(["it's 12345 words"], 320, split_pattern=GPT2)
    assert tokenizer.decode(tokenizer.encode("it's 12345 words")) == "it's 12345 words"


def test_what_is_no_id_is_not_decoded():
    tokenizer = Tokenizer.train(["text"], 320)
    with pytest.raises(DataError, match="-1 is no id.* 0 to 319; -1 marks a target without loss"):
        tokenizer.decode([104, -1])
    with pytest.raises(DataError, match="320 is no id"):
        tokenizer.decode([320])
    assert tokenizer.decode([]) == ""


def test_tok_train_learns_from_conversations_in_every_letter_case(tmp_path, capsys):
    from scripts import tok_train

    (tmp_path / "texts.txt").write_text("some text to learn from\n\nand some to measure it on")
    data, mixture = str(tmp_path / "texts.txt"), "identity:0.01"
    tok_train.main(tok_train.Config(data=data, vocab_size=512, out=tmp_path, mixture=mixture))
    pieces = Tokenizer.load(tmp_path).pieces()
    assert {" you", " YOU"} <= set(pieces)
    texts = tok_train.conversation_texts(
        [{"messages": [{"content": "Hi"}, {"content": [{"text": "2"}]}]}]
    )
    assert Counter(texts) == {"Hi": 12, "hi": 12, "HI": 12}


def test_tok_train_makes_each_number_one_token(tmp_path, capsys):
    from scripts import tok_train

    (tmp_path / "texts.txt").write_text("text and 365 days\n\nand some to measure it on")
    config = tok_train.Config(data=str(tmp_path / "texts.txt"), vocab_size=1344, out=tmp_path)
    for whole, ids in ((False, [1, 2, 3, 4]), (True, [1, 1, 1, 2])):
        tok_train.main(replace(config, whole_numbers=whole))
        encode = Tokenizer.load(tmp_path).encode_ordinary
        assert [len(encode(n)) for n in ("7", "42", "918", "9184")] == ids
    assert all(len(encode(str(n))) == 1 for n in range(1000))
    assert "numbers below 1,000 in one token: 1,000" in capsys.readouterr().out


def test_tok_train_makes_numbers_outweigh_a_long_text(tmp_path):
    from scripts import tok_train

    letters = "abcdefghijklmnopqrst"
    pairs = [f"{a}{b} " * 2100 for a in letters for b in letters]  # 400 merges of that weight
    (tmp_path / "texts.txt").write_text("".join(pairs) + "word " * 9_000_000 + "\n\nval")
    sizes = {"vocab_size": 1344, "doc_cap": 10**9, "out": tmp_path}
    tok_train.main(tok_train.Config(data=str(tmp_path / "texts.txt"), whole_numbers=True, **sizes))
    encode = Tokenizer.load(tmp_path).encode_ordinary
    assert sum(len(encode(str(n))) == 1 for n in range(1000)) == 1000


def test_tok_train_finds_a_place_that_cannot_be_written_before_it_learns(tmp_path, monkeypatch):
    from scripts import tok_train

    (tmp_path / "texts.txt").write_text("some text to learn from")
    (tmp_path / "a file").write_text("")
    monkeypatch.setattr(Tokenizer, "train", lambda *_: pytest.fail("it began to learn"))
    config = tok_train.Config(data=str(tmp_path / "texts.txt"), out=tmp_path / "a file" / "x")
    with pytest.raises(ConfigError, match="cannot be written"):
        tok_train.main(config)
