"""Hugging Face folders behind our own faces: our checkpoints, and small models of other kinds."""

import numpy as np
import pytest
import torch
from tiny_checkpoint import save, tiny_model

from bench.core_eval import score_plainly
from nanochat.common import CheckpointError, ConfigError, DataError
from nanochat.conversation import render_for_completion
from nanochat.engine import Engine
from nanochat.evaluation.core_loglikelihood import score
from nanochat.evaluation.core_prompts import Example, Row
from nanochat.evaluation.hf_baseline import (
    TransformersEngine,
    TransformersTokenizer,
    context_of,
    load_transformers,
)
from nanochat.inference.fused_model import FusedModel
from nanochat.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow
SPECIALS = ["<s>", "</s>"]


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")


@pytest.fixture(scope="module")
def made_tokenizer():
    """A byte-level tokenizer by the package `tokenizers`, with special tokens of its own."""
    from tokenizers import Tokenizer as Made
    from tokenizers import models, pre_tokenizers, trainers
    from tokenizers.decoders import ByteLevel

    made = Made(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["the cat sat on the mat, the dog ran"] * 4, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", model_max_length=10**30
    )


def gpt2():
    config = transformers.GPT2Config(vocab_size=300, n_positions=48, n_embd=32, n_layer=2, n_head=2,
                                     bos_token_id=0, eos_token_id=1)  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=300, max_position_embeddings=48, hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def cohere():
    """Scales its logits after the head."""
    config = transformers.CohereConfig(
        vocab_size=300, max_position_embeddings=48, hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=4, bos_token_id=0, eos_token_id=1, pad_token_id=0,
        logit_scale=0.25,
    )  # fmt: skip
    return transformers.CohereForCausalLM(config)


KINDS = pytest.mark.parametrize("kind", [gpt2, llama, cohere])


def saved(kind, tokenizer, folder):
    torch.manual_seed(1)
    model = kind()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def some_examples(vocab_size, context):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, vocab_size, (3, context))
    ids[1, :20] = ids[0, :20]
    return [
        Example((Row(ids[0, :24], 20), Row(ids[1, :30], 20))),
        Example((Row(ids[2], context - 3),)),
    ]


# ---------------------------------------------------------------- our own checkpoint


def test_our_checkpoint_scores_as_it_does_natively():
    path, mine = save(), tiny_model()
    model, tokenizer = load_transformers(path, "cpu")
    assert (model.config.sequence_len, model.config.vocab_size) == (64, 320)
    ids, places = torch.randint(0, 320, (2, 30)), torch.tensor([3, 29, 30, 59])
    expected = mine(ids).flatten(0, 1)[places]
    torch.testing.assert_close(model.logits_at(ids, places), expected, rtol=1e-4, atol=1e-4)
    examples = some_examples(320, 64)
    native, theirs = score(FusedModel(mine), examples, 500), score(model, examples, 500)
    for a, b in zip(native, theirs, strict=True):
        np.testing.assert_allclose([s.loss for s in a], [s.loss for s in b], rtol=1e-4)
        assert [s.is_greedy for s in a] == [s.is_greedy for s in b]


def test_our_tokenizer_gives_the_same_ids():
    path = save()
    mine, (_, theirs) = Tokenizer.load(path), load_transformers(path, "cpu")
    texts = ["the cat", "", " ran\n\n1234 <|bos|> ünï", "<|user_end|>x"]
    for text in texts:
        assert theirs.encode_ordinary(text) == mine.encode_ordinary(text)
        assert theirs.encode(text) == mine.encode(text)
    for a, b in zip(
        mine.encode_ordinary_batch(texts), theirs.encode_ordinary_batch(texts), strict=True
    ):
        assert a.tolist() == b.tolist()
    assert theirs.encode_ordinary_batch([])[1].tolist() == [0]
    ids = mine.encode("<|bos|>the cat ran")
    assert theirs.bos == mine.bos and theirs.decode(ids) == "<|bos|>the cat ran"
    assert set(theirs.stop_ids) == {mine.special("<|assistant_end|>"), mine.bos}
    assert theirs.vocab_size == 320


def test_our_conversations_render_alike():
    path = save()
    mine, (_, theirs) = Tokenizer.load(path), load_transformers(path, "cpu")
    call = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "the cat?"}]
    turns += [{"role": "assistant", "content": call}, {"role": "user", "content": "ran"}]
    for messages in (turns, turns[:2], [*turns, {"role": "assistant", "content": "left out"}]):
        conversation = {"messages": messages}
        assert theirs.render_for_completion(conversation) == render_for_completion(
            conversation, mine
        )


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.9, "seed": 7}])
def test_our_checkpoint_generates_what_our_engine_does(options):
    path, mine = save(), tiny_model()
    theirs = TransformersEngine(*load_transformers(path, "cpu"))
    tokenizer = Tokenizer.load(path)
    prompts = [tokenizer.encode(text) for text in ("<|bos|>the", "<|bos|>the dog ran", "<|bos|>")]
    expected: list[list[list[int]]] = [[[], []] for _ in prompts]
    options = {"num_samples": 2, "max_tokens": 12, **options}
    for i, s, token, _ in Engine(mine, tokenizer).generate(prompts, **options):
        expected[i][s].append(token)
    ended = []
    found = theirs.complete(prompts, **options, max_batch=4, on_end=lambda: ended.append(1))
    assert found == [[theirs.tokenizer.decode(ids) for ids in some] for some in expected]
    assert len(ended) == 6
    logits = theirs.next_logits(prompts)
    torch.testing.assert_close(
        logits, Engine(mine, tokenizer).next_logits(prompts), atol=1e-4, rtol=1e-4
    )


# ---------------------------------------------------------------- other kinds


@KINDS
def test_logits_are_the_models_own(kind, made_tokenizer, tmp_path):
    reference = saved(kind, made_tokenizer, tmp_path)
    model, tokenizer = load_transformers(tmp_path, "cpu")
    assert model.config.sequence_len == 48 and tokenizer.bos == 0 and tokenizer.stop_ids == (1,)
    ids, places = torch.randint(0, 300, (2, 20)), torch.tensor([0, 19, 20, 33])
    with torch.no_grad():
        expected = reference(ids).logits.flatten(0, 1)[places]
    torch.testing.assert_close(model.logits_at(ids, places), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.model(ids).logits, reference(ids).logits)  # the head is whole


@KINDS
def test_fast_scores_equal_plain_ones(kind, made_tokenizer, tmp_path):
    saved(kind, made_tokenizer, tmp_path)
    model, _ = load_transformers(tmp_path, "cpu")
    examples = some_examples(300, 48)  # as long as the context: GPT-2 has no position beyond it
    for a, b in zip(score(model, examples, 1), score_plainly(model, examples), strict=True):
        np.testing.assert_allclose([s.loss for s in a], [s.loss for s in b], rtol=1e-4)
        assert [s.is_greedy for s in a] == [s.is_greedy for s in b]
    alone, together = (score(model, examples, n) for n in (1, 10_000))
    for a, b in zip(alone, together, strict=True):
        assert [s.is_greedy for s in a] == [s.is_greedy for s in b]


@KINDS
def test_generation_is_greedy_whatever_the_folder_asks_for(kind, made_tokenizer, tmp_path):
    reference = saved(kind, made_tokenizer, tmp_path)
    asks = transformers.GenerationConfig(do_sample=True, temperature=2.0, repetition_penalty=5.0,
                                         eos_token_id=1, max_length=3)  # fmt: skip
    asks.save_pretrained(tmp_path)
    engine = TransformersEngine(*load_transformers(tmp_path, "cpu"))
    prompts = [
        [0, *engine.tokenizer.encode_ordinary(text)] for text in ("the cat", "a", "mat ran on")
    ]
    completions = engine.complete(prompts, max_tokens=6, temperature=0)
    for prompt, (completion,) in zip(prompts, completions, strict=True):
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(reference(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 1:
                ids.pop()
                break
        assert completion == engine.tokenizer.decode(ids[len(prompt) :])


def test_an_answer_ends_at_the_context(made_tokenizer, tmp_path):
    saved(gpt2, made_tokenizer, tmp_path)
    engine = TransformersEngine(*load_transformers(tmp_path, "cpu"))
    engine.tokenizer.stop_ids = ()
    engine.tokenizer.decode = len
    assert engine.complete([[5] * 45], max_tokens=10, temperature=0) == [[3]]
    for prompt in ([], [5] * 48):
        with pytest.raises(ConfigError, match=f"prompt 0 has {len(prompt)} tokens"):
            engine.complete([prompt], max_tokens=1)


def test_special_tokens_in_text_stay_text(made_tokenizer, tmp_path):
    saved(gpt2, made_tokenizer, tmp_path)
    _, tokenizer = load_transformers(tmp_path, "cpu")
    assert 1 not in tokenizer.encode_ordinary("a</s>b") and 1 in tokenizer.encode("a</s>b")
    assert 1 not in tokenizer.encode_ordinary_batch(["</s>"])[0]


def test_conversations_without_and_with_a_template(made_tokenizer, tmp_path, capsys):
    saved(gpt2, made_tokenizer, tmp_path)
    _, plain = load_transformers(tmp_path, "cpu")
    assert "has no chat template" in capsys.readouterr()[0]
    messages = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    ids = plain.render_for_completion({"messages": messages})
    assert ids == [0, *plain.encode_ordinary("the cat\n\n")]
    made = transformers.AutoTokenizer.from_pretrained(tmp_path)
    made.chat_template = "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    with_template = TransformersTokenizer(made, [1], 300)
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
    ids = with_template.render_for_completion({"messages": [{"role": "user", "content": parts}]})
    assert with_template.decode(ids) == "<s>[user]the cat</s>" and ids[0] == 0 and ids[-1] == 1


# ---------------------------------------------------------------- what cannot work


def test_a_folder_that_is_none_and_one_that_is_not_whole(tmp_path):
    with pytest.raises(CheckpointError, match="is no folder; expected a Hugging Face model's"):
        load_transformers(tmp_path / "nowhere", "cpu")
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        load_transformers(tmp_path, "cpu")


def test_a_tokenizer_without_a_first_token_is_an_error(made_tokenizer):
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=made_tokenizer.backend_tokenizer)
    with pytest.raises(DataError, match="no token that a text begins with"):
        TransformersTokenizer(bare, [], 300)


def test_a_context_that_nobody_names_is_an_error(made_tokenizer):
    model = llama()
    assert context_of(model, made_tokenizer) == 48
    model.config.max_position_embeddings = 0
    with pytest.raises(CheckpointError, match="names no context length"):
        context_of(model, made_tokenizer)
