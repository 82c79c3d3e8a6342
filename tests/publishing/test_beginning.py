"""--from: a stage begins with a model that somebody published, with the tokenizer that it has."""

import importlib
import json
import shutil

import pytest
import tokenizers
import torch
from exports import without_proof
from hub_stub import serve
from safetensors.torch import load_file
from tiny_checkpoint import save, tiny_tokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from nanochat.checkpoint.index import available_checkpoints
from nanochat.checkpoint_manager import load_model
from nanochat.common import CheckpointError, ConfigError, DataError
from nanochat.conversation import render_for_completion
from nanochat.files import base_dir
from nanochat.gpt import EMBEDDING, HEAD
from nanochat.publishing.beginning import checkpoint_from, find_parent
from nanochat.publishing.export import export
from nanochat.report.run import lineage
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer
from nanochat.training.config import StageConfig

transformers = pytest.importorskip("transformers", reason="needs the [export] extra")

WORDS = "the cat sat on the mat and the dog ran to the cat, l'été, 東京 and 12 things more\n" * 20
COMMON = {"compile": False, "device_type": "cpu", "device_batch_size": 2, "num_steps": 2}
COMMON |= {"eval_tokens": 64, "eval_every": -1}


def their_tokenizer(vocab_size: int = 290):
    """One made by the tokenizers library, as people make them: GPT-2's kind, one special token."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS], trainer)
    return tokenizer


def their_folder(folder, vocab_size: int | None = None, **tokenizer_options):
    """What transformers' own classes write: a model that somebody else trained, and its
    tokenizer. vocab_size: of the model; default, the tokenizer's."""
    torch.manual_seed(3)
    tokenizer = their_tokenizer(**tokenizer_options)
    config = transformers.NanoChatConfig(
        vocab_size=vocab_size or tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    model = transformers.NanoChatForCausalLM(config)
    model.save_pretrained(folder)
    options = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    fast.save_pretrained(folder)
    return model.eval(), fast


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """(folder, transformers' model, transformers' tokenizer), all 290 ids used."""
    folder = tmp_path_factory.mktemp("theirs") / "someones-model"
    return folder, *their_folder(folder)


@pytest.fixture(scope="module")
def export_of_ours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours") / "hf_model"
    with without_proof():
        export(save(stage="sft"), folder)
    return folder


def train(script: str, base_dir, **settings):
    """Two steps of a script; the folder of its checkpoint."""
    module = importlib.import_module(f"scripts.{script}")
    chats = base_dir / "chats"
    chats.mkdir(exist_ok=True)
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "the cat"}]
    for split in ("train", "test"):
        (chats / f"{split}.jsonl").write_text(f"{json.dumps({'messages': said})}\n" * 8)
    (base_dir / "notes.txt").write_text(WORDS)
    mixture = {"mixture": f"smoltalk@{chats}:1", "val_mixture": f"smoltalk@{chats}:1"}
    own = {
        "base_train": {"data": str(base_dir / "notes.txt"), "total_batch_size": 256},
        "mid_train": mixture | {"total_batch_size": 256},
        "chat_sft": mixture | {"examples_per_step": 4},
        "chat_rl": {
            "task": "identity", "reward": "short_answers:reward", "gate": False,
            "eval_problems": 2, "eval_samples": 2,
        },
    }[script]  # fmt: skip
    if script == "base_train":
        own["sample_every"] = -1
    if script == "chat_rl":
        small = {"prompts_per_step": 2, "num_samples": 4, "max_tokens": 4}
        own["policy"] = importlib.import_module("nanochat.rl").PolicySettings(**small)
    module.main(module.Config(**COMMON | own | settings))
    return available_checkpoints(STAGE[script])[0].path


STAGE = {"base_train": "base", "mid_train": "mid", "chat_sft": "sft", "chat_rl": "rl"}


def record(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


# ---------------------------------------------------------------- a model of another author


@pytest.mark.slow
def test_the_imported_model_computes_what_transformers_does(theirs):
    folder, model, fast = theirs
    ours, tokenizer, run = load_model(checkpoint_from(str(folder)), "cpu", "eval")
    ours.compute_dtype = torch.float32
    text = "the dog sat on the mat, 東京 12"
    ids = fast(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.encode_ordinary(text) == ids
    inputs = torch.tensor([[tokenizer.bos, *ids]])
    with torch.no_grad():
        found, expected = ours(inputs)[..., :290], model(inputs).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert run["imported"]["source"] == str(folder)


@pytest.mark.slow
def test_missing_chat_marks_become_new_ids(theirs, capsys):
    """The token that begins a text keeps its id; 290 used ids grow to 320, with room for eight."""
    folder, model, _ = theirs
    path = checkpoint_from(str(folder))
    tokenizer = Tokenizer.load(path)
    assert tokenizer.bos == 0 and tokenizer.vocab_size == 320
    assert [tokenizer.special(name) for name in SPECIAL_TOKENS[1:]] == [*range(312, 320)]
    library = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    ids = {name: library.token_to_id(name) for name in SPECIAL_TOKENS}
    assert ids == tokenizer.special_ids and library.get_vocab_size() == 320
    weights = load_file(path / "model.safetensors")
    for name in (EMBEDDING, HEAD):
        old = model.state_dict()[name]
        assert torch.equal(weights[name][:290], old)
        assert torch.allclose(weights[name][290:], old.mean(0).expand(30, -1))
    printed = capsys.readouterr().out
    assert "<|endoftext|>, which begins a text, is called <|bos|> here" in printed
    assert "<|user_start|> = 312" in printed


@pytest.mark.slow
def test_marks_take_unused_ids_where_there_are_some(tmp_path):
    their_folder(tmp_path / "padded", vocab_size=384)
    path = checkpoint_from(str(tmp_path / "padded"))
    tokenizer = Tokenizer.load(path)
    assert tokenizer.vocab_size == 384 and tokenizer.special("<|output_end|>") == 383
    assert len(load_file(path / "model.safetensors")[EMBEDDING]) == 384


@pytest.mark.slow
@pytest.mark.parametrize("script", STAGE)
def test_every_stage_begins_with_it(theirs, script, base_dir):
    folder, *_ = theirs
    trained = train(script, base_dir, from_=str(folder))
    assert trained.parent.name == "someones-model"
    parent = record(trained)["parent"]
    assert parent.startswith(f"{base_dir}/imported/someones-model/step_000000-")
    before, after = (load_file(f"{p}/model.safetensors") for p in (parent, trained))
    assert before.keys() == after.keys() and not torch.equal(before[HEAD], after[HEAD])
    assert Tokenizer.load(trained).fingerprint == Tokenizer.load(parent).fingerprint
    assert [stage.name for stage in lineage(trained)] == ["imported", STAGE[script]]
    text = transformers.AutoTokenizer.from_pretrained(trained).apply_chat_template(
        [{"role": "user", "content": "the cat"}], add_generation_prompt=True
    )["input_ids"]
    chat = {"messages": [{"role": "user", "content": "the cat"}]}
    assert text == render_for_completion(chat, Tokenizer.load(trained))


# ---------------------------------------------------------------- a model of ours


@pytest.mark.slow
def test_an_export_is_trained_on(export_of_ours, base_dir):
    """Once more with the same folder: imported once. And the new run's own tag is a source."""
    first = train("chat_sft", base_dir, from_=str(export_of_ours), model_tag="one")
    assert Tokenizer.load(first).fingerprint == tiny_tokenizer().fingerprint
    second = train("chat_sft", base_dir, from_=str(export_of_ours), model_tag="two")
    assert record(first)["parent"] == record(second)["parent"]
    third = train("mid_train", base_dir, from_="sft:one")
    assert record(third)["parent"] == str(first) and third.parent.name == "one"


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_own_weights(export_of_ours, base_dir, tmp_path, capsys):
    """Also when what it began with is gone, and when there are newer parents by now."""
    folder = tmp_path / "mine"
    shutil.copytree(export_of_ours, folder)
    settings = {"from_": str(folder), "model_tag": "run"}
    first = train("chat_sft", base_dir, **settings)
    parent = record(first)["parent"]
    shutil.rmtree(folder)
    longer = train("chat_sft", base_dir, **settings, resume=True, **{"num_steps": 3})
    assert longer.name == "step_000003" and f"resumed {first}" in capsys.readouterr().out
    save(9, "mid", "newer")
    without = train("chat_sft", base_dir, model_tag="run", resume=True, **{"num_steps": 4})
    assert record(without)["parent"] == parent
    assert f"resumed with --from ; it was {folder}" in capsys.readouterr().out


def test_a_checkpoint_of_ours_is_not_copied(base_dir):
    path = save(stage="sft")
    assert checkpoint_from(str(path)) == path and not (base_dir / "imported").exists()


# ---------------------------------------------------------------- the hub


@pytest.mark.slow
def test_a_model_of_the_hub(theirs, monkeypatch, tmp_path):
    from huggingface_hub import constants

    folder, *_ = theirs
    with serve(monkeypatch) as hub:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        hub.files.update({path.name: path.read_bytes() for path in folder.iterdir()})
        hub.files |= {"pytorch_model.bin": b"a pickle", "modeling.py": b"raise SystemExit"}
        path = checkpoint_from("hf://me/model")
        names = {p.name for p in (tmp_path / "cache").rglob("*")}
        assert "config.json" in names and not names & {"pytorch_model.bin", "modeling.py"}
        run = record(path)
        assert path.parent == base_dir() / "imported" / "model"
        assert run["imported"]["source"] == f"hf://me/model@{hub.commit}"
    # the hub is gone: a run that is resumed does not need it
    assert checkpoint_from("hf://me/model", resume=True) == path


def test_a_model_that_is_not_on_the_hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    with serve(monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        with pytest.raises(DataError, match="answers 404.*HF_ENDPOINT"):
            checkpoint_from("hf://me/nothing")
    with pytest.raises(ConfigError, match="expected hf://user/model"):
        checkpoint_from("hf://model")


# ---------------------------------------------------------------- what cannot be begun with


def change(folder, name="config.json", **settings):
    record = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(record | settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, ConfigError, "expected NanoChatForCausalLM"),
        ({"vocab_size": 2**33}, CheckpointError, "vocab_size = 8589934592.*32 bits"),
        ({"vocab_size": "many"}, CheckpointError, "vocab_size = 'many'"),
        ({"vocab_size": 200}, DataError, "largest id is 289, the model has 200"),
        ({"vocab_size": 640}, CheckpointError, "needs"),
        ({"num_hidden_layers": 3}, CheckpointError, "do not fit"),
        ({"hidden_act": "silu"}, ConfigError, "hidden_act"),
    ],
    ids=str,
)
def test_a_folder_that_is_refused(theirs, tmp_path, settings, error, message, base_dir):
    folder = tmp_path / "copy"
    shutil.copytree(theirs[0], folder)
    change(folder, **settings)
    with pytest.raises(error, match=message):
        checkpoint_from(str(folder))
    assert not list((base_dir / "imported").rglob("step_*"))


@pytest.mark.slow
def test_another_kind_of_tokenizer_is_refused(theirs, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(theirs[0], folder)
    words = tokenizers.Tokenizer(models.WordLevel({"the": 0, "cat": 1}, unk_token="the"))
    words.save(str(folder / "tokenizer.json"))
    with pytest.raises(DataError, match="found a WordLevel model, expected BPE"):
        checkpoint_from(str(folder))


@pytest.mark.slow
def test_what_contradicts_itself_is_refused(theirs):
    with pytest.raises(CheckpointError, match="expected hf://user/model, a folder that is there"):
        checkpoint_from("./nowhere")
    with pytest.raises(CheckpointError, match="no complete checkpoint of sft, tag x"):
        checkpoint_from("sft:x")
    with pytest.raises(ConfigError, match=r"leave out the tag \(d4\)"):
        find_parent(StageConfig(from_="./x"), "mid", "d4")
    base_train = importlib.import_module("scripts.base_train")
    with pytest.raises(ConfigError, match="leave out --depth"):
        base_train.main(base_train.Config(from_=str(theirs[0]), depth=4))


def test_the_flag_is_called_from(monkeypatch):
    from nanochat.configurator import parse

    assert parse(StageConfig, ["--from=hf://a/b"]).from_ == "hf://a/b"
