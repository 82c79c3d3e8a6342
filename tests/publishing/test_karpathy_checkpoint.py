"""karpathy/nanochat's files: read exactly, others refused by name, no code of a pickle run."""

import base64
import json
import os
import pickle

import pytest
import torch
import torch.nn.functional as F
from tiny_checkpoint import tiny_model, tiny_tokenizer

from nanochat.checkpoint_manager import load_model
from nanochat.common import CheckpointError, DataError
from nanochat.publishing.import_model import make_checkpoint, read_published
from nanochat.publishing.import_tokenizer import from_ranks, merges_of_ranks, read_tokenizer_json
from nanochat.publishing.karpathy_checkpoint import (
    NAMES,
    read_karpathy_checkpoint,
    read_pickled_tokenizer,
)
from nanochat.publishing.parity_texts import texts
from nanochat.publishing.tokenizer_search import PATTERNS
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer

tiktoken = pytest.importorskip("tiktoken", reason="needs tiktoken, in the [dev] extra")

SHAPE = {"sequence_len": 64, "vocab_size": 320, "n_layer": 2, "n_head": 2, "n_kv_head": 1}
SHAPE |= {"n_embd": 128}


def encoding_of(tokenizer: Tokenizer):
    """The tiktoken.Encoding that upstream would hold, special tokens right after the merges."""
    ranks = tokenizer.parts.ids
    specials = {name: len(ranks) + i for i, name in enumerate(tokenizer.special_ids)}
    return tiktoken.Encoding(
        "rustbpe",
        pat_str=PATTERNS["karpathy/nanochat"],
        mergeable_ranks=ranks,
        special_tokens=specials,
    )


def write_upstream(folder, model, tokenizer, **config):
    """A folder as upstream's scripts leave it: names, a compiled model's prefix, bfloat16 table."""
    folder.mkdir(exist_ok=True)
    tensors = {}
    for name, tensor in model.state_dict().items():
        for theirs, ours in NAMES.items():
            name = name.replace(ours, theirs)
        tensors["_orig_mod." + name] = tensor.bfloat16() if "wte" in name else tensor
    torch.save(tensors, folder / "model_000650.pt")
    meta = {"step": 650, "val_bpb": 0.8, "model_config": {**SHAPE, **config}, "user_config": {}}
    (folder / "meta_000650.json").write_text(json.dumps(meta))
    with (folder / "tokenizer.pkl").open("wb") as file:
        pickle.dump(encoding_of(tokenizer), file)
    return tensors


def upstream_logits(tensors, ids):
    """What upstream's first architecture computes, written down from its description: embedding,
    norm, blocks of rotary attention with normed queries and keys and of a relu squared MLP, norm,
    head, soft-cap 15."""
    w = {k.removeprefix("_orig_mod.transformer."): v.float() for k, v in tensors.items()}

    def norm(x):
        return F.rms_norm(x, (x.shape[-1],), eps=1e-6)

    x = norm(w["wte.weight"][ids])  # (T, D)
    T, K = len(ids), 64
    angles = torch.arange(T)[:, None] * 10_000.0 ** (-torch.arange(0, K, 2) / K)
    cos, sin = angles.cos()[None], angles.sin()[None]

    def heads(y, name):
        y = (y @ w[name].T).view(T, -1, K).transpose(0, 1)  # (H, T, K)
        return y

    def rotate(y):
        a, b = y[..., : K // 2], y[..., K // 2 :]
        return torch.cat([a * cos + b * sin, -a * sin + b * cos], -1)

    for i in range(2):
        y, at = norm(x), f"h.{i}.attn"
        q, k, v = (heads(y, f"{at}.c_{n}.weight") for n in "qkv")
        q, k = norm(rotate(q)), norm(rotate(k)).expand(2, -1, -1)
        scores = (q @ k.transpose(1, 2)) / K**0.5
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        y = (scores.softmax(-1) @ v.expand(2, -1, -1)).transpose(0, 1).reshape(T, -1)
        x = x + y @ w[f"{at}.c_proj.weight"].T
        y = F.relu(norm(x) @ w[f"h.{i}.mlp.c_fc.weight"].T).square()
        x = x + y @ w[f"h.{i}.mlp.c_proj.weight"].T
    return 15 * torch.tanh(norm(x) @ tensors["_orig_mod.lm_head.weight"].T / 15)


@pytest.mark.slow
def test_a_classic_checkpoint_computes_the_same_here(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    model, tokenizer = tiny_model(n_kv_head=1), tiny_tokenizer()
    tensors = write_upstream(tmp_path / "up", model, tokenizer)
    path = make_checkpoint(read_published(tmp_path / "up"), "upstream", "base")
    assert path.name == "step_000650"
    native, found, meta = load_model("base", "cpu", phase="eval")
    assert meta["imported"]["meta"]["val_bpb"] == 0.8
    ids = torch.randint(0, 320, (40,))
    with torch.no_grad():
        expected, computed = upstream_logits(tensors, ids), native(ids[None])[0]
    assert expected.std() > 0.5 and (expected - computed).abs().max() < 1e-4
    encoding = encoding_of(tokenizer)
    for text in texts():
        assert found.encode_ordinary(text) == encoding.encode_ordinary(text), text
    assert found.special("<|bos|>") == encoding.encode_single_token("<|bos|>")


@pytest.mark.parametrize("name", ["value_embeds.1.weight", "resid_lambdas", "smear_gate.weight"])
def test_later_architectures_are_refused_by_name(tmp_path, name):
    tensors = write_upstream(tmp_path, tiny_model(n_kv_head=1), tiny_tokenizer())
    torch.save({**tensors, name: torch.zeros(2)}, tmp_path / "model_000650.pt")
    with pytest.raises(CheckpointError, match=f"later architectures cannot .*: {name} has shape"):
        read_karpathy_checkpoint(tmp_path)


def test_other_shapes_and_missing_parts_are_refused(tmp_path):
    tensors = write_upstream(
        tmp_path, tiny_model(n_kv_head=1), tiny_tokenizer(), window_pattern="L"
    )
    assert read_karpathy_checkpoint(tmp_path)[1].n_kv_head == 1
    for config, message in (
        ({"window_pattern": "SSSL"}, "attention over short windows"),
        ({"n_experts": 8}, "model_config has n_experts"),
        ({"n_kv_head": 2}, r"k_proj.weight has shape \(64, 128\), .* \(128, 128\)"),
        ({"n_layer": 3}, r"model.layers.2.mlp.fc1.weight has shape None"),
    ):
        meta = {"step": 650, "model_config": {**SHAPE, **config}}
        (tmp_path / "meta_000650.json").write_text(json.dumps(meta))
        with pytest.raises(CheckpointError, match=message):
            read_karpathy_checkpoint(tmp_path)
    (tmp_path / "tokenizer.pkl").unlink()
    (tmp_path / "meta_000650.json").write_text(json.dumps({"model_config": SHAPE}))
    with pytest.raises(CheckpointError, match="has no tokenizer.pkl; name it with --tokenizer"):
        read_karpathy_checkpoint(tmp_path)
    torch.save({**tensors, "evil": Evil()}, tmp_path / "model_000650.pt")
    with pytest.raises(CheckpointError, match="is not a file of tensors alone"):
        read_karpathy_checkpoint(tmp_path)
    assert "NANOCHAT_EVIL" not in os.environ


def test_the_newest_step_is_read_and_damaged_settings_are_told(tmp_path, capsys):
    tensors = write_upstream(tmp_path, tiny_model(n_kv_head=1), tiny_tokenizer())
    for step in (999_999, 1_000_000):
        torch.save(tensors, tmp_path / f"model_{step}.pt")
        meta = {"step": step, "model_config": SHAPE}
        (tmp_path / f"meta_{step}.json").write_text(json.dumps(meta))
    assert read_karpathy_checkpoint(tmp_path)[3]["step"] == 1_000_000
    assert "holds 3 steps; model_1000000.pt is read" in capsys.readouterr().out
    (tmp_path / "meta_1000000.json").write_text("{")
    with pytest.raises(CheckpointError, match="meta_1000000.json is not JSON"):
        read_karpathy_checkpoint(tmp_path)


def test_damaged_files_end_in_a_message(tmp_path):
    tensors = write_upstream(tmp_path, tiny_model(n_kv_head=1), tiny_tokenizer())
    path, meta = tmp_path / "model_000650.pt", tmp_path / "meta_000650.json"
    good = json.loads(meta.read_text())
    for record, message in (
        ([], "holds a list, expected a dictionary"),
        ({**good, "model_config": None}, "model_config is None"),
        ({**good, "model_config": {**SHAPE, "vocab_size": "320"}}, "vocab_size is '320'"),
        ({**good, "model_config": {**SHAPE, "n_head": 0}}, "n_head is 0"),
        ({**good, "model_config": {**SHAPE, "n_layer": 10**6}}, "1000000 layers"),
        ({**good, "step": None}, "step is None"),
        ({**good, "step": "x"}, "step is 'x'"),
    ):
        meta.write_text(json.dumps(record))
        with pytest.raises(CheckpointError, match=message):
            make_checkpoint(read_published(tmp_path), "damaged", "base")
    meta.write_text(json.dumps({**good, "user_config": None}))  # as some have it
    for loaded in ([torch.zeros(2)], torch.zeros(2), {"model": tensors}, {**tensors, "x": 3}):
        torch.save(loaded, path)
        with pytest.raises(CheckpointError, match="not a dictionary of tensors"):
            read_karpathy_checkpoint(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is not a file of tensors alone"):
        read_karpathy_checkpoint(tmp_path)
    torch.save(tensors, path)
    assert make_checkpoint(
        read_published(tmp_path), "damaged", "base"
    ).is_dir()  # user_config is null


def test_padding_of_the_vocabulary_is_kept_and_said(tmp_path, capsys):
    write_upstream(tmp_path, tiny_model(n_kv_head=1), tiny_tokenizer(), vocab_size=300)
    assert read_karpathy_checkpoint(tmp_path)[1].vocab_size == 320
    assert "the vocabulary is padded to 320" in capsys.readouterr().out


# ---------------------------------------------------------------- pickles


class Evil:
    def __reduce__(self):
        return exec, ("import os; os.environ['NANOCHAT_EVIL'] = '1'",)


class EvilSystem:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("evil", [Evil, EvilSystem])
def test_no_code_of_a_pickle_runs(tmp_path, monkeypatch, protocol, evil):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(pickle.dumps(evil(), protocol=protocol))
    with pytest.raises(DataError, match="Nothing in it was run"):
        read_pickled_tokenizer(path)
    path.write_bytes(pickle.dumps({"name": evil()}, protocol=protocol))
    with pytest.raises(DataError, match="Nothing in it was run"):
        read_pickled_tokenizer(path)
    assert "NANOCHAT_EVIL" not in os.environ and not (tmp_path / "evil").exists()


HOSTILE = {
    "another class": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "another class by GLOBAL": b"\x80\x02cos\nsystem\n.",
    "a huge memo": b"\x80\x04Nr\xff\xff\xff\x7f.",
    "a registered extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"\x80\x02Pname\n.",
    "reduce of the allowed class": b"\x80\x04\x8c\rtiktoken.core\x8c\x08Encoding\x93)R.",
    "cut short": b"\x80\x04\x8c\rtiktoken.core",
    "nothing": b"",
    "text": b"hello",
    "popping what is not there": b"\x80\x040.",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_pickles_are_refused(tmp_path, data):
    (tmp_path / "tokenizer.pkl").write_bytes(data)
    with pytest.raises(DataError):
        read_pickled_tokenizer(tmp_path / "tokenizer.pkl")


def test_pickles_of_other_things_are_refused(tmp_path):
    path = tmp_path / "tokenizer.pkl"
    state = {"name": "x", "pat_str": ".", "mergeable_ranks": {b"a": 0}, "special_tokens": {}}
    for value, message in (
        ({"a": 1}, "is not a plain pickle of a tiktoken.Encoding"),
        (tiktoken_state({**state, "mergeable_ranks": {"a": 0}}), "the token 'a' with the id 0"),
        (tiktoken_state({**state, "pat_str": 5}), "pat_str is 5"),
        (tiktoken_state("gpt2"), "is not a plain pickle of a tiktoken.Encoding with its tokens"),
    ):
        path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value))
        with pytest.raises(DataError, match=message):
            read_pickled_tokenizer(path)


def tiktoken_state(state) -> bytes:
    """A pickle of an Encoding with any state, spelt by hand."""
    head = b"\x80\x04\x8c\rtiktoken.core\x94\x8c\x08Encoding\x94\x93\x94)\x81\x94"
    return head + pickle.dumps(state, protocol=4)[2:-1] + b"b."


# ---------------------------------------------------------------- ranks


def test_merges_of_ranks_by_hand():
    ranks = {b"a": 0, b"b": 1, b"ab": 2, b"aba": 3, b"abab": 4}
    # "abab" is ab, ab once the join of rank 2 is made; that of rank 3 would need ab, a.
    assert merges_of_ranks(ranks) == [(b"a", b"b"), (b"ab", b"a"), (b"ab", b"ab")]
    with pytest.raises(DataError, match="b'abc' of rank 3 is not made by a merge"):
        merges_of_ranks({b"a": 0, b"b": 1, b"c": 2, b"abc": 3})


def test_merges_of_a_trained_tokenizer_come_back():
    tokenizer = tiny_tokenizer()
    assert merges_of_ranks(tokenizer.parts.ids) == tokenizer.merges


def test_ranks_that_cannot_be_a_tokenizer():
    tokenizer = tiny_tokenizer()
    ranks, specials = tokenizer.parts.ids, tokenizer.special_ids
    pattern = tokenizer.split_pattern
    for change, message in (
        ((dict(list(ranks.items())[1:]), specials, pattern, 320), "no token for 1 of the 256"),
        ((ranks, {"<|bos|>": 311}, pattern, 320), "has no <|user_start|>".replace("|", r"\|")),
        ((ranks, {n: 5 + i for i, n in enumerate(specials)}, pattern, 320), "the same id"),
        ((ranks, specials, pattern, 256), "largest id is 319, the model has 256"),
    ):
        with pytest.raises(DataError, match=message):
            from_ranks(*change)


# ---------------------------------------------------------------- tokenizer.json of other programs


def test_a_converted_tiktoken_vocabulary_is_read(tmp_path):
    """What published nanochat models carry: every way to join two tokens is listed as a merge."""
    convert = pytest.importorskip("transformers.convert_slow_tokenizer", reason="[export] extra")
    tokenizer = tiny_tokenizer()
    lines = (f"{base64.b64encode(t).decode()} {i}" for t, i in tokenizer.parts.ids.items())
    (tmp_path / "ranks").write_text("\n".join(lines))
    converter = convert.TikTokenConverter(
        vocab_file=str(tmp_path / "ranks"),
        pattern=PATTERNS["karpathy/nanochat"],
        extra_special_tokens=list(tokenizer.special_ids),
    )
    converter.converted().save(str(tmp_path / "tokenizer.json"))
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    assert len(document["model"]["merges"]) > len(tokenizer.merges)
    found = read_tokenizer_json(tmp_path / "tokenizer.json", 320)
    assert found.merges == tokenizer.merges
    encoding = encoding_of(tokenizer)
    for text in texts():
        assert found.encode_ordinary(text) == encoding.encode_ordinary(text), text


def test_a_vocabulary_that_another_library_trained_is_read(tmp_path):
    """Special tokens first, bytes in the order of their visible characters."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    theirs = tokenizers.Tokenizer(models.BPE(byte_fallback=True))
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERNS["nanochat"]), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(["the cat sat on the mat, and the rat ran" * 4], trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    found = read_tokenizer_json(tmp_path / "tokenizer.json", 320)
    assert found.bos == 0 and found.parts.ids[b"!"] == 9 and len(found.merges) > 10
    ids = found.encode("<|bos|>the cat")
    assert ids == theirs.encode("<|bos|>the cat").ids and found.decode(ids) == "<|bos|>the cat"


def test_tokenizers_of_another_kind_are_refused(tmp_path):
    tiny_tokenizer().save(tmp_path)
    path = tmp_path / "tokenizer.json"
    good = path.read_text()
    for change, message in (
        ({"normalizer": {"type": "NFC"}}, r"found a normalizer \(NFC\)"),
        ({"model": {"type": "Unigram"}}, "found a Unigram model, expected BPE"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "text is split by Whitespace"),
        ({"added_tokens": []}, r"has no <\|bos\|>"),
        ({"model": 3}, "is no tokenizer.json of a byte-level BPE"),
    ):
        path.write_text(json.dumps({**json.loads(good), **change}))
        with pytest.raises(DataError, match=message):
            read_tokenizer_json(path, 320)
    path.write_text(good)
    with pytest.raises(DataError, match="largest id is 319, the model has 256"):
        read_tokenizer_json(path, 256)
    document = json.loads(good)  # merges in another order: other ids by the library's own reading
    document["model"]["merges"].reverse()
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="would encode|is not made by a merge"):
        read_tokenizer_json(path, 320)
