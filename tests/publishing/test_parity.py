"""Parity: passes the model that was trained, and catches each way of spoiling it."""

import json
import shutil

import pytest
import torch
from exports import export_once, proved_forked
from safetensors.torch import load_file, save_file
from tiny_checkpoint import tiny_tokenizer

from nanochat.checkpoint_manager import hugging_face_texts, load_checkpoint
from nanochat.common import CheckpointError
from nanochat.publishing import parity, parity_texts
from nanochat.publishing.parity import Checks, check_files, compare, native_model, prove, summary
from nanochat.tokenizer import SPECIAL_TOKENS

pytest.importorskip("transformers", reason="needs the [export] extra")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tmp_path_factory, share_compiled):
    return export_once(tmp_path_factory, share_compiled)


def test_the_texts_are_many_and_of_every_kind():
    texts = parity_texts.texts()
    assert len(texts) >= 200 and texts == parity_texts.texts()
    assert len(parity_texts.written()["scripts"]) >= 100  # writing systems
    joined = "".join(texts)
    for sample in ("😀", "🏳️‍🌈", "def area", "오", "ا", "\x00", "\r\n", *SPECIAL_TOKENS):
        assert sample in joined
    assert all("<|" not in str(chat) for chat in parity_texts.chats())
    kinds = {
        part["type"]
        for chat in parity_texts.chats()
        for message in chat["messages"]
        if isinstance(message["content"], list)
        for part in message["content"]
    }
    assert kinds == {"text", "python", "python_output"}
    assert any(chat["messages"][0]["role"] == "system" for chat in parity_texts.chats())


def test_the_export_of_a_checkpoint_passes(exported):
    report = json.loads((exported[2] / "parity.json").read_text())
    assert report["passed"] and report["differences"] == {}
    assert report["texts"] >= 200 and report["checks"]["encode"]["compared"] >= 400
    assert 0 < report["logits"]["max_abs_difference"] <= 1e-4
    assert report["greedy"]["prompts"] == 8 and report["greedy"]["tokens"] > 200


def rewrite(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def other_tokenizer(folder):
    tiny_tokenizer("quite another text, with quite other words in it").save(folder)


def drop_a_tensor(folder):
    change_weights(folder, lambda w: w.pop("model.layers.1.mlp.fc2.weight"))


def permute_two_heads(folder):
    def change(weights):
        q = weights["model.layers.0.self_attn.q_proj.weight"]
        q.copy_(torch.cat([q[64:], q[:64]]))

    change_weights(folder, change)


def change_theta(folder):
    def change(config):
        config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 10_500.0

    rewrite(folder / "config.json", change)


def change_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("| replace('<|', '< |')", "", 1))


def swap_stop_ids(folder):
    rewrite(folder / "generation_config.json", lambda c: c.update(eos_token_id=1))


def no_bos_first(folder):
    rewrite(folder / "tokenizer.json", lambda t: t.update(post_processor=None))


def negate_a_row(folder):
    """Of a token that none of the texts has: its logits are right."""
    used = {i for text in parity_texts.texts() for i in tiny_tokenizer().encode(text)}
    unused = next(i for i in range(256, 300) if i not in used)
    change_weights(folder, lambda w: w["model.embed_tokens.weight"][unused].neg_())


def add_a_token(folder):
    token = {"id": 3, "content": "quite rare", "single_word": False, "lstrip": False}
    token |= {"rstrip": False, "normalized": False, "special": False}
    rewrite(folder / "tokenizer.json", lambda t: t["added_tokens"].append(token))


def heat(folder):
    rewrite(folder / "generation_config.json", lambda c: c.update(temperature=50.0))


def shorten(folder):
    rewrite(folder / "tokenizer_config.json", lambda c: c.update(model_max_length=5))


def remote_code(folder):
    rewrite(folder / "config.json", lambda c: c.update(auto_map={"AutoConfig": "modeling_x.X"}))


def stray_code(folder):
    (folder / "modeling_x.py").write_text("raise SystemExit")


TAMPERING = {
    other_tokenizer: {"files", "encode", "encode_ordinary", "decode", "chats"},
    drop_a_tensor: {"weights", "logits", "greedy"},
    permute_two_heads: {"weights", "logits", "greedy"},
    negate_a_row: {"weights"},
    change_theta: {"files", "config", "logits"},
    change_template: {"files", "chats"},
    swap_stop_ids: {"files", "config", "greedy"},
    no_bos_first: {"files", "encode"},
}
# What no text and no logit shows.
OF_FILES_ALONE = [add_a_token, heat, shorten, remote_code, stray_code]


@pytest.mark.parametrize("tamper", TAMPERING, ids=lambda tamper: tamper.__name__)
def test_tampering_is_caught(exported, tmp_path, monkeypatch, tamper):
    monkeypatch.setattr(parity, "NEW_TOKENS", 8)  # enough to differ
    _, checkpoint, good = exported
    folder = tmp_path / "tampered"
    shutil.copytree(good, folder)
    tamper(folder)
    report = compare(folder, checkpoint, "bfloat16")
    failed = {name for name, check in report["checks"].items() if check["different"]}
    assert not report["passed"] and failed >= TAMPERING[tamper]
    assert failed == report["differences"].keys()
    assert all(f"  {name}: " in summary(report) for name in failed)


@pytest.mark.parametrize("tamper", OF_FILES_ALONE, ids=lambda tamper: tamper.__name__)
def test_tampering_with_files_is_caught(exported, tmp_path, tamper):
    _, checkpoint, good = exported
    shutil.copytree(good, tmp_path / "tampered")
    tamper(tmp_path / "tampered")
    _, config, tokenizer, _ = load_checkpoint(checkpoint)
    texts = hugging_face_texts(config, tokenizer, dtype="bfloat16")
    for folder, different in ((good, 0), (tmp_path / "tampered", 1)):
        checks = Checks()
        check_files(checks, folder, texts)
        assert checks.counts["files"]["different"] == different


def test_another_process_says_why_it_cannot_load(exported, tmp_path):
    _, checkpoint, good = exported
    folder = tmp_path / "tampered"
    shutil.copytree(good, folder)
    (folder / "config.json").write_text("{")
    with proved_forked(), pytest.raises(CheckpointError, match="could not be loaded"):
        prove(folder, checkpoint, "bfloat16")


def test_the_native_side_is_rounded_as_the_export_is(exported, monkeypatch):
    monkeypatch.setattr(parity, "NEW_TOKENS", 8)
    _, checkpoint, folder = exported
    report = json.loads((folder / "parity.json").read_text())
    unrounded = compare(folder, checkpoint, "float32")
    assert unrounded["checks"]["logits"]["different"] > 0
    assert unrounded["logits"]["max_abs_difference"] > 1e-3
    assert unrounded["checks"]["encode"] == report["checks"]["encode"]


def test_greedy_is_what_the_naive_generator_says(exported):
    """check_greedy reads transformers' tokens by the native model's logits; here its generator."""
    import transformers

    _, checkpoint, folder = exported
    native, tokenizer = native_model(checkpoint, "bfloat16", torch.device("cpu"))
    native.stop_ids = ()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.encode("<|bos|>the cat sat")
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    options["attention_mask"] = torch.ones_like(ids)
    found = theirs.generate(ids, **options)[0, len(prompt) :].tolist()
    assert found == list(native.generate(prompt, max_tokens=12, temperature=0))
