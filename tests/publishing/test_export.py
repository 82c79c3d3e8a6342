"""Publishing: the exported folder, the way back, and the push to a hub."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from exports import export_once, proved_here, without_proof
from forked import run_code
from hub_stub import serve
from safetensors.torch import load_file, save_file
from tiny_checkpoint import save, tiny_model, tiny_tokenizer

from nanochat.checkpoint.writing import save_tensors
from nanochat.checkpoint_manager import (
    check_names_and_shapes,
    load_checkpoint,
    load_model,
)
from nanochat.common import CheckpointError, ConfigError, DataError
from nanochat.files import sha256_of
from nanochat.gpt import GPTConfig
from nanochat.publishing import export as exporting
from nanochat.publishing.beginning import checkpoint_from
from nanochat.publishing.export import check_output, export, public_record, push, rounded
from nanochat.publishing.import_model import make_checkpoint, read_published
from nanochat.publishing.parity import ParityError
from scripts import export_to_huggingface as export_script
from scripts import import_from_huggingface as import_script

transformers = pytest.importorskip("transformers", reason="needs the [export] extra")

CPU = torch.device("cpu")
FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "manifest.json",
    "model.safetensors",
    "parity.json",
    "run.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tmp_path_factory, share_compiled):
    return export_once(tmp_path_factory, share_compiled)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_time(folder):
    """The folder's files, without the time in the manifest and the manifest's checksum."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return contents(folder) | {"manifest.json": manifest["files"]}


# ---------------------------------------------------------------- equal bytes


def test_two_processes_write_the_same_bytes(tmp_path):
    program = (
        "import sys, torch; from pathlib import Path;"
        "from nanochat.checkpoint.writing import save_tensors;"
        "save_tensors(Path(sys.argv[1]), {'b': torch.ones(3), 'a': torch.zeros(2, 2)}, 'f' * 64)"
    )
    file = tmp_path / "theirs"
    assert run_code(program, str(file)).returncode == 0
    first = file.read_bytes()
    for i in range(8):  # the metadata's order changes from one call to the next, too
        mine = tmp_path / str(i)
        save_tensors(mine, {"b": torch.ones(3), "a": torch.zeros(2, 2)}, "f" * 64)
        assert mine.read_bytes() == first
    assert b'{"__metadata__":{"format":"pt","tokenizer_fingerprint":"ffff' in first
    assert {k: t.tolist() for k, t in load_file(file).items()} == {
        "a": [[0, 0], [0, 0]],
        "b": [1, 1, 1],
    }


def test_export_import_export_is_byte_identical(exported, tmp_path, monkeypatch, capsys):
    _, checkpoint, folder = exported
    back = make_checkpoint(read_published(folder), "rescued", "sft")
    assert back.parent.name == "rescued" and back.name == checkpoint.name
    again = tmp_path / "again"
    with proved_here():
        config = export_script.Config(again, source="sft", model_tag="rescued", space=True)
        export_script.main(config)
    assert without_time(again) == without_time(folder)
    assert "largest difference of logits" in capsys.readouterr().out
    assert (tmp_path / "again-space" / "model_id.txt").read_text() == f"{again}\n"
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    rescued, tokenizer, meta = load_model("sft", CPU, phase="eval", model_tag="rescued")
    original, _, _ = load_model(checkpoint, CPU, phase="eval")
    assert tokenizer.fingerprint == meta["tokenizer_fingerprint"]
    for name, tensor in original.state_dict().items():  # at the export's precision, no less
        assert torch.equal(rescued.state_dict()[name], tensor.bfloat16().float()), name
    with pytest.raises(CheckpointError, match="exists and is not replaced"):
        make_checkpoint(read_published(folder), "rescued", "sft")


# ---------------------------------------------------------------- the folder


def test_what_is_in_the_folder(exported):
    _, checkpoint, folder = exported
    assert set(contents(folder)) == FILES
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (checkpoint / name).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    explicit = {"intermediate_size": 512, "head_dim": 64, "num_key_value_heads": 2}
    explicit |= {"final_logit_softcapping": 15.0, "tie_word_embeddings": False}
    explicit |= {"bos_token_id": 311, "eos_token_id": 315, "pad_token_id": None}
    explicit |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    assert config.items() >= {**explicit, "dtype": "bfloat16"}.items()
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "Parity" in card
    run = json.loads((folder / "run.json").read_text())
    assert run["parent"] == "mid_checkpoints/tiny/step_000009"
    assert run["config"] == {"depth": 2, "data": "texts"}


def test_the_two_snippets_run_and_agree(exported, monkeypatch):
    """DESIGN.md's, verbatim: on the export, and on the checkpoint."""
    base, checkpoint, folder = exported
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    names = {"model_id": str(folder), "torch": torch, "device": "cpu"}
    names |= {n: getattr(transformers, n) for n in ("AutoTokenizer", "AutoModelForCausalLM")}
    exec(
        """
tokenizer = AutoTokenizer.from_pretrained(model_id, use_fast=True, trust_remote_code=False)
model = AutoModelForCausalLM.from_pretrained(model_id, trust_remote_code=False, use_safetensors=True,
    torch_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32).to(device)
""",  # noqa: E501
        names,
    )
    native: dict = {}
    exec(
        """
from nanochat.checkpoint_manager import load_model
from nanochat.common import compute_init
ddp, ddp_rank, ddp_local_rank, ddp_world_size, device = compute_init()
model, tokenizer, meta = load_model("sft", device, phase="eval")
prompt = "<|bos|><|user_start|>What is the capital of France?<|user_end|><|assistant_start|>"
tokens = tokenizer.encode(prompt)                # a prompt that the programmer wrote: markup is honoured here
response_tokens = list(model.generate(tokens, max_tokens=100, temperature=0.8, top_k=50))
print(tokenizer.decode(response_tokens))
""",  # noqa: E501
        native,
    )
    assert native["meta"]["path"] == str(checkpoint) and native["response_tokens"]
    theirs = names["tokenizer"](native["prompt"], add_special_tokens=False)["input_ids"]
    assert theirs == native["tokens"]


def test_rounding_refuses_what_does_not_fit():
    assert rounded("w", torch.tensor([1.0009765625]), "bfloat16").item() == 1.0
    with pytest.raises(CheckpointError, match="w has 1 numbers that are not finite in float16"):
        rounded("w", torch.tensor([1.0, 70_000.0]), "float16")
    with pytest.raises(CheckpointError, match="not finite"):
        rounded("w", torch.tensor([float("nan"), 1.0]), "float32")


def test_a_weight_without_a_place_is_refused():
    weights, config, _, _ = load_checkpoint(save())
    check_names_and_shapes(weights, config, "here")
    extra = {**weights, "model.layers.0.self_attn.gate.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"self_attn\.gate\.weight has shape \(1,\)"):
        check_names_and_shapes(extra, config, "here")
    weights.pop("lm_head.weight")
    with pytest.raises(
        CheckpointError, match=r"here: 1 tensor\(s\) do not fit: lm_head.weight has shape None"
    ):
        check_names_and_shapes(weights, config, "here")


def test_nothing_is_overwritten_or_left_behind(tmp_path, exported, monkeypatch):
    _, checkpoint, _ = exported
    place = tmp_path / "mine"
    place.mkdir()
    (place / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        export(checkpoint, place)
    with pytest.raises(CheckpointError, match="not replaced: it holds thesis.txt, which no export"):
        export(checkpoint, place, overwrite=True)
    with pytest.raises(CheckpointError, match="which no export wrote"):  # a checkpoint is not one
        export(checkpoint, checkpoint, overwrite=True)
    with pytest.raises(CheckpointError, match="inside a checkpoint"):
        export(checkpoint, checkpoint / "hf_model")
    with pytest.raises(ConfigError, match="dtype 'int4' is unknown"):
        export(checkpoint, tmp_path / "new", dtype="int4")
    # A gate that fails: weights that were changed after the folder was written.

    def spoilt(path, weights, fingerprint):
        spoiled = {**weights, "lm_head.weight": weights["lm_head.weight"].roll(1, 0)}
        save_tensors(path, spoiled, fingerprint)

    monkeypatch.setattr(exporting, "save_tensors", spoilt)
    message = r"(?s)logits: .* differ.*largest difference of logits"
    with proved_here(), pytest.raises(ParityError, match=message):
        export(checkpoint, tmp_path / "new")
    assert not [path.name for path in tmp_path.iterdir() if "new" in path.name]
    assert [path.name for path in place.iterdir()] == ["thesis.txt"]


def test_the_place_is_where_links_lead_and_not_where_one_stands(exported, tmp_path, monkeypatch):
    disk, link = tmp_path / "big" / "disk", tmp_path / "link"
    disk.mkdir(parents=True)
    link.symlink_to(disk)
    with without_proof():
        export(exported[1], link)
    assert link.is_symlink() and (disk / "model.safetensors").is_file()
    assert [path.name for path in disk.parent.iterdir()] == ["disk"]
    monkeypatch.chdir(disk)
    for place, message in ((".", "is the current folder"), ("..", "holds disk, which no export")):
        with pytest.raises(CheckpointError, match=message):
            export(exported[1], place, overwrite=True)
    with pytest.raises(CheckpointError, match="could not be written: .*too long"):
        export(exported[1], tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/my texts", "my texts"),
        ("smoltalk:1,jsonl@/home/me/clients/acme.jsonl:2", "smoltalk:1,jsonl@acme.jsonl:2"),
        ("~/private/x", "x"),
        ("../me/z", "z"),
        ("file:///home/me/z", "z"),
        ("see /home/me/x, /home/me/y", "see x, y"),
        ("/root/c/sft_checkpoints/d4/step_9", "sft_checkpoints/d4/step_9"),
        ("hf://me/model", "hf://me/model"),
        ("https://example.com/a/b", "https://example.com/a/b"),
        ("HuggingFaceTB/smoltalk", "HuggingFaceTB/smoltalk"),
        ("facts@local/books:0.5", "facts@local/books:0.5"),
        ("and/or 3 / 4", "and/or 3 / 4"),
    ],
)
def test_no_local_path_is_published(value, expected):
    assert exporting.without_paths({"a": [value, 1, None]}) == {"a": [expected, 1, None]}


def test_only_what_an_export_wrote_is_replaced(exported, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(exported[2], folder)
    check_output(folder, overwrite=True)
    (folder / ".git").mkdir()
    with pytest.raises(CheckpointError, match="holds .git, which no export wrote"):
        export(exported[1], folder, overwrite=True)
    assert (folder / ".git").is_dir() and contents_of_files(folder) == contents(exported[2])


def contents_of_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_appears_during_the_proof_is_not_replaced(exported, tmp_path, monkeypatch):
    place = tmp_path / "place"
    prove = lambda *_: shutil.copytree(exported[2], place) and {}  # noqa: E731
    monkeypatch.setattr(exporting.parity, "prove", prove)
    monkeypatch.setattr(exporting, "card", lambda *_: "")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        export(exported[1], place)
    assert contents(place) == contents(exported[2])
    assert [path.name for path in tmp_path.iterdir() if "place" in path.name] == ["place"]


def test_a_full_disk_is_told(exported, tmp_path):
    resource = pytest.importorskip("resource", reason="needs Unix")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)  # files that are larger cannot be written
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limit[1]))
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            export(exported[1], tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_the_record_that_is_published_names_no_folder_of_this_machine():
    run = {"a": ["/home/me/x", "b/c"], "parent": "/r/sft_checkpoints/d4/step_000001", "n": 1}
    expected = {"a": ["x", "b/c"], "parent": "sft_checkpoints/d4/step_000001", "n": 1}
    assert public_record(run) == expected
    assert public_record({"imported": {"run": {"tag": "first"}}, "tag": "second"}) == {
        "tag": "first"
    }


def test_the_card_of_an_imported_model_stays_but_for_the_proof(exported):
    _, checkpoint, folder = exported
    report = {**json.loads((folder / "parity.json").read_text()), "dtype": "float32"}
    card = (folder / "README.md").read_text().replace("# nanochat tiny", "# My own words")
    found = exporting.card(checkpoint, {"imported": {"card": card}}, report)
    assert "# My own words" in found and found.count("## Parity of this export") == 1
    assert "| dtype | float32 |" in found and "| dtype | bfloat16 |" not in found
    assert found.split("## Limits")[1] == card.split("## Limits")[1]
    # A card without a proof is another program's: what is measured here is written instead.
    assert "My own" not in exporting.card(checkpoint, {"imported": {"card": "# My own"}}, report)


# ---------------------------------------------------------------- others' folders


def others(exported, tmp_path) -> Path:
    """The folder as transformers itself would save the same model: other files, other spellings."""
    _, _, folder = exported
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "others", max_shard_size="200KB")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(tmp_path / "others")
    return tmp_path / "others"


def test_what_transformers_saves_is_imported(exported, tmp_path):
    _, checkpoint, folder = exported
    saved = others(exported, tmp_path)
    first, *more = sorted(saved.glob("*.safetensors"))
    assert more
    found, ours = read_published(saved), read_published(folder)
    assert found.config == ours.config == tiny_model().config
    assert found.tokenizer.fingerprint == ours.tokenizer.fingerprint
    assert found.dtype == "bfloat16"
    assert all(torch.equal(found.weights[name], ours.weights[name]) for name in ours.weights)
    first.unlink()
    with pytest.raises(CheckpointError, match=f"{first.name} is missing"):
        read_published(saved)


def rewrite(path, **changes):
    record = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in record.items() if v != "absent"}))


def test_configs_of_other_shapes(exported, tmp_path, capsys):
    folder = tmp_path / "old"
    shutil.copytree(exported[2], folder)
    absent = dict.fromkeys(("rope_parameters", "rms_norm_eps", "attention_bias"), "absent")
    rewrite(folder / "config.json", **absent, rope_theta=500.0, num_key_value_heads=None)
    assert read_published(folder).config == GPTConfig(
        **{**vars(tiny_model().config), "rope_theta": 500.0}
    )
    assert "does not say rms_norm_eps; transformers' class uses 1e-06" in capsys.readouterr().out
    for change, message in {
        ("rope_parameters", ("rope_type", "yarn")): "rotary embedding of type 'yarn'",
        ("quantization_config", ("bits", 4)): "quantization_config",
        (
            "architectures",
            ("NanoChatHFForCausalLM",),
        ): "the class is .*HFForCausalLM",
        ("hidden_act", "gelu"): "hidden_act = 'gelu'",
        ("intermediate_size", 100): "intermediate_size = 100",
    }.items():
        name, value = change
        value = list(value) if name == "architectures" else value
        value = dict([value]) if isinstance(value, tuple) else value
        shutil.copy(exported[2] / "config.json", folder)
        rewrite(folder / "config.json", **{name: value})
        with pytest.raises(ConfigError, match=message):
            read_published(folder)


def test_of_two_sets_of_weights_that_is_read_which_transformers_reads(exported, tmp_path, capsys):
    folder = others(exported, tmp_path)
    old = {name: 2 * tensor for name, tensor in read_published(folder).weights.items()}
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = read_published(folder).weights
    assert "the first is read, as by transformers" in capsys.readouterr().out
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_what_would_be_dropped_at_import_is_refused(exported, tmp_path):
    with pytest.raises(ConfigError, match="--tokenizer is for checkpoints of karpathy"):
        read_published(exported[2], tokenizer=tmp_path / "tokenizer.pkl")
    folder = tmp_path / "strange"
    shutil.copytree(exported[2], folder)
    for name in ("num_hidden_layers", "vocab_size"):
        shutil.copy(exported[2] / "config.json", folder)
        rewrite(folder / "config.json", **{name: "absent"})
        with pytest.raises(CheckpointError, match=f"{name} = None; expected a whole number"):
            read_published(folder)
    shutil.copy(exported[2] / "config.json", folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].to(torch.int8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lm_head.weight is int8"):
        read_published(folder)


def test_tied_and_strange_weights(exported, tmp_path):
    folder = tmp_path / "tied"
    shutil.copytree(exported[2], folder)
    weights = load_file(folder / "model.safetensors")
    head = weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lm_head.weight has shape None"):
        read_published(folder)
    rewrite(folder / "config.json", tie_word_embeddings=True)
    read = read_published(folder).weights
    assert torch.equal(read["lm_head.weight"], read["model.embed_tokens.weight"])
    both = {**weights, "lm_head.weight": head}
    save_file(both, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="should be tied but differ"):
        read_published(folder)
    rewrite(folder / "config.json", tie_word_embeddings=False)
    both["model.layers.0.value_embeds.weight"] = torch.zeros(2)
    save_file(both, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model.layers.0.value_embeds.weight has shape"):
        read_published(folder)


# ---------------------------------------------------------------- other doors


@pytest.fixture
def hub(monkeypatch):
    with serve(monkeypatch) as server:
        yield server


def test_push_to_a_hub(exported, hub, capsys, tmp_path, base_dir):
    _, _, folder = exported
    hub.files |= {"model-00001-of-00002.safetensors": b"old", "modeling_old.py": b"import os"}
    hub.files |= {"LICENSE": b"MIT", "images/plot.png": b"png"}
    assert push(folder, "me/model", private=True).endswith("me/model")
    assert hub.files == {**contents(folder), "LICENSE": b"MIT", "images/plot.png": b"png"}
    assert hub.created[0]["name"] == "model"
    printed = capsys.readouterr()
    assert "deleted, left over from an earlier upload: model-00001-of-00002" in printed.out
    # The token goes to the hub and nowhere else.
    assert hub.tokens == {"Bearer hf_of_nobody"}
    assert "hf_of_nobody" not in printed.out + printed.err
    for path in (p for root in (folder, base_dir, tmp_path) for p in root.rglob("*")):
        assert path.is_dir() or b"hf_of_nobody" not in path.read_bytes(), path


def test_a_push_that_fails_can_be_given_again(exported, hub, capsys):
    _, _, folder = exported
    hub.fail = 403
    with pytest.raises(
        CheckpointError, match="(?s)me/model: not pushed: .*same command again"
    ) as error:
        push(folder, "me/model")
    assert "hf_of_nobody" not in str(error.value)
    hub.fail = None
    push(folder, "me/model")
    assert hub.files == contents(folder)
    hub.spoil = lambda content: content.replace(b"nanochat", b"nanoshat")
    with pytest.raises(CheckpointError, match="arrived as"):
        push(folder, "me/model")


def test_ids_that_are_not_taken_over_are_reported(exported, tmp_path, capsys):
    folder = tmp_path / "other_end"
    shutil.copytree(exported[2], folder)
    rewrite(folder / "generation_config.json", eos_token_id=7)
    import_script.main(import_script.Config(folder, tag="other"))
    printed = capsys.readouterr().out
    assert "not taken over: generation_config.json: eos_token_id is 7, expected [" in printed
    assert "other_end: generation_config.json has changed since it was written" in printed


def test_a_public_place_is_not_taken_for_a_private_one(exported, hub):
    hub.private = False
    with pytest.raises(CheckpointError, match="me/model exists and is public"):
        push(exported[2], "me/model", private=True)
    assert hub.files == {}
    push(exported[2], "me/model")
    assert hub.files == contents(exported[2])


@pytest.mark.parametrize("token", ["hf_of_nobody", "hf_of_nobody\u2026"])
def test_no_network_and_odd_tokens_are_told_without_the_token(exported, hub, monkeypatch, token):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", token)
    if token.isascii():
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody answers
    with pytest.raises(CheckpointError, match="(?s)me/model: not pushed: .*same command") as error:
        push(exported[2], "me/model")
    assert "nobody" not in str(error.value)


@pytest.mark.parametrize("repo_id", ["model", "me/a--b", "me/a..b", "me/model.git", "me/-x"])
def test_repo_ids_that_the_hub_does_not_allow(repo_id):
    with pytest.raises(CheckpointError, match="is not user/name on the hub"):
        exporting.check_repo_id(repo_id)


def test_large_files_are_not_sent_twice(exported, hub):
    # As the hub takes weights: each by itself, in parts, and none that it has.
    folder, name = exported[2], "model.safetensors"
    hub.large, hub.part, hub.fail_put = 1000, 150_000, 3
    with pytest.raises(CheckpointError, match="(?s)me/model: not pushed: .*same command again"):
        push(folder, "me/model")
    assert hub.files == {}
    arrived = set(hub.objects)
    hub.puts, hub.fail_put = [], None
    push(folder, "me/model")
    assert hub.files == contents(folder)
    assert {oid for oid, _ in hub.puts}.isdisjoint(arrived)
    assert sha256_of(folder / name) in hub.objects
    hub.puts = []
    push(folder, "me/model")
    assert hub.puts == []
    hub.objects[sha256_of(folder / name)] = hub.files[name][:-1] + b"?"
    hub.files = {}
    with pytest.raises(CheckpointError, match=f"{name} arrived as"):
        push(folder, "me/model")


def test_what_was_changed_after_the_proof_is_not_pushed(exported, hub, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(exported[2], folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# My model\n")  # everybody may
    push(folder, "me/model")
    assert hub.files == contents(folder)
    rewrite(folder / "config.json", rms_norm_eps=1e-5)
    (folder / ".env").write_text("PASSWORD=1234")
    (folder / "chat_template.jinja").unlink()
    hub.files = {}
    with pytest.raises(CheckpointError) as error:
        push(folder, "me/model")
    for part in ("config.json has changed", "jinja is missing", ".env was added"):
        assert part in str(error.value)
    assert hub.files == {}


def test_what_was_not_proved_is_not_pushed(exported, hub, tmp_path):
    folder = tmp_path / "unproved"
    shutil.copytree(exported[2], folder)
    rewrite(folder / "parity.json", passed=False)
    with pytest.raises(CheckpointError, match="no parity.json that says it passed"):
        push(folder, "me/model")
    with pytest.raises(CheckpointError, match="is not user/name"):
        push(exported[2], "model")
    config = export_script.Config(tmp_path / "new", source="sft", push_to="hf://me/model")
    with pytest.raises(CheckpointError, match="is not user/name"):  # said before any work
        export_script.main(config)
    assert hub.files == {} and hub.created == []


def test_what_lora_made_of_the_export_is_merged_and_read_again(exported, tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft")
    load = partial(transformers.AutoModelForCausalLM.from_pretrained, exported[2])
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(load(dtype=torch.float32), config)
    ids = torch.tensor([tiny_tokenizer().encode("<|bos|>the cat sat on the mat")])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1

    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(dtype=torch.float32), tmp_path / "adapter")
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    transformers.AutoTokenizer.from_pretrained(exported[2]).save_pretrained(tmp_path / "merged")
    ours, tokenizer, _ = load_model(checkpoint_from(str(tmp_path / "merged")), "cpu", "eval")
    assert tokenizer.fingerprint == tiny_tokenizer().fingerprint
    with torch.no_grad():
        ours.compute_dtype = torch.float32
        expected = model.eval()(input_ids=ids).logits
        assert torch.allclose(ours(ids), expected, atol=1e-4)


# ---------------------------------------------------------------- what import refuses or says


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of the export to change."""
    shutil.copytree(exported[2], tmp_path / "changed")
    return tmp_path / "changed"


def test_rope_scaling_beside_rope_parameters_is_refused(copied):
    rewrite(copied / "config.json", rope_scaling={"rope_type": "linear", "factor": 4.0})
    with pytest.raises(ConfigError, match="rotary embedding of type 'linear'"):
        read_published(copied)
    rewrite(copied / "config.json", rope_scaling={"rope_type": "default", "rope_theta": 500.0})
    theirs = transformers.AutoConfig.from_pretrained(copied).rope_parameters["rope_theta"]
    assert read_published(copied).config.rope_theta == theirs == 500.0


def test_what_is_not_taken_over_is_said(copied, capsys):
    read_published(copied)
    assert capsys.readouterr().out == ""
    rewrite(copied / "config.json", use_qk_norm=False, num_experts=8)
    rewrite(copied / "generation_config.json", temperature=0.3, repetition_penalty=1.3)
    read_published(copied)
    printed = capsys.readouterr().out
    assert "/config.json: not taken over: use_qk_norm = False, num_experts = 8\n" in printed
    assert "not taken over: temperature = 0.3, repetition_penalty = 1.3\n" in printed


def test_a_whole_soft_cap_becomes_a_float(copied):
    rewrite(copied / "config.json", final_logit_softcapping=15, rms_norm_eps=1)
    config = read_published(copied).config
    assert [type(x) for x in (config.logit_softcap, config.rms_norm_eps)] == [float, float]


def test_weights_that_are_not_finite_are_refused_by_name(copied):
    weights = load_file(copied / "model.safetensors")
    weights["model.layers.1.mlp.fc1.weight"][3, 4] = torch.nan
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.fc1.weight has numbers .* not finite"):
        read_published(copied)


@pytest.mark.parametrize("flags", [{"rstrip": True}, {"lstrip": True}, {"special": False}])
def test_added_tokens_that_ours_cannot_hold_are_refused(copied, flags):
    document = json.loads((copied / "tokenizer.json").read_text())
    token = {**document["added_tokens"][0], "id": 300, "content": "<|unused 300|>", **flags}
    document["added_tokens"].append(token)
    rewrite(copied / "tokenizer.json", **document)
    with pytest.raises(DataError, match="would encode 'a <.unused 300.>  b"):
        read_published(copied)
