"""GGUF: the folded weights compute the same in llama.cpp's graph, and llama.cpp itself agrees."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_model
from tiny_checkpoint import save, tiny_model, tiny_tokenizer

from nanochat.checkpoint.hf_config import from_hf
from nanochat.common import CheckpointError
from nanochat.gpt import GPT
from nanochat.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf", reason="needs the [export] extra")
from nanochat.publishing.gguf import (  # noqa: E402
    ALPHA_N,
    ALPHA_P,
    XIELU_EPS,
    check_gguf_can_hold,
    fold,
    modelfile,
    rounded_weights,
    swap_halves,
    write_gguf,
)
from scripts.export_to_gguf import Config, main  # noqa: E402


def random_model(**overrides):
    """A tiny model without a zero or a symmetry in it."""
    model = make_model(logit_softcap=None, **overrides)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def xielu(x):
    """What llama.cpp's xIELU computes : two branches, softplus of both alphas."""
    alpha_p, alpha_n = (math.log1p(math.exp(alpha)) for alpha in (ALPHA_P, ALPHA_N))
    negative = (torch.expm1(x.clamp(max=XIELU_EPS)) - x) * alpha_n
    return torch.where(x > 0, alpha_p * x * x, negative)


def rotate(x, theta):
    """(T, H, K) turned as llama.cpp turns halves: y1 = x1 cos - x2 sin, y2 = x1 sin + x2 cos."""
    T, _, K = x.shape
    angles = torch.outer(torch.arange(T), theta ** (-torch.arange(0, K, 2) / K))  # (T, K/2)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    x1, x2 = x.chunk(2, -1)
    return torch.cat([x1 * cos - x2 * sin, x1 * sin + x2 * cos], -1)


def apertus(folded, config, ids):
    """The slow twin of llama.cpp's graph for apertus: logits (T, V) of ids (T,)."""

    def norm(x, weight):
        return F.rms_norm(x, x.shape[-1:], weight, config.rms_norm_eps)

    K, T = config.head_dim, len(ids)
    x = folded["token_embd.weight"][ids]
    for i in range(config.n_layer):
        w = {name: folded[f"blk.{i}.{name}.weight"] for name in (
            "attn_norm", "attn_q", "attn_k", "attn_v", "attn_q_norm", "attn_k_norm",
            "attn_output", "ffn_norm", "ffn_up", "ffn_down",
        )}  # fmt: skip
        h = norm(x, w["attn_norm"])
        q, k, v = ((h @ w[f"attn_{name}"].T).view(T, -1, K) for name in "qkv")
        q = rotate(norm(q, w["attn_q_norm"]), config.rope_theta)
        k = rotate(norm(k, w["attn_k_norm"]), config.rope_theta)
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + y[0].transpose(0, 1).reshape(T, -1) @ w["attn_output"].T
        x = x + xielu(norm(x, w["ffn_norm"]) @ w["ffn_up"].T) @ w["ffn_down"].T
    return norm(x, folded["output_norm.weight"]) @ folded["output.weight"].T


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_the_folded_weights_compute_the_same_in_llama_cpps_graph(kv_heads):
    model = random_model(n_kv_head=kv_heads)
    ids = torch.randint(0, 128, (24,))
    expected = model(ids[None])[0]
    found = apertus(fold(model.state_dict(), model.config), model.config, ids)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spoil", ["halves", "embedding"])
def test_each_fold_is_needed(spoil):
    model = random_model()
    ids = torch.randint(0, 128, (24,))
    folded = fold(model.state_dict(), model.config)
    if spoil == "halves":
        name = "blk.1.attn_q.weight"
        folded[name] = swap_halves(folded[name], model.config.head_dim)
    else:
        folded["token_embd.weight"] = model.model.embed_tokens.weight.detach()
    difference = (apertus(folded, model.config, ids) - model(ids[None])[0]).abs().max()
    assert difference > 0.1


def test_swapped_halves_by_hand():
    rows = torch.arange(8.0)[:, None]  # two heads of four
    assert swap_halves(rows, 4)[:, 0].tolist() == [2, 3, 0, 1, 6, 7, 4, 5]


def test_xielu_is_relu_squared():
    x = torch.tensor([-50.0, -1.0, -1e-3, 0.0, 0.5, 3.0])
    torch.testing.assert_close(xielu(x), F.relu(x).square(), atol=1e-20, rtol=1e-6)


@pytest.mark.parametrize("kind, most", [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 2e-2)])
def test_rounded_weights_are_near_and_in_their_places(kind, most):
    model = random_model()
    weights = model.state_dict()
    found = rounded_weights(weights, model.config, kind)
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        if name != "model.embed_tokens.weight":  # normalised: another matrix, the same model
            assert (found[name] - weight).abs().max() < most * weight.abs().max(), name
    ids = torch.randint(0, 128, (1, 24))
    expected = model(ids)
    model.load_state_dict(rounded_weights(weights, model.config, "f16"))
    assert (model(ids) - expected).abs().max() < 0.05 * expected.abs().max()


def test_what_gguf_cannot_hold_is_refused():
    config, tokenizer = make_model().config, tiny_tokenizer()
    with pytest.raises(CheckpointError, match="caps its logits at 15.*--drop-softcap"):
        check_gguf_can_hold(config, tokenizer)
    uncapped = replace(config, logit_softcap=None)
    check_gguf_can_hold(uncapped, tokenizer)
    other = Tokenizer.train(["a b c"], 320, split_pattern=r"\S+|\s+")
    with pytest.raises(CheckpointError, match="only Llama-3's"):
        check_gguf_can_hold(uncapped, other)


def test_the_file_holds_config_tokenizer_and_every_tensor(tmp_path):
    checkpoint = save(stage="sft")
    write_gguf(checkpoint, tmp_path / "m.gguf", "q8_0", drop_softcap=True)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tokenizer = Tokenizer.load(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())

    def value(name):
        return reader.get_field(name).contents()

    assert value("general.architecture") == "apertus"
    assert value("apertus.block_count") == config["num_hidden_layers"]
    assert value("apertus.attention.layer_norm_rms_epsilon") == np.float32(1e-6)
    assert value("tokenizer.ggml.pre") == "llama-bpe"
    names, types = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    assert len(names) == tokenizer.vocab_size == len(types)
    for name, token_id in tokenizer.special_ids.items():
        assert names[token_id] == name and types[token_id] == 3
    assert len(value("tokenizer.ggml.merges")) == len(tokenizer.merges)
    assert value("tokenizer.ggml.eos_token_id") == tokenizer.special("<|assistant_end|>")
    shapes = {tensor.name: tuple(tensor.shape[::-1].tolist()) for tensor in reader.tensors}
    model = GPT(from_hf(config))
    weights = fold(model.state_dict(), model.config)
    assert shapes == {name: tuple(t.shape) for name, t in weights.items()}


def test_modelfile_holds_the_chat_markup():
    text = modelfile("m.gguf", make_model().config)
    assert text.startswith("FROM ./m.gguf\n") and "PARAMETER num_ctx 32" in text
    for mark in ("<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>"):
        assert mark in text
    assert "{{ .Content }}" in text and "{{{" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kv_heads", "tied"),
    [("f16", 2, False), ("f16", 1, False), ("f16", 2, True), ("bf16", 2, False), ("q8_0", 2, True)],
)
def test_llama_cpp_agrees(kind, kv_heads, tied, tmp_path):
    pytest.importorskip("llama_cpp", reason="needs the package llama-cpp-python")
    from nanochat.publishing.gguf_parity import prove

    model = tiny_model(n_kv_head=kv_heads, tie_word_embeddings=tied)
    model.lm_head.weight.data *= 20  # sure of its answers, and beyond the cap
    checkpoint = save(stage="sft", model=model)
    path = tmp_path / "m.gguf"
    write_gguf(checkpoint, path, kind, drop_softcap=True)
    report = prove(path, checkpoint, kind, drop_softcap=True)
    assert report["checks"]["ids"]["different"] == 0
    with pytest.raises(CheckpointError, match="is not the model in"):
        prove(path, checkpoint, kind)  # the native model has its cap


def test_an_old_proof_does_not_stand_beside_a_new_file(tmp_path):
    checkpoint, folder = save(stage="sft"), tmp_path / "gguf"
    folder.mkdir()
    (folder / "parity-f16.json").write_text("{}")
    options = {"source": str(checkpoint), "drop_softcap": True, "unproved": True}
    main(Config(folder, **options))
    assert sorted(path.name for path in folder.iterdir()) == ["Modelfile", "model-f16.gguf"]
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written: .*file"):
        main(Config(tmp_path / "file", **options))


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(kind, value, tmp_path):
    model = tiny_model(logit_softcap=None)
    model.lm_head.weight.data[3, 5] = value
    checkpoint = save(stage="sft", model=model)
    with pytest.raises(CheckpointError, match=f"output.weight has numbers .* not finite in {kind}"):
        main(Config(tmp_path / "gguf", source=str(checkpoint), type=kind, unproved=True))
    assert not list((tmp_path / "gguf").iterdir())


@pytest.mark.parametrize("kind, value", [("f16", 1e6), ("bf16", 3.4e38), ("q8_0", 1e9)])
def test_numbers_beyond_the_type_s_range_are_refused(kind, value):
    model = make_model(logit_softcap=None)
    model.lm_head.weight.data[3, 5] = value
    with pytest.raises(CheckpointError, match="largest finite one is"):
        rounded_weights(model.state_dict(), model.config, kind)


def test_rows_that_are_no_whole_blocks_are_refused_before_anything_is_written(tmp_path):
    model = tiny_model(logit_softcap=None, n_embd=144, n_head=3, n_kv_head=3, head_dim=48)
    checkpoint = save(stage="sft", model=model)
    with pytest.raises(CheckpointError, match="blocks of 32 numbers, .* rows have 144"):
        write_gguf(checkpoint, tmp_path / "m.gguf", "q8_0")
    assert not (tmp_path / "m.gguf").exists()
    write_gguf(checkpoint, tmp_path / "m.gguf", "f16")


def test_what_a_killed_export_left_is_cleared_up(tmp_path, capsys):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / f".model-f16.gguf.tmp-{process.pid}").mkdir()
    (tmp_path / ".new-mine").mkdir()
    checkpoint = save(stage="sft")
    main(Config(tmp_path, source=str(checkpoint), drop_softcap=True, unproved=True))
    names = [".new-mine", "Modelfile", "model-f16.gguf"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert "left over from an interrupted save" in capsys.readouterr().out
