"""The parity gate: is what stands in an exported folder the model that was trained?

The folder is loaded by transformers in a fresh process and compared with the native checkpoint:
its files, config, weights, tokenizer, rendered chats, logits and greedy continuations.

    python -m nanochat.publishing.parity FOLDER CHECKPOINT DTYPE REPORT.json
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nanochat.checkpoint_manager import (
    generation_config,
    hugging_face_config,
    load_checkpoint,
)
from nanochat.common import CheckpointError
from nanochat.conversation import render, render_for_completion, stop_ids
from nanochat.gpt import GPT
from nanochat.publishing import export_files, parity_texts

TOLERANCE = 1e-4  # between logits, both computed in float32
LOGITS_AT_ONCE = 2**25  # float32 numbers: 128 MiB
NEW_TOKENS = 64
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class ParityError(CheckpointError):
    """The folder does not compute what the checkpoint computes; `report` has the figures."""

    def __init__(self, message: str, report: dict):
        super().__init__(message)
        self.report = report


@dataclass
class Check:
    """How often two sides were compared, how often they differed, and the first few differences."""

    compared: int = 0
    different: int = 0
    examples: list[str] = field(default_factory=list)

    def same(self, what: str, found, expected) -> None:
        self.that(found == expected, what, found, expected)

    def that(self, agrees: bool, what: str, found, expected) -> None:
        self.compared += 1
        if not agrees:
            self.different += 1
            if len(self.examples) < 3:
                self.examples.append(f"{what}: found {found!s:.300}, expected {expected!s:.300}")


# ---------------------------------------------------------------- from the exporting process


def prove(folder: Path, checkpoint: Path, dtype: str) -> dict:
    """Runs compare() in a fresh process and returns its report; ParityError unless it passed.

    folder: the export; checkpoint: the native folder; dtype: what the weights were rounded to.
    Raises CheckpointError when the folder could not even be loaded.
    """
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "parity.json"
        command = [sys.executable, "-P", "-m", "nanochat.publishing.parity"]
        command += [folder, checkpoint, dtype, answer]
        ran = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, check=False
        )
        if not answer.exists():
            last = "\n".join((ran.stderr or ran.stdout).strip().splitlines()[-8:])
            raise CheckpointError(
                f"{folder} could not be loaded and compared with {checkpoint} (status "
                f"{ran.returncode}):\n{last}"
            )
        report = json.loads(answer.read_text(encoding="utf-8"))
    if not report["passed"]:
        raise ParityError(f"{folder} is not the model of {checkpoint}:\n{summary(report)}", report)
    return report


def summary(report: dict) -> str:
    """A line a check, and under it the first differences."""
    lines = []
    for name, check in report["checks"].items():
        count = f"{check['different']} of {check['compared']} differ"
        lines.append(f"  {name}: {count if check['different'] else check['compared']}")
        lines += [f"    {example}" for example in report["differences"].get(name, ())]
    logits = report["logits"]
    lines.append(
        f"  largest difference of logits: {logits['max_abs_difference']:.2g} at "
        f"{logits['positions']:,} positions, {logits['tolerance']:.0e} allowed"
    )
    return "\n".join(lines)


# ---------------------------------------------------------------- in the fresh process


@torch.no_grad()
def compare(folder: Path, checkpoint: Path, dtype: str) -> dict:
    """The report on an exported folder: loads both models, in float32, and compares them.

    "passed"; "checks": {name: {"compared", "different"}}; "differences": the first of each kind;
    "logits", "greedy": figures; "versions" of what loaded the folder.
    """
    import tokenizers
    import transformers

    # Not on Apple's MPS, whose float32 was never held against the tolerance.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    native, tokenizer = native_model(checkpoint, dtype, device)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, use_fast=True, trust_remote_code=False
    )
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    theirs = theirs.to(device).eval()
    checks = {
        "files": check_files(folder, checkpoint, dtype),
        "config": check_config(theirs, native.config, tokenizer),
        "weights": check_weights(theirs, loading, native),
        **check_tokenizer(their_tokenizer, tokenizer),
        "chats": check_chats(their_tokenizer, tokenizer),
    }
    checks["logits"], logits = check_logits(theirs, native, tokenizer)
    checks["greedy"], greedy = check_greedy(theirs, native, tokenizer)
    counts = {n: {"compared": c.compared, "different": c.different} for n, c in checks.items()}
    modules = {"torch": torch, "transformers": transformers, "tokenizers": tokenizers}
    return {
        "passed": all(check.different == 0 for check in checks.values()),
        "dtype": dtype,
        "texts": len(parity_texts.texts()),
        "checks": counts,
        "differences": {name: check.examples for name, check in checks.items() if check.examples},
        "logits": logits,
        "greedy": greedy,
        "versions": {name: module.__version__ for name, module in modules.items()},
    }


def native_model(checkpoint: Path, dtype: str, device: torch.device):
    """(model, tokenizer) of the native folder, its weights rounded to `dtype`, held in float32."""
    weights, config, tokenizer, _ = load_checkpoint(checkpoint)
    for name in weights:  # in place, and not copied into the model: one copy in memory
        weights[name] = weights[name].to(DTYPES[dtype]).to(device, torch.float32)
    model = GPT.from_weights(config, weights)
    model.compute_dtype = torch.float32
    return model.eval(), tokenizer


def check_config(theirs, config, tokenizer) -> Check:
    """Every field that the checkpoint wrote, as transformers understood it."""
    check = Check()
    expected = hugging_face_config(config, tokenizer)
    for name in ("architectures", "dtype", "rope_theta", "rope_parameters"):
        expected.pop(name)
    for name, value in expected.items():
        check.same(f"config {name}", getattr(theirs.config, name, "absent"), value)
    rope = getattr(theirs.config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    theta = rope.get("rope_theta", getattr(theirs.config, "rope_theta", None))
    check.same("config rope", (kind, theta), ("default", config.rope_theta))
    for name, value in generation_config(tokenizer).items():
        found = getattr(theirs.generation_config, name)
        check.same(f"generation config {name}", found, value)
    return check


def check_files(folder: Path, checkpoint: Path, dtype: str) -> Check:
    """What the texts below could miss: a setting, a rule of the tokenizer, a file too many."""
    check = Check()
    for what, found, expected in export_files.compared(folder, checkpoint, dtype):
        check.same(what, found, expected)
    return check


def check_weights(theirs, loading: dict, native: GPT) -> Check:
    """Every number as transformers loaded it; nothing missing, left over or of another shape."""
    check, loaded = Check(), theirs.state_dict()
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        check.same(kind.replace("_", " "), sorted(map(str, loading[kind])), [])
    for name, expected in native.state_dict().items():
        equal = name in loaded and torch.equal(loaded[name], expected)
        check.that(equal, name, "other numbers", "the checkpoint's, rounded")
    return check


def check_tokenizer(theirs, ours) -> dict[str, Check]:
    """Ids of every text with markup honoured and with markup as text, and the way back."""
    encode, ordinary, decode = Check(), Check(), Check()
    for text in parity_texts.texts():
        ids = ours.encode(text)
        encode.same(repr(text), theirs(text, add_special_tokens=False)["input_ids"], ids)
        encode.same(f"<|bos|> and {text!r}", theirs(text)["input_ids"], [ours.bos, *ids])
        decode.same(repr(text), theirs.decode(ids, skip_special_tokens=False), ours.decode(ids))
        plain = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ordinary.same(repr(text), plain, ours.encode_ordinary(text))
    return {"encode": encode, "encode_ordinary": ordinary, "decode": decode}


def check_chats(theirs, ours) -> Check:
    """Rendered chats, complete and to be completed; and that no content makes a special id."""
    check = Check()

    def rendered(chat: dict, **options) -> list[int]:
        answer = theirs.apply_chat_template(
            chat["messages"], tokenize=True, return_dict=True, **options
        )
        return answer["input_ids"]

    for chat in parity_texts.chats():
        check.same(str(chat), rendered(chat), render(chat, ours)[0])
        if chat["messages"][-1]["role"] == "user":
            found = rendered(chat, add_generation_prompt=True)
            check.same(f"to complete: {chat}", found, render_for_completion(chat, ours))
    special = set(ours.special_ids.values())
    for chat in parity_texts.hostile_chats():
        found = [i for i in rendered(chat) if i in special]
        expected = [i for i in render(chat, ours)[0] if i in special]
        check.same(f"special ids of {chat}", found, expected)
    return check


def check_logits(theirs, native: GPT, tokenizer) -> tuple[Check, dict]:
    """All logits of all texts, and of one row that fills the context."""
    check, largest, positions = Check(), 0.0, 0
    length = native.config.sequence_len
    rows = [[tokenizer.bos, *tokenizer.encode(t)][:length] for t in parity_texts.texts()]
    rows.append([i for row in rows for i in row][:length])
    for batch in batches(sorted(rows, key=len), native.config.vocab_size):
        width = max(map(len, batch))
        # subtle: what stands on the right changes nothing on the left, so padding needs no mask.
        padded = [row + [tokenizer.bos] * (width - len(row)) for row in batch]
        ids = torch.tensor(padded, device=native.device)
        difference = (theirs(ids, use_cache=False).logits.float() - native(ids)).abs()
        for row, found in zip(batch, difference.amax(-1).cpu(), strict=True):
            worst = float(found[: len(row)].max())
            largest = max(largest, worst) if worst == worst else worst
            positions += len(row)
            text = tokenizer.decode(row[1:])
            check.that(worst <= TOLERANCE, repr(text), worst, f"at most {TOLERANCE}")
    figures = {"positions": positions, "max_abs_difference": largest, "tolerance": TOLERANCE}
    return check, figures


def batches(rows: list[list[int]], vocab_size: int):
    """Lists of rows, each list of at most LOGITS_AT_ONCE logits when padded to its longest."""
    some: list[list[int]] = []
    for row in rows:
        if some and (len(some) + 1) * len(row) * vocab_size > LOGITS_AT_ONCE:
            yield some
            some = []
        some.append(row)
    yield some


def check_greedy(theirs, native: GPT, tokenizer) -> tuple[Check, dict]:
    """Greedy continuations by transformers' generate(), with its cache, of eight prompts.

    Each of its tokens must be the one that the native model, without a cache, finds likeliest after
    the same tokens: then both continue alike. A token whose logit is within twice the tolerance of
    the likeliest counts as a near-tie. Stop ids are left out, so that all are 64 tokens long.
    """
    check, near_ties, tokens = Check(), 0, 0
    lines = parity_texts.written()["sentences"][:4]
    chats = [[{"role": "user", "content": text}] for text in lines]
    prompts = [render_for_completion({"messages": chat}, tokenizer) for chat in chats]
    prompts += [[tokenizer.bos, *tokenizer.encode_ordinary(text[:24])] for text in lines]
    room = native.config.sequence_len
    for prompt in prompts:
        prompt = prompt[: room // 2]
        count = min(NEW_TOKENS, room - len(prompt))
        ids = torch.tensor([prompt], device=native.device)
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        # subtle: without an attention mask, as people call it; were <|bos|>, the pad token, no stop
        # token, transformers would take the prompt's first token for padding and not look at it.
        row = theirs.generate(ids, **options)
        chosen = row[0, len(prompt) :]  # (count,)
        logits = native(row[:, :-1])[0, len(prompt) - 1 :]  # (count, V)
        logits[:, list(stop_ids(tokenizer))] = -torch.inf
        behind = logits.amax(-1) - logits.gather(-1, chosen[:, None])[:, 0]
        worst = float(behind.max())
        near_ties += int(((behind > 0) & (behind <= 2 * TOLERANCE)).sum())
        tokens += len(chosen)
        check.that(
            len(chosen) == count and worst <= 2 * TOLERANCE,
            f"continuation of {tokenizer.decode(prompt)!r}",
            f"{tokenizer.decode(chosen.tolist())!r}, a token {worst:.3g} behind",
            f"{tokenizer.decode(logits.argmax(-1).tolist())!r}",
        )
    return check, {"prompts": len(prompts), "tokens": tokens, "near_ties": near_ties}


if __name__ == "__main__":
    first, second, rounded_to, target = sys.argv[1:]
    result = compare(Path(first), Path(second), rounded_to)
    Path(target).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
