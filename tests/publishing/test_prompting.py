"""An exported folder through transformers: every documented way to prompt it gives one answer."""

from functools import partial

import pytest
import torch
from lm_eval_task import exact_match
from tiny_checkpoint import save, tiny_model, tiny_tokenizer

from nanochat.checkpoint_manager import load_model
from nanochat.conversation import render_for_completion

pytestmark = pytest.mark.slow  # transformers' imports

transformers = pytest.importorskip("transformers", reason="needs the [export] extra")

QUESTIONS = ("the cat", "the dog ran to the mat and the cat sat on the dog", "mat?", "on and on")
CHATS = [[{"role": "user", "content": text}] for text in QUESTIONS]
CHATS[2:2] = [[{"role": "system", "content": "the mat"}, *CHATS[0]]]
TEXTS = ("the cat sat", "the", "the dog ran to the cat and the mat sat on the mat", "to")
LENGTH = 12


class Folder:
    """A checkpoint as transformers loads it, in float32, and as we do."""

    def __init__(self):
        path = save(stage="sft", model=tiny_model(), tokenizer=tiny_tokenizer())
        self.path = path
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path).float()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        self.ours, self.our_tokenizer, _ = load_model(path, "cpu", "eval")
        self.ours.compute_dtype = torch.float32

    def native(self, prompt: list[int]) -> list[int]:
        """Our own greedy answer."""
        return list(self.ours.generate(prompt, max_tokens=LENGTH, temperature=0))

    def generate(self, **inputs) -> list[list[int]]:
        """transformers' greedy answers to a batch, without what ends and pads them."""
        rows = self.model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)
        stops = set(self.ours.stop_ids)
        answers = [row[inputs["input_ids"].shape[1] :].tolist() for row in rows]
        ends = [next((i for i, t in enumerate(a) if t in stops), len(a)) for a in answers]
        return [answer[:end] for answer, end in zip(answers, ends, strict=True)]


@pytest.fixture(scope="module")
def folder():
    return Folder()


@pytest.fixture(scope="module")
def to_chats(folder):
    prompts = [render_for_completion({"messages": c}, folder.our_tokenizer) for c in CHATS]
    return [folder.native(prompt) for prompt in prompts]


@pytest.fixture(scope="module")
def to_texts(folder):
    tokenizer = folder.our_tokenizer
    return [folder.native([tokenizer.bos, *tokenizer.encode_ordinary(text)]) for text in TEXTS]


def test_the_answers_differ_from_each_other(to_chats, to_texts):
    """Or the tests below would say little."""
    assert len({tuple(answer) for answer in [*to_chats, *to_texts]}) > 5


def test_one_chat(folder, to_chats):
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    for chat, expected in zip(CHATS, to_chats, strict=True):
        inputs = folder.tokenizer.apply_chat_template(chat, **options)
        assert folder.generate(**inputs) == [expected]


def test_a_padded_batch_of_chats(folder, to_chats):
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    inputs = folder.tokenizer.apply_chat_template(CHATS, padding=True, **options)
    assert inputs["attention_mask"].min() == 0
    assert folder.generate(**inputs) == to_chats


def test_a_padded_batch_of_texts(folder, to_texts):
    inputs = folder.tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    assert inputs["attention_mask"].min() == 0
    assert folder.generate(**inputs) == to_texts


def test_ids(folder, to_texts):
    for text, expected in zip(TEXTS, to_texts, strict=True):
        ids = torch.tensor([folder.tokenizer.encode(text)])
        assert folder.generate(input_ids=ids) == [expected]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_pipeline_of_chats_and_of_texts(folder, to_chats, to_texts, batch_size):
    make = transformers.pipeline("text-generation", folder.model, tokenizer=folder.tokenizer)
    options = {"max_new_tokens": LENGTH, "do_sample": False, "batch_size": batch_size}
    decode = partial(folder.tokenizer.decode, skip_special_tokens=True)
    answers = [found[0]["generated_text"][-1]["content"] for found in make(CHATS, **options)]
    assert answers == [decode(answer) for answer in to_chats]
    answers = [found[0]["generated_text"] for found in make(list(TEXTS), **options)]
    assert answers == [t + decode(a) for t, a in zip(TEXTS, to_texts, strict=True)]


def rendered(folder) -> list[str]:
    options = {"tokenize": False, "add_generation_prompt": True}
    return [folder.tokenizer.apply_chat_template(chat, **options) for chat in CHATS]


def test_a_rendered_chat_has_its_bos_and_is_encoded_without_another(folder, to_chats):
    """vLLM's way with chats. As with Llama 3 and Gemma, the template and the tokenizer's default
    both begin with <|bos|>, so add_special_tokens=False belongs to a rendered chat."""
    bos = folder.tokenizer.bos_token_id
    for text, expected in zip(rendered(folder), to_chats, strict=True):
        ids = folder.tokenizer.encode(text, add_special_tokens=False)
        assert ids.count(bos) == 1 and folder.tokenizer.encode(text)[:2] == [bos, bos]
        assert folder.generate(input_ids=torch.tensor([ids])) == [expected]


def test_lm_evals_way(folder, to_chats, to_texts):
    """lm-evaluation-harness leaves the default out where a text begins with <|bos|>, and pads on
    the left, whatever the tokenizer says."""
    tokenizer, texts = folder.tokenizer, [*rendered(folder), *TEXTS]
    rows = [tokenizer.encode(t, add_special_tokens=not t.startswith("<|bos|>")) for t in texts]
    inputs = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    assert folder.generate(**inputs) == [*to_chats, *to_texts]


def test_lm_eval_itself_gets_our_answers(folder, to_chats, tmp_path):
    """Its model hf, in batches of three; it expects another answer than ours to one of five."""
    decode = folder.tokenizer.decode
    answers = {
        chat[0]["content"]: decode(answer, skip_special_tokens=True)
        for chat, answer in zip(CHATS, to_chats, strict=True)
        if len(chat) == 1
    }
    model = {"pretrained": str(folder.path), "dtype": "float32"}
    how = {"model": "hf", "model_args": model, "device": "cpu", "batch_size": 3}
    assert len(answers) == 4
    assert exact_match(tmp_path, answers | {"the": "something else"}, LENGTH, **how) == 0.8


def test_what_trl_learns_from(folder):
    """The mask of assistant_only_loss, of a batch that is padded."""
    chats = [[*chat, {"role": "assistant", "content": "the mat"}] for chat in CHATS]
    found = folder.tokenizer.apply_chat_template(
        chats, padding=True, return_dict=True, return_assistant_tokens_mask=True
    )
    for ids, mask in zip(found["input_ids"], found["assistant_masks"], strict=True):
        learned = [i for i, one in zip(ids, mask, strict=True) if one]
        assert folder.our_tokenizer.decode(learned) == "the mat<|assistant_end|>"
