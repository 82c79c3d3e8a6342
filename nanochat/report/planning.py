"""What pretraining will take on one GPU, on a node, on many: memory, traffic, hours, price.

    python -m scripts.base_train --depth=32 --plan --gpus=64 --gpu=H100

The bytes are those that training/distributed.py moves; a test counts them on sockets. Times are a
model: computing at the share of the peak that was measured at depth 20 on one H100, traffic at
COLLECTIVES of the links' data sheets and with the time of NCCL's hops, and of it only what nothing
hides.
"""

from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from nanochat.common import ConfigError
from nanochat.gpt import GPTConfig
from nanochat.hardware import CARDS
from nanochat.report.links import LINKS
from nanochat.training.batch_plan import ACTIVATION_BYTES, LOSS_BYTES, MEMORY_SHARE, divide_rows

MEASURED_MFU = 0.529  # whole steps of depth 20, bench/results/gpu_check-nvidia-h100-80gb-hbm3.json
PRODUCT_SHARE = 0.78  # of the peak, by large products; the same record, "matmul"
COLLECTIVES = 0.75  # of a link's speed that large transfers reach: an assumption
PRICES = {"H100": 3.0, "H200": 3.5, "A100": 1.8}  # dollars for an hour of one, an assumption
NODE = 8
LARGEST_GROUP = 64  # beyond it a ring's hops take longer than what they carry: --shard-group 64


@dataclass(frozen=True)
class Setting:
    """How a model is trained. group: ranks that share one set of weights."""

    model: GPTConfig
    gpus: int = 1
    group: int = 1
    shard: bool = False
    checkpoint_blocks: int = 0
    tokens_per_step: int = 524_288
    rows: int = 32
    itemsize: int = 2  # of the compute dtype
    reduce_itemsize: int = 4  # of gradients that travel

    @property
    def micro_batches(self) -> int:
        rows = self.tokens_per_step // self.model.sequence_len
        return divide_rows(rows, self.gpus, self.rows).accum_steps

    @property
    def copies(self) -> int:
        return self.gpus // self.group

    @property
    def nodes(self) -> int:
        """Of a group."""
        return -(-self.group // NODE)


# ---------------------------------------------------------------- the model's shapes


def block_shapes(c: GPTConfig) -> list[tuple[int, int]]:
    D, heads, kv = c.n_embd, c.n_head * c.head_dim, c.n_kv_head * c.head_dim
    return [(heads, D), (D, heads), (kv, D), (kv, D), (4 * D, D), (D, 4 * D)]


def count(shapes) -> int:
    return sum(rows * columns for rows, columns in shapes)


def num_params(c: GPTConfig) -> int:
    return 2 * c.vocab_size * c.n_embd + c.n_layer * count(block_shapes(c))


def flops_per_token(c: GPTConfig) -> int:
    """As GPT.flops_per_token."""
    attention = 12 * c.n_layer * c.n_head * c.head_dim * c.sequence_len
    return 6 * (num_params(c) - c.vocab_size * c.n_embd) + attention


def muon_flops(c: GPTConfig, ranks: int = 1) -> int:
    """Of the rank that orthogonalises most, a matrix of each round: five times X X^T, its square,
    and their product with X."""
    sides = [sorted(shape) for shape in block_shapes(c)] * c.n_layer
    work = sorted((5 * (4 * a * a * b + 2 * a**3) for a, b in sides), reverse=True)
    return sum(work[::ranks])


# ---------------------------------------------------------------- bytes


def traffic(s: Setting) -> dict[str, float]:
    """Bytes that a rank sends in a step, on average over the ranks: "gather" weights, "reduce"
    gradients and exchange for "muon" within a group, "copies" between groups."""
    c, N, A = s.model, s.group, s.micro_batches
    padded = lambda shapes: sum(N * -(-rows // N) * columns for rows, columns in shapes)  # noqa: E731
    table, block = padded([(c.vocab_size, c.n_embd)]), padded(block_shapes(c))
    blocks = c.n_layer * block
    matrices = c.n_layer * count(block_shapes(c))
    # gathered for the forward pass, and with --shard blocks again for the backward pass
    gathered = A * (2 * blocks + 2 * table) if s.shard else blocks + 2 * table
    reduced = (A if s.shard else 1) * (blocks + 2 * table)
    others = (N - 1) / N
    return {
        "gather": s.itemsize * gathered * others,
        "reduce": s.reduce_itemsize * reduced * others,
        "muon": (s.reduce_itemsize + s.itemsize) * matrices / N * others,
        "copies": 4 * reduced / N * 2 * (s.copies - 1) / s.copies,
    }


def memory(s: Setting) -> dict[str, float]:
    """Bytes on one device, by part, at their largest."""
    c, N = s.model, s.group
    P, tables = num_params(c), 2 * c.vocab_size * c.n_embd
    block = count(block_shapes(c))
    kept = c.n_layer - s.checkpoint_blocks + (s.checkpoint_blocks > 0)  # one is computed again
    per_block = ACTIVATION_BYTES * kept + s.checkpoint_blocks * 2
    parts = {
        "weights": 4 * P / N,
        "gradients": 4 * P / N,
        "optimizer": (4 * (P - tables) + 8 * tables) / N,
        "whole weights": 0,
        "whole gradients": 0,
        "activations": per_block * c.n_embd * s.rows * c.sequence_len * s.itemsize / 2,
        "logits and losses": LOSS_BYTES,
    }
    if N == 1:
        parts["update"] = 2 * s.itemsize * (P - tables)
    elif s.shard:  # a block, the next one, and a table; gradients of two
        parts["whole weights"] = s.itemsize * (2 * block + tables / 2)
        parts["whole gradients"] = 4 * (2 * block + tables / 2)
    else:
        parts["whole weights"] = s.itemsize * P
        parts["whole gradients"] = 4 * P
    return parts


def rows_that_fit(s: Setting, memory_bytes: float) -> int:
    """The most rows in a micro-batch, 0 where not even one fits."""
    fixed = sum(memory(replace(s, rows=0)).values())
    row = memory(replace(s, rows=1))["activations"]
    return max(0, int((MEMORY_SHARE * memory_bytes - fixed) // row))


# ---------------------------------------------------------------- time


def send_seconds(s: Setting, gpu: str, sent: float, collectives: int, far: float) -> float:
    """Of collectives in which each rank of a group sends some bytes, of them the share `far` to
    other nodes, at the same time. A hop of NCCL's rings is a rank of the node, or a node."""
    link = LINKS[gpu]
    hops = (s.group - s.nodes) * link.node_hop + (s.nodes - 1) * link.network_hop
    seconds = max((1 - far) * sent / link.node, far * sent / link.network) / COLLECTIVES
    return seconds + collectives * hops


def step_seconds(s: Setting, gpu: str) -> dict[str, float]:
    """Of one step: "compute", "muon" and "exposed", traffic that no computing hides."""
    c, card, link, moved, A = s.model, CARDS[gpu], LINKS[gpu], traffic(s), s.micro_batches
    compute = s.tokens_per_step / s.gpus * flops_per_token(c) / (MEASURED_MFU * card.flops)
    muon = muon_flops(c, s.group) / (PRODUCT_SHARE * card.flops)
    if s.gpus == 1:
        return {"compute": compute, "muon": muon, "exposed": 0.0}
    # A ring passes every rank of a node, and leaves it through each network card once.
    ring_far = 1 / NODE if s.nodes > 1 else 0.0
    units, table = (c.n_layer + 2) * (A if s.shard else 1), c.vocab_size * c.n_embd
    others = (s.group - 1) / s.group
    between = 2 * (s.copies - 1) / s.copies / s.group * 4 / (COLLECTIVES * link.network)
    copies_hops = 2 * (s.copies - 1) * link.network_hop

    def reduce_seconds(sent: float, numbers: float, collectives: int) -> float:
        first = send_seconds(s, gpu, sent, collectives, ring_far)
        return first + numbers * between + collectives * copies_hops

    # Hidden: gathering behind the forward pass (and with --shard the backward pass), reducing
    # behind the backward pass of the last micro-batch (with --shard of all).
    forward, backward = (compute * part / (1 if s.shard else A) for part in (1 / 3, 2 / 3))
    gather = send_seconds(s, gpu, moved["gather"], units + s.shard * A * c.n_layer, ring_far)
    numbers = moved["reduce"] / others / s.reduce_itemsize
    reduce = reduce_seconds(moved["reduce"], numbers, units)
    # Nothing that could hide it follows the embedding's gradient, which is the last; for the next
    # step it travels while Muon computes.
    tail = reduce_seconds(s.reduce_itemsize * table * others, table, 1)
    first = send_seconds(s, gpu, s.itemsize * table * others, 1, ring_far)
    exposed = max(0.0, gather - forward - backward * s.shard) + max(tail, reduce - backward)
    exposed += max(0.0, first - muon)
    # Muon's exchanges, there and back, go straight to every rank.
    rounds = -(-c.n_layer * len(block_shapes(c)) // s.group)
    far = (s.group - s.group / s.nodes) / (s.group - 1)
    exposed += send_seconds(s, gpu, moved["muon"], 0, far)
    exposed += 2 * rounds * (link.network_hop if s.nodes > 1 else link.node_hop)
    return {"compute": compute, "muon": muon, "exposed": exposed}


def efficiency(s: Setting, gpu: str) -> float:
    """Speed as a share of s.gpus times that of one GPU, with as many rows at a time."""
    one = replace(s, gpus=1, group=1, shard=False)
    alone, together = (sum(step_seconds(x, gpu).values()) for x in (one, s))
    return alone / s.gpus / together


# ---------------------------------------------------------------- the page


def choices(s: Setting, gpu: str) -> list[tuple[str, Setting]]:
    """The ways to train on these GPUs, each with the rows that fit."""
    half, node = s.model.n_layer // 2, min(s.gpus, NODE)
    ways = [("replicated" if s.gpus > 1 else "one GPU", replace(s, group=s.gpus))]
    if s.gpus > 1:
        ways += [("--shard", replace(s, group=node, shard=True))]
    if s.gpus > NODE:
        group = node if s.gpus <= LARGEST_GROUP else LARGEST_GROUP
        ways += [(f"--shard-group {group}", replace(s, group=group))]
        ways += [(f"--shard --shard-group {s.gpus}", replace(s, group=s.gpus, shard=True))]
    ways += [
        (f"{name} --checkpoint-blocks {blocks}", replace(way, checkpoint_blocks=blocks))
        for name, way in list(ways)
        for blocks in (half, s.model.n_layer)
    ]
    most = max(1, s.tokens_per_step // s.model.sequence_len // s.gpus)
    fitting = ((name, way, rows_that_fit(way, LINKS[gpu].memory)) for name, way in ways)
    return [(name, replace(way, rows=min(most, rows))) for name, way, rows in fitting]


def print_plan(config, vocab_size: int = 65_536) -> None:
    """The page for a base_train config."""
    gpus, gpu = config.gpus, config.gpu
    if gpu not in LINKS:
        raise ConfigError(f"--gpu {gpu}: no links are known of it; choose {', '.join(LINKS)}")
    if gpus > NODE and gpus % NODE:
        raise ConfigError(f"--gpus {gpus}: more than {NODE} are whole nodes of {NODE}")
    overrides = {"sequence_len": config.sequence_len, "width": config.width}
    if config.num_kv_heads:
        overrides["n_kv_head"] = config.num_kv_heads
    model = GPTConfig.from_depth(config.depth, vocab_size, config.head_dim, **overrides)
    itemsize = 2 if config.reduce_dtype == "bfloat16" else 4
    base = Setting(model, gpus, tokens_per_step=config.total_batch_size, reduce_itemsize=itemsize)
    tokens = config.target_tokens or config.tokens_per_param * num_params(model)
    print(
        f"depth {config.depth}: {num_params(model):,} parameters, {tokens:,.0f} tokens in steps of "
        f"{config.total_batch_size:,}, {flops_per_token(model) * tokens:.2e} FLOPs\n"
        f"{gpus} x {gpu}: {CARDS[gpu].flops / 1e12:.0f} TFLOP/s, {LINKS[gpu].memory / 1e9:.0f} GB"
    )
    ways = choices(base, gpu)
    if not any(way.rows for _, way in ways):
        print("nothing fits: take more GPUs, or cards with more memory")
    print_memory(ways, gpu)
    print_time([(name, way) for name, way in ways if way.rows], gpu, tokens)
    print_curve(base, gpu)


def print_memory(ways: list[tuple[str, Setting]], gpu: str) -> None:
    parts = list(memory(ways[0][1]))
    table = Table(title="memory of a GPU, GB")
    for name in ("", "rows", *(p for p in parts if p != "update"), "all"):
        table.add_column(name, justify="left" if not name else "right")
    for name, way in ways:
        bytes_of = memory(replace(way, rows=max(1, way.rows)))
        shown = [f"{bytes_of[p] / 1e9:.1f}" for p in parts if p != "update"]
        rows = str(way.rows) if way.rows else "none fits"
        table.add_row(name, rows, *shown, f"{sum(bytes_of.values()) / 1e9:.1f}")
    Console().print(table)


def print_time(ways: list[tuple[str, Setting]], gpu: str, tokens: float) -> None:
    names = ("", "GB in a node", "GB between nodes", "computing s", "Muon s", "exposed s")
    table = Table(title="a step: sent by a GPU, and time")
    for name in (*names, "of linear", "tokens/s", "hours", "dollars"):
        table.add_column(name, justify="left" if not name else "right")
    for name, way in ways:
        moved, seconds = traffic(way), step_seconds(way, gpu)
        again = 1 + way.checkpoint_blocks / way.model.n_layer / 3  # a forward pass more
        whole = sum(seconds.values()) + (again - 1) * seconds["compute"]
        speed = way.tokens_per_step / whole
        hours = tokens / speed / 3600
        far = (1 / NODE if way.nodes > 1 else 0) * (moved["gather"] + moved["reduce"])
        far += moved["copies"] + (way.nodes > 1) * moved["muon"]
        inside, between = sum(moved.values()) - far, far
        price = f"{hours * way.gpus * PRICES[gpu]:,.0f}" if gpu in PRICES else "?"
        table.add_row(
            name, f"{inside / 1e9:.2f}", f"{between / 1e9:.2f}",
            f"{again * seconds['compute']:.3f}", f"{seconds['muon']:.4f}",
            f"{seconds['exposed']:.4f}", f"{efficiency(way, gpu):.3f}",
            f"{speed:,.0f}", f"{hours:,.2f}", price,
        )  # fmt: skip
    Console().print(table)


def print_curve(base: Setting, gpu: str) -> None:
    """Of linear, replicated, from one GPU to many, each with some rows."""
    shown = []
    for gpus in (1, 8, 64, 512):
        tokens = max(base.tokens_per_step, 4 * gpus * base.model.sequence_len)
        way = replace(base, gpus=gpus, group=min(gpus, LARGEST_GROUP), tokens_per_step=tokens)
        most = tokens // base.model.sequence_len // gpus
        rows = min(most, rows_that_fit(way, LINKS[gpu].memory))
        share = f"{efficiency(replace(way, rows=rows), gpu):.3f}" if rows else "-"
        larger = f" (steps of {tokens:,})" if tokens > base.tokens_per_step else ""
        shown.append(f"{gpus}: {share}{larger}")
    print(f"of linear, replicated, by GPUs: {', '.join(shown)}")
