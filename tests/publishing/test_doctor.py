"""The doctor: on a release that was damaged as releases are."""

import json
import re
import shutil

import pytest
import torch
from exports import proved_here, without_proof
from safetensors.torch import load_file, save_file
from small_trained import save_small, small_text, small_tokenizer

from nanochat.checkpoint_manager import load_checkpoint
from nanochat.common import CheckpointError, DataError, NanochatError
from nanochat.publishing import tokenizer_search
from nanochat.publishing.doctor import examine
from nanochat.publishing.export import export
from nanochat.publishing.parity_texts import texts
from nanochat.publishing.tokenizer_search import (
    TEXT_CHARACTERS,
    Candidate,
    byte_entropy,
    choose,
    default_text,
    load,
    open_tokenizer,
    orders,
    search,
)
from nanochat.tokenizer import Tokenizer
from scripts import import_from_huggingface as importer
from scripts.doctor import Config, main, read_text

pytest.importorskip("transformers", reason="needs the [export] extra")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def a_third_of_the_text():
    """The rows of a context of 64 are scored one by one; this many tell as well what fits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_search, "TEXT_CHARACTERS", TEXT_CHARACTERS // 3)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, share_compiled):
    """(checkpoint, its export, its tokenizer) of a model trained for seconds, made once."""
    folder = tmp_path_factory.mktemp("doctor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(share_compiled(folder / "base")))
        checkpoint, tokenizer, _ = save_small()
        with without_proof():
            export(checkpoint, folder / "hf_model")
    return checkpoint, folder / "hf_model", tokenizer


@pytest.fixture
def model(trained, monkeypatch):
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    weights, config, _, _ = load_checkpoint(trained[0])
    return load(weights, config)


def test_bits_per_byte_tell_the_right_tokenizer(trained, model):
    right = trained[2]
    other = small_tokenizer("The ships of the line were " + small_text()[9000:20_000].upper())
    found = search(model, {"other": other, "right": right}, default_text(), set())
    assert (found[0].source, found[0].variant) == ("right", "as it is")
    assert found[0].bits < 0.8 * found[1].bits and found[1].source == "other"


def test_a_vocabulary_in_another_order_is_recognised(trained, model):
    right = trained[2]
    wrong = dict(orders(right))["special tokens, bytes, merges"]
    assert wrong.bos == 0 and wrong.parts.ids[b"\x00"] == 9 and wrong.parts.ids[b"\xff"] == 264
    assert len(wrong.parts.ids) == len(right.parts.ids)
    (found,) = search(model, {"moved": wrong}, default_text(), set())
    assert found.variant == "bytes, merges, special tokens last"
    for text in texts():
        assert found.tokenizer.encode(text) == right.encode(text)
    # A recorded fingerprint wins whatever the score.
    (found,) = search(model, {"right": right}, default_text(), {wrong.fingerprint})
    assert found.variant == "special tokens, bytes, merges"


def test_byte_entropy_by_hand():
    assert byte_entropy("aabb") == 1 and byte_entropy("abcd") == 2


def damage(trained, folder):
    """As a release that came apart: another run's tokenizer, its special tokens moved to the front,
    ids in the config that are no one's, files of an older converter."""
    shutil.copytree(trained[1], folder)
    other = small_tokenizer("quite another run " + small_text()[30_000:40_000].upper())
    dict(orders(other))["special tokens, bytes, merges"].save(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def test_a_damaged_release_is_mended(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    checkpoint, good, right = trained
    folder, lost = tmp_path / "damaged", tmp_path / "lost"
    damage(trained, folder)
    lost.mkdir()
    dict(orders(right))["special tokens, bytes, merges"].save(lost)  # the right merges, moved
    with proved_here():
        main(Config(folder, tokenizer=(lost,), output_dir=tmp_path / "fixed"))
    printed = capsys.readouterr().out
    for sentence in (
        "special_tokens_map.json does not belong",
        "chat_template.jinja is not nanochat's",
        "bos_token_id is 1, expected 0",
        "eos_token_id is 2, expected 4",
        "it is damaged, or another model's",
        f"the weights know {lost}, bytes, merges, special tokens last",
    ):
        assert sentence in printed, sentence
    names = ("tokenizer.json", "chat_template.jinja", "generation_config.json", "config.json")
    for name in names:
        assert (tmp_path / "fixed" / name).read_bytes() == (good / name).read_bytes(), name
    mended, before = (load_file(f / "model.safetensors") for f in (tmp_path / "fixed", good))
    assert all(torch.equal(mended[name], before[name]) for name in before)
    assert json.loads((tmp_path / "fixed" / "parity.json").read_text())["passed"]
    # What the release said of its run is still said.
    before, after = (json.loads((f / "run.json").read_text()) for f in (good, tmp_path / "fixed"))
    changed = {"tokenizer_fingerprint": right.fingerprint}
    changed["repaired"] = "bytes, merges, special tokens last"
    assert after == {**before, **changed}


def test_where_no_tokenizer_fits_none_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    damage(trained, tmp_path / "damaged")
    with pytest.raises(CheckpointError, match="no tokenizer here fits these weights"):
        main(Config(tmp_path / "damaged", output_dir=tmp_path / "fixed"))
    assert not (tmp_path / "fixed").exists()


def test_a_good_release_has_no_problems(trained, tmp_path):
    problems, model = examine(trained[1])
    assert problems == []
    folder = tmp_path / "spoilt"
    shutil.copytree(trained[1], folder)
    (folder / "generation_config.json").unlink()
    (folder / "modeling_x.py").write_text("")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"bos_token": {"content": "<s>"}, "auto_map": {}}
    del settings["padding_side"]  # transformers then pads on the right
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model.weights["lm_head.weight"][0, 0] = torch.nan
    save_file(model.weights, folder / "model.safetensors")
    problems, _ = examine(folder)
    assert "lm_head.weight has numbers that are not finite" in problems[0]
    assert problems[1:] == [
        "generation_config.json is missing",
        "modeling_x.py does not belong to a nanochat model, and loaders may read it",
        "model.safetensors has changed since it was written",
        "tokenizer_config.json has changed since it was written",
        "modeling_x.py was added later",
        "tokenizer_config.json: bos_token is '<s>', expected '<|bos|>'",
        "tokenizer_config.json: padding_side is 'right', expected 'left'",
        "tokenizer_config.json: auto_map asks for code from the repository",
    ]


def test_what_no_score_shows_is_found_by_its_hash(trained, tmp_path):
    folder = tmp_path / "turned"
    shutil.copytree(trained[1], folder)
    config(rope_parameters={"rope_type": "default", "rope_theta": 500_000.0})(folder)
    assert examine(folder)[0] == ["config.json has changed since it was written"]
    (folder / "manifest.json").write_text("{")
    (problem,) = examine(folder)[0]
    assert "manifest.json is " in problem


def test_special_tokens_that_collide_are_replaced_and_it_is_said(trained, tmp_path):
    document = json.loads((trained[1] / "tokenizer.json").read_text())
    for token in document["added_tokens"]:
        token["id"] -= 3
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    tokenizer, changed = open_tokenizer(tmp_path, 512)
    assert "two tokens of the vocabulary have the same id" in changed
    assert tokenizer.encode("<|bos|>the") == trained[2].encode("<|bos|>the")


def test_the_same_tokenizer_may_be_named_twice(trained, capsys, monkeypatch):
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    checkpoint, folder, _ = trained
    main(Config(folder, tokenizer=(checkpoint,)))
    printed = capsys.readouterr().out
    assert f"the weights know {folder / 'tokenizer.json'}, as it is" in printed


def test_what_a_user_can_mistype_is_said_before_any_work(trained, tmp_path, capsys):
    folder = trained[1]
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        main(Config(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="none.txt could not be read"):
        main(Config(folder, text=tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no text"):
        main(Config(folder, text=tmp_path / "empty.txt"))
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        main(Config(folder, output_dir=tmp_path))
    assert capsys.readouterr().out == ""
    (tmp_path / "long.txt").write_text("a" * (TEXT_CHARACTERS + 1))
    assert read_text(tmp_path / "long.txt") == "a" * TEXT_CHARACTERS
    with pytest.raises(DataError, match="none.pkl could not be read"):
        open_tokenizer(tmp_path / "none.pkl", 512)


# ---------------------------------------------------------------- the recorded tokenizer


def test_a_tokenizer_that_lost_merges_is_taken_only_when_that_is_asked(
    trained, tmp_path, monkeypatch
):
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    folder, fixed = tmp_path / "cut", tmp_path / "fixed"
    shutil.copytree(trained[1], folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    del document["model"]["merges"][-40:]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    right = trained[2].fingerprint
    with pytest.raises(CheckpointError, match=f"none .* is the recorded one, {right[:12]}"):
        main(Config(folder, output_dir=fixed))
    assert not fixed.exists()
    with without_proof():
        main(Config(folder, output_dir=fixed, accept_tokenizer=True))
    run = json.loads((fixed / "run.json").read_text())
    assert run["repaired_from"] == right != run["tokenizer_fingerprint"]
    with without_proof():
        main(Config(folder, tokenizer=(trained[1],), output_dir=tmp_path / "right"))
    run = json.loads((tmp_path / "right" / "run.json").read_text())
    assert run["tokenizer_fingerprint"] == right and "repaired_from" not in run


def test_the_recorded_fingerprint_wins_over_a_better_score(trained, capsys, monkeypatch):
    right, text = trained[2], "abcd" * 100
    cut = Tokenizer(right.parts._replace(merges=right.merges[:-40]))
    best, recorded = Candidate("cut", "as it is", cut, 0.5), {right.fingerprint}
    sources, scores = {"cut": cut, "lost": right}, {cut.fingerprint: 0.5, right.fingerprint: 1.0}
    score = lambda model, tokenizer, text: scores.get(tokenizer.fingerprint, 2.0)  # noqa: E731
    monkeypatch.setattr(tokenizer_search, "score", score)
    assert [c.source for c in search(None, sources, text, set())] == ["cut", "lost"]
    found = search(None, sources, text, recorded)
    assert choose(found, text, recorded, accept=False).source == "lost"
    assert "lost has the fingerprint that the folder records" in capsys.readouterr().out
    assert choose([best], text, set(), accept=False) is best
    with pytest.raises(CheckpointError, match="is the recorded one, 0000"):
        choose([best], text, {"0" * 64}, accept=False)
    assert choose([best], text, {"0" * 64}, accept=True) is best


# ---------------------------------------------------------------- damages


def edited(name, change):
    """A damage: the JSON file with `change` made to it in place."""

    def damage(folder):
        record = json.loads((folder / name).read_text())
        change(record)
        (folder / name).write_text(json.dumps(record))

    return damage


def config(**settings):
    return edited("config.json", lambda record: record.update(settings))


def bytes_of(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def index_of(data):
    def damage(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_bytes(data)

    return damage


def tied_to_nothing(folder):
    config(tie_word_embeddings=True)(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.embed_tokens.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def added_id(folder):
    edited("tokenizer.json", lambda t: t["added_tokens"][0].update(id="311"))(folder)


# (the damage, what import and the doctor say about it)
DAMAGES = {
    "run.json a list": (bytes_of("run.json", b"[1]"), "run.json holds a list"),
    "run.json a string": (bytes_of("run.json", b'"x"'), "run.json holds a str"),
    "step null": (bytes_of("run.json", b'{"step": null}'), "step is None"),
    "step abc": (bytes_of("run.json", b'{"step": "abc"}'), "step is 'abc'"),
    "step negative": (bytes_of("run.json", b'{"step": -5}'), "step is -5"),
    "parity.json a list": (bytes_of("parity.json", b"[1]"), "parity.json holds a list"),
    "generation a list": (bytes_of("generation_config.json", b"[1]"), "config.json holds a list"),
    "template no UTF-8": (bytes_of("chat_template.jinja", b"\xff\xfe"), "chat.template"),
    "config a list": (bytes_of("config.json", b"[]"), "config.json holds a list"),
    "config too deep": (bytes_of("config.json", b"[" * 100_000), "config.json is not JSON"),
    "index empty": (index_of(b"{}"), "weight_map is None"),
    "index a list": (index_of(b"[1]"), "index.json holds a list"),
    "index of numbers": (index_of(b'{"weight_map": {"a": 1}}'), "weight_map is {'a': 1}"),
    "rope a list": (config(rope_parameters=[1]), r"rope_parameters is \[1\]"),
    "theta a string": (config(rope_parameters={"rope_theta": "x"}), "rope_theta = 'x'"),
    "class a number": (config(architectures=[1]), r"the class is \[1\],"),
    "class a string": (config(architectures="Nano"), "the class is Nano,"),
    "tied to nothing": (tied_to_nothing, "model.embed_tokens.weight has shape None"),
    "a million layers": (config(num_hidden_layers=10**6), "1000000 layers"),
    "added id a string": (added_id, r"the id of '<\|bos\|>' is '\d+', expected a whole number"),
    "tokenizer binary": (bytes_of("tokenizer.json", b"\xff" * 10**6), "UnicodeDecodeError"),
    "settings a list": (bytes_of("tokenizer_config.json", b"[]"), "r_config.json holds a list"),
}


@pytest.mark.parametrize("case", DAMAGES)
@pytest.mark.parametrize("program", ["doctor", "import"])
def test_damages_end_in_a_message(trained, tmp_path, base_dir, capsys, program, case):
    folder = tmp_path / "case"
    shutil.copytree(trained[1], folder)
    damage, message = DAMAGES[case]
    damage(folder)
    said = ""
    try:
        if program == "doctor":
            print(*examine(folder)[0])
        else:
            importer.main(importer.Config(folder, tag="case"))
    except NanochatError as error:
        said = str(error)
        assert not list(base_dir.rglob("step_*"))
    said += capsys.readouterr().out
    assert re.search(message, said) and len(said) < 5000, said[:1000]


def test_a_missing_tensor_is_one_problem_among_others(trained, tmp_path, capsys):
    folder = tmp_path / "torn"
    shutil.copytree(trained[1], folder)
    tied_to_nothing(folder)
    config(tie_word_embeddings=False)(folder)
    (folder / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match="torn cannot be read"):
        main(Config(folder))
    printed = capsys.readouterr().out
    assert "4 problem(s)" in printed and "generation_config.json is missing" in printed
    for name in ("config.json", "model.safetensors"):
        assert f"{name} has changed since it was written" in printed
    assert "model.embed_tokens.weight has shape None" in printed


def test_a_place_below_a_file_is_refused_before_any_work(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="x could not be written"):
        main(Config(trained[1], output_dir=tmp_path / "file" / "x"))
    assert capsys.readouterr().out == ""


def test_a_binary_file_is_not_printed(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"\xff" * 10**6)
    for read in (Tokenizer.load, lambda folder: open_tokenizer(folder, 512)):
        with pytest.raises(DataError, match="UnicodeDecodeError: 'utf-8' codec") as error:
            read(tmp_path)
        assert len(str(error.value)) < 1000
