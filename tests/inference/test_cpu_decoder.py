"""The compiled decoder against the model's definition in float64, and against itself."""

import threading

import pytest
import torch
import torch.nn.functional as F
from instruction_sets import check, each_set

from nanochat.common import ConfigError
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig, rotary_tables
from nanochat.inference import cpu_decoder as module
from nanochat.inference.cpu_decoder import KINDS, CpuDecoder, cpu_decoder, library
from nanochat.inference.fused_model import FusedModel
from nanochat.inference.kv_cache import KVCache
from nanochat.inference.sampling import SamplingParams, draw, sample, sampling_table
from nanochat.inference.scheduler import Chunk
from nanochat.tokenizer import Tokenizer

IDS = torch.randint(0, 64, (41,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(autouse=True)
def compiled():
    if cpu_decoder(FusedModel(random_model()), None) is None:
        pytest.skip("needs a C++ compiler")


def random_model(D=64, H=4, Hkv=4, K=16, **overrides) -> GPT:
    shape = {"n_layer": 2, "n_embd": D, "n_head": H, "n_kv_head": Hkv, "head_dim": K}
    model = GPT(GPTConfig(**{**shape, "vocab_size": 64, "sequence_len": 512, **overrides}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=D**-0.5, generator=generator)
    return model.requires_grad_(False)


def as_kept(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """The weights (O, I) that the packed ones stand for, float64."""
    if kind == "bfloat16":
        return weight.bfloat16().double()
    return rounded(weight, 127) if kind == "int8" else weight.double()


def rounded(x: torch.Tensor, largest: int) -> torch.Tensor:
    """x (N, I) in steps of a 1 / `largest` of the largest of 64 neighbours; float64."""
    blocks = F.pad(x.float(), (0, -x.shape[1] % 64)).unflatten(1, (-1, 64))
    most = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.full_like(most, largest).div(most).nan_to_num(posinf=0)
    kept = (blocks * inverse).round().double() * (most / largest).double()
    return kept.flatten(1)[:, : x.shape[1]]


def exact_logits(model: GPT, ids: list[int], kind: str) -> torch.Tensor:
    """(T, V) in float64, written out from the design page's definition."""
    c, T = model.config, len(ids)
    cos, sin = (t.double() for t in rotary_tables(torch.arange(T), c.head_dim, c.rope_theta))

    def norm(x):
        return x / (x.square().mean(-1, keepdim=True) + c.rms_norm_eps).sqrt()

    def linear(x, layer):
        return (rounded(x, 63) if kind == "int8" else x) @ as_kept(layer.weight, kind).T

    def turned(x):
        a, b = x.chunk(2, dim=-1)
        return norm(torch.cat([a * cos + b * sin, b * cos - a * sin], -1))

    x = norm(model.model.embed_tokens.weight[ids].double())
    future = torch.ones(T, T).triu(1).bool()
    for block in model.model.layers:
        a, y = block.self_attn, norm(x)
        q, k, v = (
            linear(y, p).view(T, -1, c.head_dim).transpose(0, 1)
            for p in (a.q_proj, a.k_proj, a.v_proj)
        )
        k, v = (t.repeat_interleave(c.n_head // c.n_kv_head, 0) for t in (turned(k), v))
        scores = (turned(q) @ k.transpose(1, 2) * c.head_dim**-0.5).masked_fill(future, -torch.inf)
        y = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + linear(y, a.o_proj)
        x = x + linear(linear(norm(x), block.mlp.fc1).relu().square(), block.mlp.fc2)
    logits = linear(norm(x), model.lm_head)
    return (
        logits if c.logit_softcap is None else c.logit_softcap * (logits / c.logit_softcap).tanh()
    )


def assert_close(logits: torch.Tensor, exact: torch.Tensor, kind: str) -> None:
    """In int8 a number half-way between two steps may become either, and moves what follows."""
    error = (logits - exact).abs()
    assert (error.median() if kind == "int8" else error.max()) < 2e-4
    assert error.max() < 0.1


class Reader:
    """A decoder with a cache; reads tokens and returns the logits of all of them."""

    def __init__(
        self,
        model: GPT,
        kind: str | None = None,
        decoder: CpuDecoder | None = None,
        cache_dtype: torch.dtype | None = None,
    ):
        self.decoder = decoder or cpu_decoder(FusedModel(model), kind)
        self.cache = KVCache(model.config, "cpu", cache_dtype or model.compute_dtype)
        self.cache.reserve(5, 512)

    def read(self, *spans: tuple[int, int, list[int]]) -> torch.Tensor:
        """spans: (slot, start, ids)."""
        rows = range(sum(len(ids) for _, _, ids in spans))
        return self.decoder.logits([Chunk(*span) for span in spans], rows, self.cache)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape",
    [{}, {"D": 72, "H": 3, "Hkv": 1, "K": 24}, {"D": 256, "H": 2, "Hkv": 2, "K": 128},
     {"D": 66, "H": 11, "Hkv": 11, "K": 6, "vocab_size": 192, "logit_softcap": None},
     {"D": 768, "H": 6, "Hkv": 2, "K": 128, "n_layer": 1}],
)  # fmt: skip
def test_logits_are_those_of_float64_with_the_same_weights(shape, kind):
    model = random_model(**shape)
    logits = Reader(model, kind).read((2, 0, IDS))
    assert_close(logits, exact_logits(model, IDS, kind), kind)
    one = Reader(model, kind).read((0, 0, IDS[:1]))
    assert_close(one, exact_logits(model, IDS[:1], kind), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_rows_computes_the_same(kind):
    model = random_model(D=136, H=2, Hkv=1, K=68, n_layer=1, vocab_size=64)
    exact = exact_logits(model, IDS, kind)
    for rows in (*range(1, 20), 31, 32, 33, 41):
        logits = Reader(model, kind).read((0, 0, IDS[:rows]))
        assert_close(logits, exact[:rows], kind)


@pytest.mark.parametrize("D", [64, 72, 136, 200, 512])
def test_int8_products_are_exact_for_every_number_of_rows(D):
    """Without layers the logits are one product, of rows that float32 rounds as float64 does."""
    model = random_model(D, 1, 1, D, n_layer=0, vocab_size=192, logit_softcap=None)
    x = F.rms_norm(model.model.embed_tokens.weight.double(), (D,), eps=model.config.rms_norm_eps)
    blocks = F.pad(x, (0, -D % 64)).unflatten(1, (-1, 64))
    steps = (blocks / blocks.abs().amax(-1, keepdim=True) * 63).flatten(1)
    doubtful = ((steps - steps.floor() - 0.5).abs() < 1e-4).any(1)
    ids = (~doubtful).nonzero().flatten().tolist()[:40]
    exact, most = exact_logits(model, ids, "int8"), len(ids)
    assert most == 40
    for rows in range(1, most + 1):
        logits = Reader(model, "int8").read((0, 0, ids[:rows]))
        assert (logits - exact[:rows]).abs().max() < 1e-5, rows


def test_a_nan_reaches_the_logits_of_int8():
    model = random_model()
    model.model.embed_tokens.weight[5, 3] = torch.nan
    logits = Reader(model, "int8").read((0, 0, [4]), (1, 0, [5]))
    assert logits[0].isfinite().all() and logits[1].isnan().all()


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_keys_and_values_of_bfloat16_are_rounded_once(kind):
    """Of the first token attention takes the value whatever its score: rounded by at most 2^-9."""
    model = random_model(D=72, H=3, Hkv=1, K=24)
    exact, whole = exact_logits(model, IDS, kind), Reader(model, kind).read((0, 0, IDS))
    reader = Reader(model, kind, cache_dtype=torch.bfloat16)
    logits = torch.cat([reader.read((0, 0, IDS[:20])), reader.read((0, 20, IDS[20:]))])
    assert not torch.equal(logits, whole)
    assert (logits - exact).abs().mean() < 2**-9 * exact.abs().mean() * 4
    assert reader.cache.layers[0].dtype == torch.bfloat16


@pytest.mark.parametrize("D", [1280, 2048])
def test_wide_models(D):
    model = random_model(D, D // 128, D // 128, 128, n_layer=1)
    logits = Reader(model).read((0, 0, IDS[:5]))
    assert (logits - exact_logits(model, IDS[:5], "float32")).abs().max() < 5e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [{}, {"Hkv": 1}, {"D": 66, "H": 11, "Hkv": 11, "K": 6}])
def test_a_row_has_the_same_bits_alone_and_in_a_crowd(kind, shape):
    model = random_model(**shape)
    whole = Reader(model, kind).read((0, 0, IDS))
    reader = Reader(model, kind)
    alone = [reader.read((1, i, [id])) for i, id in enumerate(IDS)]
    assert torch.equal(torch.cat(alone), whole)
    crowd = Reader(model, kind)
    crowd.read((0, 0, IDS[:20]), (3, 0, IDS[:5]), (2, 0, [7, 8]))
    rows = crowd.read((2, 2, [9]), (3, 5, IDS[5:6]), (0, 20, IDS[20:]), (4, 0, IDS[:30]))
    assert torch.equal(rows[1], whole[5]) and torch.equal(rows[2:23], whole[20:])
    assert torch.equal(rows[23:], whole[:30])


def test_many_rows_and_few_have_the_same_bits():
    model, ids = random_model(), [id for _ in range(7) for id in IDS][:280]
    whole, parts = Reader(model, "bfloat16").read((0, 0, ids)), Reader(model, "bfloat16")
    some = [parts.read((0, i, ids[i : i + 97])) for i in range(0, 280, 97)]
    assert torch.equal(torch.cat(some), whole)


def test_any_number_of_threads_gives_the_same_bits():
    model, before = random_model(D=256, H=2, Hkv=2, K=128), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            reader = Reader(model)
            results.append([reader.read((0, 0, IDS)), reader.read((0, 41, [3]))])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("Hkv, K", [(2, 64), (1, 16)])
def test_bfloat16_rounds_as_often_as_pytorch_does(Hkv, K):
    model = random_model(2 * K, 2, Hkv, K)
    model.compute_dtype = torch.bfloat16
    exact = exact_logits(model, IDS, "bfloat16")
    ours = (Reader(model).read((0, 0, IDS)) - exact).abs().mean()
    assert ours < 1.2 * (model(torch.tensor([IDS]))[0] - exact).abs().mean()


@each_set
def test_every_set_of_instructions_computes_the_same(instructions):
    check(instructions)
    model = random_model(D=72, H=3, Hkv=1, K=24)
    for kind in KINDS:
        decoder = CpuDecoder(FusedModel(model), library(instructions), kind)
        reader, exact = Reader(model, decoder=decoder), exact_logits(model, IDS, kind)
        assert_close(reader.read((0, 0, IDS[:20])), exact[:20], kind)
        assert_close(reader.read((0, 20, IDS[20:21])), exact[20], kind)


def test_new_weights_are_taken_in_place():
    model = random_model()
    reader = Reader(model)
    old = reader.read((0, 0, IDS))
    for parameter in model.parameters():
        parameter.mul_(1.25)
    reader.decoder.fused.refresh()
    reader.decoder.refresh()
    new = reader.read((0, 0, IDS))
    assert not torch.equal(new, old) and torch.equal(new, Reader(model).read((0, 0, IDS)))


def test_decoders_work_at_the_same_time():
    model, before = random_model(D=256, H=2, Hkv=2, K=128), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        readers, wanted = [Reader(model) for _ in range(3)], Reader(model).read((0, 0, IDS))
    finally:
        torch.set_num_threads(before)
    right = []

    def work(reader):
        right.append(all(torch.equal(reader.read((0, 0, IDS)), wanted) for _ in range(10)))

    threads = [threading.Thread(target=work, args=[reader]) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 3


@pytest.mark.parametrize("distinct", [True, False])
def test_tokens_are_drawn_as_by_pytorch(distinct):
    model = random_model(vocab_size=1024)
    decoder = cpu_decoder(FusedModel(model), None)
    generator = torch.Generator().manual_seed(3)
    params = [
        SamplingParams(temperature, top_k, top_p, min_p=min_p)
        for temperature in (0, 0.5, 1.0, 3.0)
        for top_k in (None, 1, 2, 50, 1023, 5000)
        for top_p in (None, 0.1, 0.7, 0.999)
        for min_p in (None, 0.05)
    ]
    logits = torch.randn(len(params), 1024, generator=generator) * 3
    if not distinct:
        logits = logits.round()
    for _ in range(3):
        noise = torch.rand(len(params), generator=generator, dtype=torch.float64).tolist()
        table = sampling_table(params, noise)
        assert decoder.draw(logits, table) == draw(logits, table).tolist()
    penalised = [SamplingParams(top_k=1, repetition_penalty=9.0)]
    best = logits[:1].argmax().item()
    assert sample(logits[:1], penalised, noise[:1], [[best]], decoder.draw) != [best]


# ---------------------------------------------------------------- whether there is one


def test_what_cannot_be_is_refused(monkeypatch):
    fused = FusedModel(random_model())
    with pytest.raises(ConfigError, match="'int4' is unknown; choose float32, bfloat16, int8"):
        cpu_decoder(fused, "int4")
    monkeypatch.setenv("NANOCHAT_CPU_KERNELS", "torch")
    assert cpu_decoder(fused, "bfloat16") is None
    with pytest.raises(ConfigError, match="int8 weights need"):
        cpu_decoder(fused, "int8")
    monkeypatch.setenv("NANOCHAT_CPU_KERNELS", "numpy")
    with pytest.raises(ConfigError, match="'numpy' is unknown; choose torch"):
        cpu_decoder(fused, None)


def test_a_compiler_that_fails_is_reported_and_pytorch_does_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    monkeypatch.setattr(module, "cpp_compiler", lambda: "/bin/false")
    library.cache_clear()
    model, tokenizer = random_model(vocab_size=320), Tokenizer.train(["low lower lowest"], 320)
    try:
        engine = Engine(model, tokenizer, weights="int8")
        assert "/bin/false does not work" in capsys.readouterr().out
        rows = engine.generate([IDS], max_tokens=5, temperature=0, stop=())
        assert [row[2] for row in rows] == list(model.generate(IDS, 5, temperature=0))
    finally:
        library.cache_clear()
