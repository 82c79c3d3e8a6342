"""The model card: valid for the hub, its figures the run's own, its snippets run as they stand."""

import io
import re
from contextlib import redirect_stdout

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from made_run import CHAT, CORE, make_base, make_sft
from tiny_checkpoint import save

from nanochat.common import CheckpointError
from nanochat.report.model_card import render


@pytest.fixture
def sft():
    return make_sft(make_base())


def metadata(text: str) -> ModelCardData:
    """Parsed as the hub does, errors not ignored."""
    card = ModelCard(text, ignore_metadata_errors=False)
    assert isinstance(card.data, ModelCardData)
    return card.data


@pytest.mark.slow
def test_the_hub_s_own_parser_reads_back_every_result_with_its_error(sft):
    text = render(sft)
    data = metadata(text)
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "mit", "transformers", "text-generation"
    )  # fmt: skip
    assert data.model_name == "nanochat tiny (sft)"
    results = {r.dataset_name: r for r in data.eval_results}
    assert all(isinstance(r, EvalResult) for r in results.values())
    assert set(results) == {"arc-easy", "gsm8k", "ChatCORE"}
    gsm8k = results["gsm8k"]
    assert (gsm8k.dataset_type, gsm8k.dataset_config, gsm8k.dataset_split) == (
        "openai/gsm8k", "main", "test"
    )  # fmt: skip
    assert gsm8k.metric_value == CHAT["accuracy/gsm8k"]
    assert gsm8k.metric_args == {"stderr": 0.02, "examples": 1319}
    assert results["ChatCORE"].metric_value == 0.175
    assert data.to_yaml() == metadata(ModelCard(text).content).to_yaml()


def test_a_base_model_s_results_are_core_and_bits_per_byte():
    data = metadata(render(make_base()))
    values = {r.metric_type: r.metric_value for r in data.eval_results}
    assert values == {"core": CORE["core"], "bits per byte": CORE["bpb/val"]}
    assert "conversational" not in data.tags and "base" in data.tags


def test_data_sets_are_the_hub_s_and_no_path_of_this_machine(sft):
    text = render(sft)
    data = metadata(text)
    known = ["karpathy/fineweb-edu-100b-shuffle", "HuggingFaceTB/smol-smoltalk"]
    assert data.datasets == known  # and not someone/chats, which may be a folder or private
    assert data.language == "en"
    assert "./me.jsonl" not in text and str(sft.parents[3]) not in text


@pytest.mark.parametrize(
    ("config", "known"),
    [
        ({"data": "corpus/acme"}, None),
        ({"mixture": "smoltalk@private/chats:1"}, None),
        ({"mixture": "smoltalk@HuggingFaceTB/smol-smoltalk:1"}, ["HuggingFaceTB/smol-smoltalk"]),
        ({"data": "karpathy/climbmix-400b-shuffle"}, ["karpathy/climbmix-400b-shuffle"]),
    ],
)
def test_only_data_sets_that_nanochat_knows_are_named(config, known):
    assert metadata(render(save(1, run={"config": config}))).datasets == known


BROKEN = {
    "NaN": b'{"step": 1, "time": 1, "accuracy/gsm8k": NaN, "chatcore": Infinity, "bpb/val": 2}',
    "no step": b'{"accuracy/gsm8k": 0.5}\n{"step": 1, "bpb/val": 2.0}',
    "no UTF-8": b'\xff\xfe\n{"step": 1, "bpb/val": 2.0}',
    "no object": b'[1]\n"x"\n{"step": 1, "bpb/val": 2.0}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_finite_number_is_left_out_with_a_line(name, capsys):
    folder = save(1, "sft")
    (folder.parent / "metrics.jsonl").write_bytes(BROKEN[name])
    text = render(folder)
    assert {r.metric_type: r.metric_value for r in metadata(text).eval_results} == {
        "bits per byte": 2.0
    }
    assert "nan" not in text.replace("nanochat", "") and "inf" not in text.split("---")[1]
    assert "metrics.jsonl: left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [("run.json", b"\xff\xfe", "not JSON"), ("run.json", b"[1]", "does not name a stage"),
     ("run.json", b'{"stage": "base"}', "does not name a stage"),
     ("config.json", b"{", "not JSON")],
)  # fmt: skip
def test_records_that_are_damaged_are_told(file, content, said):
    folder = save(1)
    (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file} {said}|{file} is {said}"):
        render(folder)


def test_every_part_is_there_with_the_run_s_figures(sft):
    text = render(sft)
    titles = re.findall(r"^## (.*)$", text, flags=re.M)
    assert titles == [
        "How to use", "The model", "Training", "CORE", "Chat tasks", "Time, cost and energy",
        "Limits",
    ]  # fmt: skip
    for figure in ("10.0% ± 2.0%", "0.1750 ± 0.0224", "0.4000 ± 0.0316", "475,136", "8 Wh"):
        assert figure in text
    assert "$" not in text  # no price was given


def test_what_was_not_measured_is_not_there():
    text = render(save(1))
    assert metadata(text).eval_results is None
    assert not re.findall(r"None|\bnan\b|N/A|TODO|TBD|[Pp]laceholder", text)
    for word in ("CORE", "Chat tasks", "energy", "Parity", "tokens/s"):
        assert word not in text.split("# nanochat")[1], word


def test_parity_is_shown(sft):
    checks = {"encode_ordinary": {"compared": 290, "different": 0}}
    logits = {"max_difference": 1.25e-5}
    text = render(sft, {"texts": 200, "checks": checks, "logits": logits, "same_ids": True})
    assert "| encode ordinary | 290 | 0 |" in text
    section = text.split("## Parity of this export")[1].split("\n## ")[0]
    for row in ("| texts | 200 |", "| logits max difference | 1.25e-05 |", "| same ids | True |"):
        assert row in section


@pytest.mark.parametrize("stage", ["base", "sft"])
@pytest.mark.slow
def test_the_card_s_snippets_run_on_the_checkpoint_as_they_stand(stage, monkeypatch):
    pytest.importorskip("transformers")
    folder = make_base()
    folder = make_sft(folder) if stage == "sft" else folder
    first, second = re.findall(r"```python\n(.*?)```", render(folder), flags=re.S)
    monkeypatch.chdir(folder)
    for snippet in (first, second):
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(snippet, "card", "exec"), {"__name__": "card"})
        assert printed.getvalue().strip()
    torch.use_deterministic_algorithms(False)
