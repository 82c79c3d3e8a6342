"""Checkpoints: exact, complete, verified, and Hugging Face model folders as they lie."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import save, tiny_model, tiny_tokenizer

from nanochat.adamw import AdamW
from nanochat.checkpoint.manifest import write_manifest
from nanochat.checkpoint.rng import restore_rng
from nanochat.checkpoint_manager import load_checkpoint, load_model, load_training_state
from nanochat.common import CheckpointError, ConfigError
from nanochat.gpt import GPT

CPU = torch.device("cpu")
FILES = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "manifest.json",
    "model.safetensors",
    "optimizer/adamw.safetensors",
    "rng/ranks.safetensors",
    "run.json",
    "state.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


# ---------------------------------------------------------------- round trip


def test_round_trip_is_bit_exact(base_dir):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    optimizer = AdamW([{"params": dict(model.named_parameters())}], lr=1e-3)
    model(torch.arange(10)[None]).square().mean().backward()
    optimizer.step()
    state = {"cursor": 24, "average_loss": 0.1 + 0.2}
    run = {"config": {"depth": 2, "lr": 1e-3}, "metrics": {"bpb": 1 / 3}, "parent": None}
    path = save(
        3,
        model=model,
        tokenizer=tokenizer,
        run=run,
        state=state,
        optimizers={"adamw": optimizer.state_tensors()},
    )
    expected_draw = torch.rand(4)

    assert path == base_dir / "base_checkpoints" / "tiny" / "step_000003"
    assert [str(p.relative_to(path)) for p in sorted(path.rglob("*")) if p.is_file()] == FILES
    assert [p.name for p in path.parent.iterdir()] == ["step_000003"]

    again, same_tokenizer, meta = load_model("base", CPU, phase="train")
    assert again.config == model.config and again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert all(p.requires_grad for p in again.parameters())
    assert same_tokenizer.fingerprint == tokenizer.fingerprint == meta["tokenizer_fingerprint"]
    assert (meta["stage"], meta["tag"], meta["step"], meta["path"]) == (
        "base",
        "tiny",
        3,
        str(path),
    )
    assert {name: meta[name] for name in run} == run
    assert meta["versions"]["torch"] == torch.__version__ and "git_commit" in meta

    saved_state, generators, tensors = load_training_state(path)
    assert {name: saved_state[name] for name in state} == state and saved_state["step"] == 3
    assert saved_state["environment"]["torch"] == torch.__version__
    torch.manual_seed(123)
    restore_rng(generators)
    assert torch.equal(torch.rand(4), expected_draw)
    expected = optimizer.state_tensors()
    assert tensors.keys() == {"adamw"} and tensors["adamw"].keys() == expected.keys()
    assert all(torch.equal(tensors["adamw"][name], expected[name]) for name in expected)
    fresh = AdamW([{"params": dict(again.named_parameters())}], lr=1e-3)
    fresh.load_state_tensors(tensors["adamw"])
    assert all(torch.equal(a, expected[name]) for name, a in fresh.state_tensors().items())


def test_a_tied_head_is_stored_once_and_tied_again(monkeypatch):
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")  # also where bfloat16 is fast
    model = tiny_model(tie_word_embeddings=True)
    path = save(model=model)
    assert "lm_head.weight" not in load_file(path / "model.safetensors")
    again = load_model(str(path), CPU, phase="train")[0]
    assert again.lm_head.weight is again.model.embed_tokens.weight
    tokens = torch.arange(10)[None]
    assert torch.equal(again(tokens), model(tokens))
    transformers = pytest.importorskip("transformers", reason="needs the [export] extra")
    twin = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert torch.allclose(twin(tokens).logits, model(tokens), atol=1e-4)


def test_optimizers_can_be_left_out_and_tensors_may_share_storage():
    assert load_training_state(save(1))[2] == {}

    flat = torch.arange(6.0)
    views = {"a": flat[:2], "b": flat[2:].view(2, 2).T}
    tensors = load_training_state(save(2, optimizers={"flat": views}))[2]["flat"]
    assert tensors["a"].tolist() == [0, 1] and tensors["b"].tolist() == [[2, 4], [3, 5]]


def test_a_checkpoint_without_generators_cannot_be_resumed():
    path = save()
    (path / "rng" / "ranks.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be resumed. Begin a new run, with --fresh"):
        load_training_state(path)


def test_phase_dtype_and_stop_ids(monkeypatch):
    path = save()
    tokenizer = tiny_tokenizer()
    monkeypatch.setenv("NANOCHAT_DTYPE", "bfloat16")
    model, _, _ = load_model(str(path), "cpu", phase="eval")
    assert not model.training and model.compute_dtype == torch.bfloat16
    assert model.stop_ids == (tokenizer.special("<|assistant_end|>"), tokenizer.bos)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with pytest.raises(ConfigError, match="phase"):
        load_model("base", CPU, phase="inference")


def test_same_step_saved_again_replaces_it():
    run = {"config": {"attempt": 1}}
    save(5, run=run)
    path = save(5, run={"config": {"attempt": 2}})
    assert load_model("base", CPU, phase="eval")[2]["config"] == {"attempt": 2}
    assert [p.name for p in path.parent.iterdir()] == ["step_000005"]


def test_unknown_sources_list_what_there_is(base_dir):
    save(7)
    with pytest.raises(CheckpointError, match=r"tiny at step 7\. `python -m scripts.chat_rl` m"):
        load_model("rl", CPU, phase="eval")
    with pytest.raises(
        CheckpointError, match="neither a stage .* nor a folder.*base tiny at step 7"
    ):
        load_model("foundation", CPU, phase="eval")
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        load_model(base_dir, CPU, phase="eval")


# ---------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    """A base folder with steps 1 and 2, made once."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(folder))
        for step in (1, 2):
            model = tiny_model(n_layer=1)
            optimizer = AdamW([{"params": dict(model.named_parameters())}], lr=1e-3)
            save(step, model=model, optimizers={"adamw": optimizer.state_tensors()})
    return folder


def cut_short(path):
    os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [cut_short, flip_a_bit, Path.unlink], ids=["cut", "bit", "missing"]
)
@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_refused_and_the_good_one_found(
    two_saved, base_dir, name, damage, capsys
):
    shutil.copytree(two_saved, base_dir, dirs_exist_ok=True)
    good, bad = (base_dir / "base_checkpoints" / "tiny" / f"step_00000{i}" for i in (1, 2))
    damage(bad / name)
    with pytest.raises(CheckpointError) as error:
        load_model(bad, CPU, phase="eval")
    assert str(bad / name) in str(error.value)
    assert f"newest good checkpoint of this run is {good}" in str(error.value)
    assert name == "manifest.json" or "expected" in str(error.value)
    capsys.readouterr()
    assert load_model("base", CPU, phase="eval")[2]["step"] == 1
    assert len(capsys.readouterr().out.splitlines()) == 1


def with_manifest_made_anew(path):
    (path / "manifest.json").unlink()
    write_manifest(path, {"stage": "base", "tag": "tiny", "step": 1})


@pytest.mark.parametrize("also", [None, "run.json", "model.safetensors"])
def test_tokenizer_of_another_run_is_refused_whatever_else_is_forged(also):
    path = save()
    other = tiny_tokenizer("quite another text, with quite other words in it")
    assert other.vocab_size == tiny_tokenizer().vocab_size
    other.save(path)
    if also == "run.json":
        run = json.loads((path / also).read_text())
        (path / also).write_text(json.dumps({**run, "tokenizer_fingerprint": other.fingerprint}))
    if also == "model.safetensors":
        metadata = {"format": "pt", "tokenizer_fingerprint": other.fingerprint}
        save_file({k: v.clone() for k, v in load_file(path / also).items()}, path / also, metadata)
    with_manifest_made_anew(path)
    with pytest.raises(CheckpointError) as error:
        load_model("base", CPU, phase="eval")
    assert f"tokenizer fingerprint is {other.fingerprint[:12]}" in str(error.value)
    assert f"trained with {tiny_tokenizer().fingerprint[:12]}" in str(error.value)


def test_parts_that_do_not_fit_each_other_are_refused():
    with pytest.raises(CheckpointError, match="tokenizer has 320 ids, the model 384"):
        save(model=tiny_model(vocab_size=384))
    path = save()
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with_manifest_made_anew(path)
    with pytest.raises(CheckpointError, match=r"layers\.2\.\S+ has shape None, config.json needs"):
        load_checkpoint(path)


# ---------------------------------------------------------------- transformers


SHAPES = {
    "plain": {},
    "grouped heads": {"n_kv_head": 1},
    "head_dim 32, no soft-cap": {
        "n_head": 4,
        "n_kv_head": 2,
        "head_dim": 32,
        "logit_softcap": None,
    },
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.slow
def test_transformers_computes_the_same_logits(shape, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="needs the [export] extra")
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    path = save(model=tiny_model(**shape))
    ours, _, _ = load_model(path, CPU, phase="eval")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.randint(0, 320, (2, 40))
    with torch.no_grad():
        found, expected = ours(ids), theirs(ids).logits
    assert expected.std() > 0.5
    assert (found - expected).abs().max() < 1e-4


def bigram_model(tokenizer, chain):
    """A model that follows each id of `chain` with the next: blocks that add nothing, and a head
    whose row for an id is the embedding of the one before it."""
    model = GPT(tiny_model().config)  # as initialised: output projections are zero
    with torch.no_grad():
        model.lm_head.weight.zero_()
        for before, after in zip(chain, chain[1:], strict=False):
            model.lm_head.weight[after] = model.model.embed_tokens.weight[before]
    return model


@pytest.mark.slow
def test_transformers_chats_as_we_do_and_stops_where_we_stop():
    transformers = pytest.importorskip("transformers", reason="needs the [export] extra")
    tokenizer = tiny_tokenizer()
    answer = tokenizer.encode_ordinary("cat dog")
    start_id, end = (tokenizer.special(f"<|assistant_{x}|>") for x in ("start", "end"))
    assert len(set(answer)) == len(answer) >= 2
    chain = [start_id, *answer, end, 1]  # 1 would follow, if nothing stopped
    path = save(stage="sft", model=bigram_model(tokenizer, chain), tokenizer=tokenizer)

    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path, trust_remote_code=False, use_safetensors=True
    )
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(
        path, use_fast=True, trust_remote_code=False
    )
    prompt = their_tokenizer.apply_chat_template(
        [{"role": "user", "content": "the mat"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    markup = "<|bos|><|user_start|>the mat<|user_end|><|assistant_start|>"
    assert prompt[0].tolist() == tokenizer.encode(markup)
    generated = theirs.generate(prompt, max_new_tokens=20, do_sample=False)[0]
    assert generated[prompt.shape[1] :].tolist() == [*answer, end]
    assert their_tokenizer.decode(answer) == "cat dog"

    ours, _, _ = load_model("sft", CPU, phase="eval")
    assert list(ours.generate(prompt[0].tolist(), max_tokens=20, temperature=0)) == answer
    assert theirs.config.pad_token_id is None and theirs.config.eos_token_id == end
    assert their_tokenizer.model_max_length == theirs.config.max_position_embeddings == 64
