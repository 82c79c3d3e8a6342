"""Byte-level BPE: the core, its plain-Python twin, rustbpe, tiktoken and `tokenizers` agree."""

import argparse
import inspect
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import rustbpe
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanochat import cpp
from nanochat.bpe import encoder as bpe
from nanochat.bpe import native, reference
from nanochat.bpe.fallback import FallbackEncoder, byte_level_bpe
from nanochat.bpe.pieces import SPLIT_PATTERN, Splitter, unicode_ranges
from nanochat.bpe.reference import token_bytes
from nanochat.common import ConfigError
from nanochat.cpp import cpp_compiler

ROOT = Path(__file__).resolve().parents[2]
SPLITTER = Splitter(SPLIT_PATTERN)
CODE = inspect.getsource(argparse)
random_bytes = random.Random(0).randbytes

# Texts of every kind that a splitter or a merge could get wrong.
EVERY_7TH = [chr(c) for c in range(0, 0x110000, 7) if not 0xD800 <= c < 0xE000]
KINDS = {
    "english": (inspect.getdoc(argparse) + " I'd say they're John's; we'll see, I'm sure. ") * 9,
    "code": CODE[:30_000],
    "scripts": "Straße naïve Привет мир 你好世界 今日は 오늘은 नमस्ते مرحبا שלום ไทย ٣٤٥ Ⅻ ½ " * 20,
    "emoji": "🙂🙃 \U0001f469\u200d\U0001f467 e\u0301 🏳️\u200d🌈!!  👍🏽x" * 20,
    "white space": " a  b   c\t\td \t e\n\n f\n \n g\u00a0h \u3000 i\u2003\u2003j\x85k \x0b l   "
    * 20,
    "CRLF": "one\r\ntwo\r\n\r\n three\r \r\nfour.\r\n...\r\n\r" * 20,
    "contractions": "I'M DON'T WE'LL You'Re 'tis 'Sam 'sſ '\u017f it'\u017ft 'LL'l 'R 'V'd'D" * 20,
    "every 7th code point": "".join(f"a{c} {c}1{'' if ord(c) % 5 else ' '}" for c in EVERY_7TH),
    "random bytes": random_bytes(9000).decode(errors="replace")
    + random_bytes(999).decode("latin-1"),
    "NUL bytes": "a\0b\0\0c \0 d\0" * 30,
    "runs": "aaaaaaa aaaa aa aaaaa ababab abababa " * 30 + "=" * 300 + " " * 300 + "-=" * 200,
}

pytestmark = pytest.mark.skipif(cpp_compiler() is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def base_dir(tmp_path, monkeypatch):
    """A base folder where nothing is compiled yet: tests here compile, and damage what is kept."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "nanochat"))
    return tmp_path / "nanochat"


@pytest.fixture(scope="module")
def core() -> native.Core:
    return native.core()


@pytest.fixture(scope="module")
def merges() -> list[reference.Pair]:
    return bpe.train(KINDS.values(), 2048)


def python_train(texts, vocab_size: int, pattern: str = SPLIT_PATTERN) -> list[reference.Pair]:
    return reference.learn_merges(reference.count_words(texts, pattern), vocab_size - 256)


def encode_with(text: str | bytes, merges: list[reference.Pair]) -> list[int]:
    """reference.encode, each different piece once."""
    ids = {pair: 256 + i for i, pair in enumerate(merges)}
    pieces = SPLITTER.pieces(text)
    known = {piece: reference.encode_piece(piece, ids) for piece in set(pieces)}
    return [i for piece in pieces for i in known[piece]]


def decode(ids: list[int], merges: list[reference.Pair]) -> bytes:
    tokens = token_bytes(merges)
    return b"".join(tokens[i] for i in ids)


# ---------------------------------------------------------------- the reference, by hand


@pytest.mark.slow
def test_reference_by_hand():
    # "ab" once, " ab" twice, " abc" once: (a, b) 4 times, (" ", ab) 3 times, (" ab", c) once.
    words = reference.count_words(["ab ab ab abc"], SPLIT_PATTERN)
    assert words == {b"ab": 1, b" ab": 2, b" abc": 1}
    found = reference.learn_merges(words, 9)
    assert found == [(97, 98), (32, 256), (257, 99)]
    assert reference.token_bytes(found)[256:] == [b"ab", b" ab", b" abc"]
    ids = {pair: 256 + i for i, pair in enumerate(found)}
    assert reference.encode("ab abc abca", ids, SPLITTER) == [256, 258, 258, 97]


@pytest.mark.slow
def test_ties_go_to_the_smallest_pair():
    assert reference.learn_merges({b"zy": 2, b"ba": 2, b"bc": 2}, 2) == [(98, 97), (98, 99)]


def test_runs_merge_from_the_left():
    # "aaa": both of its pairs count, one is merged.
    assert reference.learn_merges({b"aaa": 2, b"bc": 3}, 2) == [(97, 97), (98, 99)]
    assert reference.encode_piece(b"aaaaa", {(97, 97): 256}) == [256, 256, 97]


# ---------------------------------------------------------------- splitting


def random_texts(count: int, seed: int) -> list[str]:
    """Short texts of characters that the pattern tells apart, and of any others."""
    rng = random.Random(seed)
    common = [*"aZé你ſsSdDlLrReEvVtTmM'''   \n\r\t10٣Ⅻ.,=-_\0", "\u00a0", "\u3000", "\u0301", "🙂"]
    common += ["\u2028", "\x85", "'ll", "'RE", "\r\n", "    ", "\u088f", "\x1c", "\ufffd"]
    letters, numbers = unicode_ranges("LETTERS"), unicode_ranges("NUMBERS")
    edges = [chr(c + d) for a, b in letters + numbers for c in (a, b) for d in (-1, 0, 1)]

    def one() -> str:
        kind = rng.random()
        if kind < 0.7:
            return "".join(rng.choices(common, k=rng.randrange(24)))
        return "".join(rng.choice(common) + rng.choice(edges) for _ in range(rng.randrange(12)))

    return [one() for _ in range(count)]


@pytest.mark.slow
def test_scanner_splits_as_the_pattern_does(core):
    for text in [*random_texts(200_000, seed=1), *KINDS.values()]:
        assert native.split(core, text) == SPLITTER.pieces(text), repr(text)


@pytest.mark.slow
def test_blocks_of_ascii_are_split_as_the_pattern_does(core):
    # 64 bytes are split at once: all short sequences of what the pattern tells apart.
    for characters in product("as1 \t\n.'l", repeat=5):
        text = "".join(characters) + "behind" * 12
        assert native.split(core, text) == SPLITTER.pieces(text), repr(text)


@pytest.mark.slow
def test_long_texts_are_split_as_the_pattern_does(core):
    rng = random.Random(2)
    plain = [*"aZsTdlrevm\n\n\r\t10234.,=-_()", "'", "'", '"', "word", "Behind", " ", " ", " " * 8]
    plain += ["'ll", "\r\n", "   \n"]
    for rare in ("", "é", "\x1c", "\x7f", "\u3000", "٣", "ſ"):
        for _ in range(1000):
            weights = [1] * len(plain) + [0.3]
            text = "".join(rng.choices([*plain, rare], weights, k=rng.randrange(40, 200)))
            assert native.split(core, text) == SPLITTER.pieces(text), repr(text)


@pytest.mark.slow
def test_scanner_takes_every_code_point(core):
    for first in range(0, 0x110000, 64):
        block = [chr(c) for c in range(first, first + 64) if not 0xD800 <= c < 0xE000]
        text = "".join(f"a{c}1 {c}" for c in block)
        assert native.split(core, text) == SPLITTER.pieces(text), hex(first)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=40))
@example(data=b"\xe2\x82 \xc0\x80\xed\xa0\x80\xf4\x90\x80\x80\xf0\x9f\x99x\xff\xfe\xe2\x82")
def test_scanner_takes_any_bytes(core, data):
    pieces = native.split(core, data)
    assert pieces == SPLITTER.pieces(data)
    assert b"".join(pieces) == data


@settings(max_examples=300, deadline=None)
@given(data=st.text("ab \n\r.é\u3000", max_size=30))
def test_long_texts_are_cut_only_where_a_piece_begins_anyway(core, data):
    # Behind a letter before a blank, and behind a newline before what is no white space.
    whole = SPLITTER.pieces(data)
    for i in range(1, len(data)):
        letter = data[i - 1].isalpha() and data[i] == " "
        if letter or (data[i - 1] == "\n" and not data[i].isspace()):
            assert SPLITTER.pieces(data[:i]) + SPLITTER.pieces(data[i:]) == whole


@pytest.mark.slow
def test_one_long_text_equals_its_parts(core, merges):
    text = KINDS["english"] * 400 + KINDS["white space"] * 200 + KINDS["CRLF"] * 400
    assert len(text) > 1 << 20  # cut in four or more
    assert bpe.Encoder(merges).encode_batch([text], 2)[0].tolist() == encode_with(text, merges)
    assert bpe.train([text], 300, num_threads=2) == python_train([text], 300)


# ---------------------------------------------------------------- training


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.text("ab ", max_size=20), max_size=6), size=st.integers(256, 300))
def test_merges_equal_the_reference(texts, size):
    assert bpe.train(texts, size, num_threads=1) == python_train(texts, size)


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.text("abc", min_size=1, max_size=60), max_size=20))
@example(words=["a" * n for n in range(60)])
@example(words=["ab" * 20 + "a", "ba" * 20, "aab" * 13, "abab" * 9])
def test_merges_of_overlaps_and_ties_equal_the_reference(words):
    texts = [" ".join(words)]
    assert bpe.train(texts, 600) == python_train(texts, 600)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_merges_equal_rustbpe(kind):
    text = KINDS[kind]
    other = rustbpe.Tokenizer()
    other.train_from_iterator(iter([text]), 600, pattern=SPLIT_PATTERN)
    expected = [bytes(t) for t, _ in sorted(other.get_mergeable_ranks(), key=lambda pair: pair[1])]
    found = bpe.train([text], 600)
    assert token_bytes(found) == expected
    assert found == python_train([text], 600)


def test_weights_have_64_bits(core):
    words = [b"ab", b"cd", b"ce"]
    weights = np.array([2**33, 2**32, 2**33 + 1], np.uint64)
    batch = native.of_texts(words)
    counter = core.counter()
    addresses, lengths = batch.addresses.ctypes.data, batch.lengths.ctypes.data
    for _ in range(2):
        core.checked(core.add(counter, addresses, lengths, weights.ctypes.data, 3))
    learner = core.checked(core.learner(counter))
    assert native.learn_merges(core, learner, 9) == [(99, 101), (97, 98), (99, 100)]
    core.learner_free(learner)
    core.counter_free(counter)


@pytest.mark.slow
def test_any_number_of_threads(merges):
    texts = [*KINDS.values(), *random_texts(2000, seed=2)] * 2
    expected = bpe.train(texts, 1500, num_threads=1)
    encoder = bpe.Encoder(merges)
    ids, offsets = encoder.encode_batch(texts, 1)
    for threads in (2, 8):
        assert bpe.train(texts, 1500, num_threads=threads) == expected
        again = encoder.encode_batch(texts, threads)
        np.testing.assert_array_equal(again[0], ids)
        np.testing.assert_array_equal(again[1], offsets)


def arrow_columns(texts: list[str]) -> dict[str, list]:
    column = pa.array(texts)
    some = pa.array([None, *texts[:3], None, *texts[3:]])
    return {
        "string": [column],
        "large string": [column.cast(pa.large_string())],
        "string view": [column.cast(pa.string_view())],
        "binary": [column.cast(pa.binary())],
        "dictionary": [column.dictionary_encode()],
        "chunked": [pa.chunked_array([column[:2], column[2:]])],
        "sliced": [pa.concat_arrays([pa.array(["no"]), column])[1:][:4], column[4:]],
        "with nulls": [some],
        "mixed with strings": [texts[0], column[1:3], *texts[3:]],
    }


@pytest.mark.parametrize("kind", arrow_columns(["a"] * 5))
def test_arrow_columns_equal_strings(kind, merges):
    texts = [*KINDS.values(), ""]
    columns = arrow_columns(texts)[kind]
    assert bpe.train(columns, 700) == bpe.train(texts, 700)
    ids, offsets = bpe.Encoder(merges).encode_batch(columns)
    expected = bpe.Encoder(merges).encode_batch(texts)
    np.testing.assert_array_equal(ids, expected[0])
    lengths = np.diff(offsets)
    if kind == "with nulls":
        assert lengths[0] == lengths[4] == 0
        lengths = np.delete(lengths, [0, 4])
    np.testing.assert_array_equal(lengths, np.diff(expected[1]))


def test_arrow_of_another_type_is_refused():
    with pytest.raises(TypeError, match="found an Arrow array of int64; expected strings"):
        bpe.train([pa.array([1, 2])], 300)


def test_other_pattern_equals_the_reference(merges):
    pattern = r"\p{Lu}?\p{Ll}+|\d"  # it leaves much unmatched
    texts = ["Some textOf CamelCase 123, and more!", "", "x\ud800y\u088f", KINDS["emoji"]] * 3
    found = bpe.train(texts, 330, pattern)
    assert found == python_train(texts, 330, pattern)
    splitter = Splitter(pattern)
    encoder = bpe.Encoder(found, pattern)
    ids, offsets = encoder.encode_batch(texts)
    numbered = {pair: 256 + i for i, pair in enumerate(found)}
    for i, text in enumerate(texts):
        expected = reference.encode(text, numbered, splitter)
        assert ids[offsets[i] : offsets[i + 1]].tolist() == encoder.encode(text) == expected
    assert bpe.train([pa.array(texts[:2])], 330, pattern) == bpe.train(texts[:2], 330, pattern)


@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["a", "b"], [pa.array([], pa.string())]])
def test_nothing_to_learn_from(texts, capsys):
    assert bpe.train(texts, 300) == []
    assert "after 0 of 44 merges the text has no pair of tokens left" in capsys.readouterr().out


def test_exhaustion_is_told(capsys):
    assert bpe.train(["ab ab ab abc"], 300) == [(97, 98), (32, 256), (257, 99)]
    assert "after 3 of 44 merges" in capsys.readouterr().out
    bpe.train(["ab ab ab abc"], 259)
    assert not capsys.readouterr().out


def test_a_size_below_the_bytes_is_refused():
    with pytest.raises(ConfigError, match="200 has no room for the 256 bytes"):
        bpe.train(["a"], 200)


MEMORY = """
import gc, resource, sys
from nanochat.bpe import encoder as bpe
change = {"long": str, "short": lambda text: text[:4], "foreign": lambda text: text + "\u00e9"}
text = open(sys.argv[1]).read()
bpe.train([text] * 2, 400)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
gc.disable()  # nothing may have to wait for it
text = change[sys.argv[2]](text)
bpe.train((text + str(i) for i in range(int(100e6) // len(text))), 400)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def run_python(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(sys.platform == "darwin", reason="ru_maxrss has another unit there")
@pytest.mark.parametrize("kind", ["long", "short", "foreign"])
@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(kind):
    result = run_python(MEMORY.replace("100e6", "20e6" if kind == "short" else "100e6"),
                        argparse.__file__, kind)  # fmt: skip
    # MiB; of 100 MB of text, or 5 million strings that would take 260 MB
    assert float(result.stdout.split()[-1]) < 80, result.stderr


def test_one_text_in_the_place_of_several_and_what_is_no_text():
    assert bpe.train(pa.array(["ab ab ab abc"]), 257) == [(97, 98)]
    assert bpe.train(pa.chunked_array([["ab"], [], ["ab"]]), 257) == [(97, 98)]
    for texts in ("ab ab", b"ab ab"):
        with pytest.raises(TypeError, match="expected several texts: give a list"):
            bpe.train(texts, 257)
    with pytest.raises(TypeError, match="found a list, expected str or bytes"):
        bpe.train([["ab"]], 257)
    for number in (2**32, 1.5, "2"):
        with pytest.raises(ConfigError, match="num_threads is .*give 1 to"):
            bpe.train(["ab"], 257, num_threads=number)


# ---------------------------------------------------------------- encoding


@pytest.mark.slow
def test_ids_equal_tiktoken_and_tokenizers(merges):
    tokens = token_bytes(merges)
    ranks = {token: i for i, token in enumerate(tokens)}
    other = tiktoken.Encoding("x", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    fast = byte_level_bpe(merges, list(range(len(tokens))), SPLIT_PATTERN)
    encoder = bpe.Encoder(merges)
    texts = [*KINDS.values(), *random_texts(3000, seed=3)]
    ids, offsets = encoder.encode_batch(texts)
    for i, text in enumerate(texts):
        found = ids[offsets[i] : offsets[i + 1]].tolist()
        assert found == other.encode_ordinary(text), repr(text[:80])
        assert found == fast.encode(text, add_special_tokens=False).ids, repr(text[:80])
        assert found == encoder.encode(text) == encode_with(text, merges)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200) | st.text(max_size=80))
@pytest.mark.slow
def test_round_trip_of_any_bytes(merges, data):
    encoder = bpe.Encoder(merges)
    ids = encoder.encode(data)
    expected = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
    assert decode(ids, merges) == expected
    assert encoder.encode_batch([data, data])[0].tolist() == 2 * ids


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab", max_size=700), words=st.lists(st.text("ab", min_size=1, max_size=9)))
def test_pieces_of_any_length_equal_the_reference(text, words):
    found = bpe.train([" ".join(words)], 330)
    ids = {pair: 256 + i for i, pair in enumerate(found)}
    assert bpe.Encoder(found).encode(text) == reference.encode_piece(text.encode(), ids)


def test_merges_that_no_training_gives():
    # By pair, not by bytes: "abc" could also be (ab, c), but that is not what was learned.
    found = [(98, 99), (97, 98), (97, 256)]
    assert bpe.Encoder(found).encode("abc ab") == [258, 32, 257]
    assert bpe.Encoder([(97, 98), (98, 99), (97, 257)]).encode("abc") == [256, 99]


@pytest.mark.parametrize("wrong, reason", [([(97, 257), (1, 2)], "later"), ([(1, 2)] * 2, "twice")])
def test_wrong_merges_are_refused(wrong, reason):
    with pytest.raises(RuntimeError, match=reason):
        bpe.Encoder(wrong)


def test_other_ids_and_dtype(merges):
    ids = [65535 - i for i in range(256 + len(merges))]
    encoder = bpe.Encoder(merges, ids=ids, dtype=np.uint16)
    found = encoder.encode_batch(["some words here"])[0]
    assert found.dtype == np.uint16
    plain = bpe.Encoder(merges).encode("some words here")
    assert found.tolist() == [ids[i] for i in plain] == encoder.encode("some words here")
    with pytest.raises(ConfigError, match="ids up to 65535"):
        bpe.Encoder(merges, ids=[i + 65000 for i in ids], dtype=np.uint16)
    for dtype in (np.uint8, np.int64, ">u2"):
        with pytest.raises(ConfigError, match="uint16 or uint32"):
            bpe.Encoder([], dtype=dtype)


def test_empty_and_odd_texts(merges):
    encoder = bpe.Encoder(merges)
    ids, offsets = encoder.encode_batch([])
    assert ids.tolist() == [] and offsets.tolist() == [0]
    texts = ["", "a\0b", "", "x\ud800y", "\ud83d\ude42", b"\xff\0\xe2\x82"]
    expected = [encode_with(text, merges) for text in texts]
    ids, offsets = encoder.encode_batch(texts)
    assert [ids[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)] == expected
    assert [encoder.encode(text) for text in texts] == expected
    assert encoder.encode("x\ud800y") == encoder.encode("x\ufffdy")
    assert encoder.encode("\ud83d\ude42") == encoder.encode("🙂")


@pytest.mark.parametrize("text", ["a" * 2_000_000, "ab" * 10**6, " " * 2_000_000, "\u3000" * 10**6])
def test_two_million_bytes_without_a_boundary(text, merges):
    ids = bpe.Encoder(merges).encode(text)  # in quadratic time this would not end
    assert decode(ids, merges) == text.encode()
    start = time.process_time()
    bpe.train([text], 300)
    assert time.process_time() - start < 4


@pytest.mark.slow
def test_more_words_than_the_encoder_remembers(merges):
    rng = random.Random(5)
    words = [" " + "".join(rng.choices("abcdefgh", k=9)) for _ in range(1_300_000)]
    assert len(set(words)) > 1 << 20  # that many are remembered
    text = "".join(words)
    encoder = bpe.Encoder(merges)
    first, second = encoder.encode_batch([text] * 2, 1)[0].reshape(2, -1)
    assert first.tolist() == second.tolist()
    assert decode(first.tolist(), merges) == text.encode()
    tail = "".join(words[-200:])
    assert encoder.encode(tail) == encode_with(tail, merges)


@pytest.mark.slow
def test_many_python_threads_share_an_encoder(merges):
    encoder = bpe.Encoder(merges)
    texts = random_texts(4000, seed=4)
    expected = [encoder.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(encoder.encode, texts)) == expected
        batches = pool.map(lambda _: encoder.encode_batch(texts, 3)[0].tolist(), range(8))
        assert all(batch == sum(expected, []) for batch in batches)


def test_a_negative_number_of_threads_is_refused():
    with pytest.raises(ConfigError, match="num_threads is -1; give 1 to 4,096"):
        bpe.train(["a"], 300, num_threads=-1)
    with pytest.raises(ConfigError, match="num_threads is -2"):
        bpe.Encoder([]).encode_batch(["a"], -2)


INTERRUPTED = """
import os, signal, sys, threading, time
from nanochat.bpe import encoder as bpe

def interrupt():
    for _ in range(3):
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

encoder = bpe.Encoder([(97, 98)])
text = "".join(f"w{i} x{i}y" for i in range(2_000_000))
work = {
    "train": lambda: bpe.train([text] * 4, 400, num_threads=2),
    "encode": lambda: encoder.encode_batch([text] * 4, 2),
}[sys.argv[1]]
thread = threading.Thread(target=interrupt)
try:
    thread.start()
    work()
except KeyboardInterrupt:
    pass
print("alive")
"""


@pytest.mark.parametrize("work", ["train", "encode"])
@pytest.mark.slow
def test_interrupted_twice_while_a_batch_is_at_work(work):
    # The second interruption ends the waiting for the thread that is at work in the core.
    assert run_python(INTERRUPTED, work).returncode in (0, 1, -signal.SIGINT)


AT_THE_END = """
import threading, time
from nanochat.bpe import encoder as bpe
encoder = bpe.Encoder([(97, 98)])
text = "".join(f"w{i} x{i}y" for i in range(2_000_000))
threading.Thread(target=lambda: encoder.encode(text), daemon=True).start()
time.sleep(0.1)
"""


@pytest.mark.slow
def test_the_interpreter_ends_while_a_thread_encodes():
    assert run_python(AT_THE_END).returncode == 0


def test_ids_outlive_their_encoder(merges):
    ids = bpe.Encoder(merges).encode_batch([CODE] * 20)[0]
    expected = ids.tolist()
    part = ids[1000:]
    del ids
    bpe.Encoder(merges).encode_batch([b"\0" * 100_000] * 20)
    assert part.tolist() == expected[1000:]


@pytest.mark.slow
def test_a_failing_text_ends_encoding_and_training(merges):
    def texts():
        yield from [CODE] * 900  # more than a batch
        raise OSError("the disk is gone")

    encoder = bpe.Encoder(merges)
    for threads in (1, 2):
        with pytest.raises(OSError, match="the disk is gone"):
            encoder.encode_batch(texts(), threads)
        with pytest.raises(OSError, match="the disk is gone"):
            bpe.train(texts(), 300, num_threads=threads)
    assert decode(encoder.encode_batch([CODE])[0].tolist(), merges) == CODE.encode()


def test_an_encoder_can_be_pickled(merges):
    encoder = pickle.loads(pickle.dumps(bpe.Encoder(merges, dtype=np.uint16)))
    assert encoder.encode_batch(["abc"])[0].dtype == np.uint16
    assert encoder.encode(CODE) == bpe.Encoder(merges).encode(CODE)


# ---------------------------------------------------------------- without the core


@pytest.mark.slow
def test_fallback_gives_equal_ids(merges):
    encoder = FallbackEncoder(merges, list(range(256 + len(merges))), SPLIT_PATTERN)
    texts = [
        *KINDS.values(),
        *random_texts(500, seed=6),
        b"\xff \xe2\x82",
        "x\ud800",
        " " * 300_000,
    ]
    ids, offsets = encoder.encode_batch([*texts, pa.array(["a", None])], np.uint16, 1)
    expected = bpe.Encoder(merges).encode_batch([*texts, "a", ""])
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_array_equal(offsets, expected[1])
    assert encoder.encode(KINDS["code"]) == bpe.Encoder(merges).encode(KINDS["code"])


def test_without_the_core_a_long_piece_is_encoded_alike(merges, monkeypatch):
    ids = list(range(1, 257 + len(merges)))  # not the merges' own numbers
    fallback = FallbackEncoder(merges, ids, SPLIT_PATTERN)
    called = []
    monkeypatch.setattr("nanochat.bpe.fallback.encode_piece", lambda *_: called.append(1) or [0])
    long = "the" * 60_000
    assert fallback.encode(long) == bpe.Encoder(merges, ids=ids).encode(long)
    assert not called  # reference.py's time grows with the square of the length


TRAIN = """
from nanochat.bpe import encoder as bpe
merges = bpe.train(["low lower lowest"] * 3, 262)
print(merges, bpe.Encoder(merges).encode("lower!"))
print(bpe.Encoder(merges).encode_batch(["low", ""])[1].tolist())
"""
EXPECTED = (
    "[(108, 111), (256, 119), (32, 257), (258, 101), (115, 116), (259, 114)] [257, 101, 114, 33]"
)


def check_result(result: subprocess.CompletedProcess) -> list[str]:
    """The lines printed before the right result."""
    *lines, trained, offsets = result.stdout.splitlines()
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert offsets == "[0, 1, 1]" and trained == EXPECTED, result.stdout
    return [*lines, trained]


@pytest.mark.slow
def test_python_can_be_forced():
    native_line = check_result(run_python(TRAIN))
    python_lines = check_result(run_python(TRAIN, NANOCHAT_BPE="python"))
    assert len(native_line) == 1 and python_lines[-1] == native_line[0]
    assert len(python_lines) == 2 and "NANOCHAT_BPE=python" in python_lines[0]
    wrong = run_python(TRAIN, NANOCHAT_BPE="rust")
    assert "NANOCHAT_BPE='rust' is unknown; choose python" in wrong.stderr


@pytest.mark.slow
def test_without_a_compiler_one_line_says_so(tmp_path):
    lines = check_result(run_python(TRAIN, PATH=str(tmp_path), CXX=""))
    assert len(lines) == 2
    for part in ("looked for $CXX, g++, clang++, c++", "as long", "apt install g++"):
        assert part in lines[0]


@pytest.mark.slow
def test_a_compiler_with_arguments_and_one_that_is_not_there(monkeypatch, tmp_path):
    plain = cpp_compiler()
    monkeypatch.setattr(cpp, "build", lambda source, compiler, folder: folder.mkdir())
    monkeypatch.setenv("CXX", f"{plain} -DNANOCHAT")
    assert cpp_compiler() == f"{plain} -DNANOCHAT"
    places = {cpp.compiled(native.SOURCE, command, tmp_path) for command in (plain, cpp_compiler())}
    assert len(places) == 2  # what was compiled with other arguments is another library
    monkeypatch.setenv("CXX", " ")
    assert cpp_compiler() == plain and len(check_result(run_python(TRAIN))) == 1
    monkeypatch.setenv("CXX", f"{plain} -DNANOCHAT")
    assert len(check_result(run_python(TRAIN))) == 1
    lines = check_result(run_python(TRAIN, CXX="/nowhere/g++-99 -m64"))
    assert len(lines) == 2 and "CXX='/nowhere/g++-99 -m64' is not there" in lines[0]


@pytest.mark.slow
def test_where_nothing_can_be_kept_it_is_compiled_anew(tmp_path):
    (tmp_path / "bpe").write_text("a file")
    lines = check_result(run_python(TRAIN, NANOCHAT_BASE_DIR=str(tmp_path)))
    assert len(lines) == 2 and "cannot be kept" in lines[0] and "File exists" in lines[0]


WRITES_JUNK = '[ "${@: -1}" = --version ] || echo junk > "${@: -1}"'


@pytest.mark.parametrize("script", ["echo sorry >&2; exit 1", "exit 0", WRITES_JUNK])
@pytest.mark.slow
def test_a_broken_compiler(tmp_path, script):
    compiler = tmp_path / "broken"
    compiler.write_text(f"#!/usr/bin/env bash\n{script}\n")
    compiler.chmod(0o755)
    base = tmp_path / "base"
    lines = check_result(run_python(TRAIN, CXX=str(compiler), NANOCHAT_BASE_DIR=str(base)))
    assert len(lines) == 2 and f"the C++ compiler {compiler} does not work" in lines[0]


@pytest.mark.slow
def test_processes_that_compile_at_once(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NANOCHAT_BASE_DIR": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    results = [process.communicate()[0] for process in started]
    assert len(set(results)) == 1 and results[0].count("\n") == 2
    (place,) = (tmp_path / "bpe").iterdir()  # nothing is left lying about
    assert sorted(p.name for p in place.iterdir()) == ["core.so", "sha256"]


@pytest.mark.parametrize("damage", ["truncate", "garbage", "no hash", "no library", "a file"])
@pytest.mark.slow
def test_a_damaged_cache_is_compiled_again(tmp_path, capsys, damage):
    source = native.SOURCE._replace(flags=("-O0", *native.SOURCE.flags[1:]))  # quickly
    folder, compiler = tmp_path / "bpe", cpp_compiler()
    library = cpp.compiled(source, compiler, folder)
    place = library.parent
    made = library.stat().st_mtime_ns
    assert cpp.compiled(source, compiler, folder) == library and library.stat().st_mtime_ns == made
    if damage == "truncate":
        library.write_bytes(library.read_bytes()[:5000])
    elif damage == "garbage":
        library.write_bytes(b"\0" * 5000)
    elif damage == "no hash":
        (place / "sha256").unlink()
    elif damage == "no library":
        library.unlink()
    else:
        shutil.rmtree(place)
        place.write_text("?")
    assert cpp.compiled(source, compiler, folder) == library
    assert capsys.readouterr().out.count("is damaged; compiling again") == 1
    assert cpp.is_whole(place) and list(folder.iterdir()) == [place]


# ---------------------------------------------------------------- progress


def test_progress_is_told(monkeypatch):
    steps = {"counting words": 0, "learning merges": 0}

    def progress(description, total, unit=""):
        class Bar:
            def __enter__(self):
                return lambda n=1: steps.update({description: steps[description] + n})

            def __exit__(self, *error):
                return None

        return Bar()

    monkeypatch.setattr(native, "progress", progress)
    bpe.train([CODE] * 3, 900)
    assert steps == {"counting words": 3 * len(CODE.encode()), "learning merges": 644}
