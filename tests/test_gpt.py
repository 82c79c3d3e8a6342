"""The model: its size, its function against a slow reference, and against transformers' class."""

import math

import pytest
import torch

from nanochat.checkpoint.hf_config import from_hf, to_hf
from nanochat.common import CheckpointError, ConfigError
from nanochat.gpt import GPT, GPTConfig, draw, soft_cap

TINY = GPTConfig(
    n_layer=2, n_embd=64, n_head=4, n_kv_head=4, head_dim=16, vocab_size=128, sequence_len=32
)


def tiny(**overrides) -> GPTConfig:
    return GPTConfig(**{**vars(TINY), **overrides})


def random_model(**overrides) -> GPT:
    """A tiny model whose output projections are not the zeros that training starts from."""
    model = GPT(tiny(**overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, TINY.vocab_size, shape)


# ---------------------------------------------------------------- size


def test_depth_20_has_the_parameters_and_flops_of_the_design():
    with torch.device("meta"):
        model = GPT(GPTConfig.from_depth(20, vocab_size=65536))
    c = model.config
    assert (c.n_embd, c.n_head, c.n_kv_head, c.head_dim) == (1280, 10, 10, 128)
    # embedding and head 2 * 65,536 * 1,280 = 167,772,160; a layer has 4 D^2 of attention and
    # 8 D^2 of MLP, 12 * 1,280^2 = 19,660,800, times 20 = 393,216,000
    assert model.num_params() == 167_772_160 + 393_216_000 == 560_988_160
    # 6 * (393,216,000 + 83,886,080) = 2,862,612,480; 12 * 20 * 10 * 128 * 2,048 = 629,145,600
    assert model.flops_per_token() == 2_862_612_480 + 629_145_600 == 3_491_758_080
    # head 65,536 * 1,280; of the last layer the output projection, D^2, and the MLP, 8 D^2
    assert model.flops_without_target() == 6 * (83_886_080 + 9 * 1280**2)


def test_fewer_key_value_heads_have_fewer_parameters():
    # 2 of 4 heads: k and v lose half of 64 * 64 each, in 2 layers: 2 * 2 * 2,048 = 8,192
    assert GPT(TINY).num_params() - GPT(tiny(n_kv_head=2)).num_params() == 8_192


def test_a_tied_head_is_the_embedding_and_costs_the_same_flops():
    plain, tied = GPT(TINY), GPT(tiny(tie_word_embeddings=True))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert plain.num_params() - tied.num_params() == TINY.vocab_size * TINY.n_embd
    assert plain.flops_per_token() == tied.flops_per_token()


def test_width_is_rounded_up_to_whole_heads():
    assert GPTConfig.from_depth(3, vocab_size=128).n_embd == 256  # 192 -> 2 heads of 128
    assert GPTConfig.from_depth(3, vocab_size=128, head_dim=64).n_embd == 192
    narrow = GPTConfig.from_depth(3, vocab_size=128, head_dim=64, width=100)  # up to 2 heads of 64
    assert (narrow.n_layer, narrow.n_embd, narrow.n_head, narrow.n_kv_head) == (3, 128, 2, 2)


# ---------------------------------------------------------------- function


@pytest.mark.parametrize("tied", [False, True])
def test_first_loss_is_ln_v(tied):
    model = GPT(GPTConfig.from_depth(2, vocab_size=1024, tie_word_embeddings=tied))
    inputs, targets = torch.randint(0, 1024, (2, 4, 64))
    loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    # a tied head begins by repeating the token that it reads, a little
    assert abs(loss.item() - math.log(1024)) < (0.05 if tied else 0.01)


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = GPT(TINY).state_dict()
    torch.manual_seed(2)
    second = GPT(TINY).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
def test_no_output_depends_on_a_later_input(n_kv_head):
    model = random_model(n_kv_head=n_kv_head)
    embedded = []
    model.model.embed_tokens.weight.requires_grad_(True)
    inputs = torch.arange(10)[None]  # all different, so the embedding's gradient tells positions
    for t in range(10):
        model.zero_grad()
        model.features(inputs)[0, t].square().sum().backward()
        gradient = model.model.embed_tokens.weight.grad[:10].abs().sum(-1)
        embedded.append(gradient > 0)
    assert torch.equal(torch.stack(embedded), torch.ones(10, 10).tril().bool())


@pytest.mark.parametrize("recompute", [False, True])
def test_places_asked_for_have_the_features_and_gradients_of_the_whole(recompute):
    model, inputs = random_model(), ids(2, 10)
    for block in model.model.layers:
        block.recompute = recompute
    rows = torch.tensor([17, 0, 3, 12])
    parameters = list(model.parameters())[:-1]  # without the head
    whole, part = model.features(inputs).flatten(0, 1)[rows], model.features(inputs, rows)
    torch.testing.assert_close(part, whole)
    grads = [torch.autograd.grad(x.square().sum(), parameters) for x in (part, whole)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_kv_head", [4, 1])
@pytest.mark.parametrize("recompute", [False, True])
def test_documents_of_a_row_do_not_see_each_other(n_kv_head, recompute):
    model, start = random_model(n_kv_head=n_kv_head), 7
    for block in model.model.layers:
        block.recompute = recompute
    # what is before the first start of a row is a document, too
    documents = [[3, 4], [start, *range(10, 14)], [start], [start, *range(30, 38)], [5, start]]
    documents = [torch.tensor(document) for document in documents]
    inputs = torch.stack([torch.cat(documents[:3]), torch.cat(documents[3:])[:8]])
    documents[3:] = [documents[3][:8]]
    alone = torch.cat([model.features(document[None])[0] for document in documents])
    assert (model.features(inputs).flatten(0, 1) - alone).abs().max() > 0.01
    model.document_start = start
    together = model.features(inputs).flatten(0, 1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    rows = torch.tensor([15, 1, 8])
    torch.testing.assert_close(model.features(inputs, rows), alone[rows], rtol=1e-4, atol=1e-5)
    parameters = list(model.parameters())[:-1]  # without the head
    grads = [torch.autograd.grad(x.square().sum(), parameters) for x in (together, alone)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def reference_logits(model: GPT, inputs: list[int]) -> torch.Tensor:
    """(T, V): the same function written out one position and one head at a time, in float64."""
    c = model.config
    weights = {name: p.detach().double() for name, p in model.state_dict().items()}
    group = c.n_head // c.n_kv_head

    def norm(x):
        return x / (x.square().mean() + c.rms_norm_eps).sqrt()

    def turn(x, position):
        out = x.clone()
        for i in range(c.head_dim // 2):
            angle = position * c.rope_theta ** (-2 * i / c.head_dim)
            a, b = x[i], x[i + c.head_dim // 2]
            out[i] = a * math.cos(angle) + b * math.sin(angle)
            out[i + c.head_dim // 2] = b * math.cos(angle) - a * math.sin(angle)
        return norm(out)

    xs = [norm(weights["model.embed_tokens.weight"][token]) for token in inputs]
    for layer in range(c.n_layer):
        w = {
            name.split(".")[-2]: p
            for name, p in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        keys, values = [], []
        for t, x in enumerate(xs):
            y = norm(x)
            q, k, v = ((w[p] @ y).view(-1, c.head_dim) for p in ("q_proj", "k_proj", "v_proj"))
            keys.append([turn(head, t) for head in k])
            values.append(v)
            heads = []
            for h in range(c.n_head):
                query = turn(q[h], t)
                scores = torch.stack([query @ past[h // group] for past in keys])
                shares = (scores / math.sqrt(c.head_dim)).softmax(0)
                heads.append(
                    sum(s * past[h // group] for s, past in zip(shares, values, strict=True))
                )
            x = x + w["o_proj"] @ torch.cat(heads)
            xs[t] = x + w["fc2"] @ (w["fc1"] @ norm(x)).clamp(min=0).square()
    logits = torch.stack([weights["lm_head.weight"] @ norm(x) for x in xs])
    cap = c.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"n_kv_head": 2},
        {"n_kv_head": 1, "rope_theta": 500.0},
        {"logit_softcap": None},
        {"rms_norm_eps": 0.1, "logit_softcap": 2.0},
        {"tie_word_embeddings": True},
    ],
)
def test_logits_equal_the_slow_reference(overrides):
    model = random_model(**overrides)
    tokens = ids(7)
    got = model(tokens[None])[0].detach().double()
    assert torch.allclose(got, reference_logits(model, tokens.tolist()), atol=1e-5)


def test_logits_stay_within_the_cap_and_none_switches_it_off():
    x = torch.tensor([-1e6, 0.001, 30.0])
    assert torch.allclose(soft_cap(x, 15.0), torch.tensor([-15.0, 0.001, 15 * math.tanh(2.0)]))
    assert torch.equal(soft_cap(x, None), x)


def test_bfloat16_compute_is_close_and_leaves_float32_weights_and_logits():
    model = random_model()
    tokens = ids(2, 16)
    exact = model(tokens)
    model.compute_dtype = torch.bfloat16
    logits = model(tokens)
    assert logits.dtype == torch.float32 and model.features(tokens).dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not torch.equal(logits, exact)
    assert (logits - exact).abs().max() < 0.05 * exact.abs().max()


# ---------------------------------------------------------------- transformers' class


def transformers_twin(model: GPT):
    transformers = pytest.importorskip("transformers", reason="needs the [export] extra")
    settings = {k: v for k, v in to_hf(model.config).items() if k != "architectures"}
    twin = transformers.NanoChatForCausalLM(transformers.NanoChatConfig(**settings))
    return twin.eval()


@pytest.mark.parametrize(
    "overrides",
    [{}, {"n_kv_head": 2, "rope_theta": 1000.0}, {"tie_word_embeddings": True}],
)
def test_transformers_has_the_same_names_and_computes_the_same(overrides):
    model = random_model(**overrides)
    twin = transformers_twin(model)
    mine = {name: p.shape for name, p in model.state_dict().items()}
    assert mine == {name: p.shape for name, p in twin.state_dict().items()}
    twin.load_state_dict(model.state_dict())
    tokens = ids(2, 20)
    with torch.no_grad():
        assert torch.allclose(twin(tokens).logits, model(tokens), atol=1e-4)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"n_kv_head": 1, "logit_softcap": None, "rope_theta": 5e5},
        {"tie_word_embeddings": True},
    ],
)
def test_config_survives_the_hugging_face_form(overrides):
    config = tiny(**overrides)
    assert from_hf(to_hf(config)) == config


def test_a_config_of_another_function_is_refused_by_name():
    with pytest.raises(ConfigError, match="hidden_act = 'gelu'"):
        from_hf({**to_hf(TINY), "hidden_act": "gelu"})
    with pytest.raises(ConfigError, match="model_type = 'llama'"):
        from_hf({**to_hf(TINY), "model_type": "llama"})


@pytest.mark.parametrize(
    "name, value",
    [
        ("rms_norm_eps", "x"),
        ("rms_norm_eps", float("nan")),
        ("final_logit_softcapping", "15"),
        ("final_logit_softcapping", 0),
        ("max_position_embeddings", "64"),
        ("max_position_embeddings", 0),
        ("num_key_value_heads", 0),
        ("num_key_value_heads", "2"),
        ("num_hidden_layers", True),
        ("head_dim", 16.0),
    ],
)
def test_a_config_with_numbers_that_are_none_is_refused(name, value):
    with pytest.raises(CheckpointError, match=f"config.json has {name} = "):
        from_hf({**to_hf(TINY), name: value})


@pytest.mark.parametrize(
    "make, nearest",
    [
        (lambda: GPTConfig.from_depth(12, 65536, n_kv_head=4), "nearest that does is 3"),
        (lambda: GPTConfig.from_depth(4, 8001), "the next is 8064"),
        (lambda: GPTConfig.from_depth(0, 8192), "at least 1"),
        (lambda: tiny(n_embd=65), "4 heads x head_dim 16"),
    ],
)
def test_impossible_shapes_name_the_nearest_possible_one(make, nearest):
    with pytest.raises(ConfigError, match=nearest):
        make()


# ---------------------------------------------------------------- naive generation


def test_greedy_generation_follows_the_largest_logit():
    model = random_model()
    tokens = [5, 6, 7]
    for token in model.generate(tokens, 5, temperature=0):
        assert token == int(model(torch.tensor([tokens]))[0, -1].argmax())
        tokens = [*tokens, token]
    assert len(tokens) == 8


def test_generation_ends_before_a_stop_id():
    model = random_model()
    free = list(model.generate([5], 6, temperature=0))
    model.stop_ids = (free[3],)
    assert list(model.generate([5], 6, temperature=0)) == free[: free.index(free[3])]


def test_generation_repeats_for_a_seed_and_slides_over_the_context():
    model = random_model(sequence_len=8)
    first, second, other = (list(model.generate([5] * 6, 10, seed=s)) for s in (1, 1, 2))
    assert first == second != other and len(first) == 10


def test_draw_respects_top_k_and_top_p():
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    seen = {draw(logits, 1.0, 2, None, generator) for _ in range(50)}
    assert seen == {1, 2}
    seen = {draw(logits, 1.0, None, 0.45, generator) for _ in range(50)}
    assert seen == {1, 2}
