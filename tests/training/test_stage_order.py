"""A stage from set-up to end, on a tiny model: what is saved, and when the disk is changed."""

import dataclasses
import json

import pytest

from nanochat.checkpoint.index import available_checkpoints, run_dir
from nanochat.common import ConfigError, DataError
from nanochat.tokenizer import Tokenizer
from nanochat.training import stage
from scripts import base_train, chat_sft
from tasks.task import exchange


@pytest.fixture
def config(base_dir, tmp_path) -> base_train.Config:
    """Two steps of a model of one layer, on a text of this test."""
    text = "some words of a text that nobody reads twice\n" * 400
    Tokenizer.train([text], vocab_size=320).save(base_dir / "tokenizer")
    (tmp_path / "notes.txt").write_text(text)
    return base_train.Config(
        model_tag="tiny",
        depth=1,
        head_dim=16,
        sequence_len=32,
        data=str(tmp_path / "notes.txt"),
        total_batch_size=64,
        device_batch_size=2,
        eval_tokens=64,
        num_steps=2,
        compile=False,
        device_type="cpu",
    )


def steps() -> list[int]:
    return [found.step for found in available_checkpoints("base", "tiny")]


def fails(*args, **settings):
    raise UnicodeEncodeError("ascii", "日", 0, 1, "ordinal not in range(128)")


def test_samples_that_fail_end_no_training(config, monkeypatch, capsys):
    monkeypatch.setattr(base_train, "Engine", fails)
    base_train.main(config)
    assert steps() == [2]
    assert "no samples: UnicodeEncodeError" in capsys.readouterr().out


def test_an_evaluation_that_fails_loses_no_step(config, monkeypatch):
    monkeypatch.setattr(stage, "measure_rows", fails)
    with pytest.raises(UnicodeEncodeError):
        base_train.main(config)
    assert steps() == [2]


def test_what_fails_early_leaves_the_earlier_run_where_it_is(config, monkeypatch, tmp_path):
    base_train.main(config)
    write = lambda rows: "".join(json.dumps(row) + "\n" for row in rows)  # noqa: E731
    (tmp_path / "chats.jsonl").write_text(write([exchange("a", "b"), {"messages": []}]))
    again = dataclasses.replace(config, fresh=True)
    for wrong, error in (
        ({"data": "./typo.txt"}, DataError),
        ({"column": "content", "data": str(tmp_path / "chats.jsonl")}, DataError),
        ({"num_shards": 0}, ConfigError),
        ({"num_steps": 3, "target_tokens": 9}, ConfigError),
        ({"mirror": "hf://one/two/three"}, Exception),
        ({"head_dim": 7}, Exception),
    ):
        with pytest.raises(error):
            base_train.main(dataclasses.replace(again, **wrong))
        assert steps() == [2] and not list(run_dir("base", "x").parent.glob("*.old-*")), wrong
    base_train.main(dataclasses.replace(again, num_steps=1))
    assert steps() == [1] and len(list(run_dir("base", "x").parent.glob("tiny.old-*"))) == 1

    # Likewise in fine-tuning, whose mixture is looked at after the stage has begun.
    (run_dir("sft", "tiny") / "step_000001").mkdir(parents=True)
    fine = chat_sft.Config(parent="base", parent_tag="tiny", fresh=True, device_type="cpu",
                           compile=False, device_batch_size=1, num_steps=1)  # fmt: skip
    for mixture in ("smoltalk@./typo", "arithmetc", f"smoltalk@{tmp_path}/chats.jsonl", "a@b:c"):
        with pytest.raises((ConfigError, DataError)):
            chat_sft.main(dataclasses.replace(fine, mixture=mixture, val_mixture=mixture))
        assert (run_dir("sft", "tiny") / "step_000001").is_dir()


def test_a_resumed_run_leaves_the_checkpoint_that_it_goes_on_from_as_it_lies(config, capsys):
    base_train.main(config)
    (found,) = available_checkpoints("base", "tiny")
    stat = lambda: (found.path / "manifest.json").stat()  # noqa: E731
    before = stat()
    more = dataclasses.replace(config, resume=True, num_steps=4, save_every=1)
    base_train.main(dataclasses.replace(more, keep_last=3))
    assert steps() == [4, 3, 2]
    assert (stat().st_ino, stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
