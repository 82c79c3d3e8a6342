"""Parity: is the model in an exported folder the one that was trained?

transformers loads the folder in a fresh process, and it is compared with the native checkpoint:
files, config, weights, tokenizer, rendered chats, logits and greedy continuations.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from nanochat.checkpoint.manifest import MANIFEST
from nanochat.checkpoint_manager import (
    RUN,
    WEIGHTS,
    hugging_face_records,
    hugging_face_texts,
    load_checkpoint,
)
from nanochat.common import DTYPES, CheckpointError
from nanochat.conversation import render, render_for_completion, stop_ids
from nanochat.gpt import GPT
from nanochat.publishing import parity_texts
from nanochat.publishing.export_files import CARD, PARITY

TOLERANCE = 1e-4  # between logits, both computed in float32
LOGITS_AT_ONCE = 2**25  # float32 numbers: 128 MiB
NEW_TOKENS = 64


class ParityError(CheckpointError):
    """The exported model does not compute what the checkpoint computes."""


class Checks:
    """By kind: how many values were compared, how many differed, the first three differences."""

    def __init__(self):
        self.counts: dict[str, dict[str, int]] = {}
        self.differences: dict[str, list[str]] = {}

    def same(self, kind: str, what: str, found, expected) -> None:
        counts = self.counts.setdefault(kind, {"compared": 0, "different": 0})
        counts["compared"] += 1
        if found != expected:
            counts["different"] += 1
            examples = self.differences.setdefault(kind, [])
            if len(examples) < 3:
                examples.append(f"{what}: found {found!s:.300}, expected {expected!s:.300}")

    def report(self) -> dict:
        """The part of a report that says what was compared, and whether it passed."""
        passed = not self.differences
        return {"passed": passed, "checks": self.counts, "differences": self.differences}


def summary(report: dict) -> str:
    """A line for each check of a report, followed by its first differences."""
    lines = []
    for name, check in report["checks"].items():
        differ = f", {check['different']} of them differ" if check["different"] else ""
        lines.append(f"  {name}: {check['compared']} compared{differ}")
        lines += [f"    {example}" for example in report["differences"].get(name, ())]
    if logits := report.get("logits"):
        lines.append(
            f"  largest difference of logits: {logits['max_abs_difference']:.2g} at "
            f"{logits['positions']:,} positions, {logits['tolerance']:.0e} allowed"
        )
    return "\n".join(lines)


def prove(folder: Path, checkpoint: Path, dtype: str) -> dict:
    """compare() in a fresh process; ParityError if the models differ.

    dtype: what the weights were rounded to.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            report = pool.submit(compare, folder, checkpoint, dtype).result()
        except Exception as error:  # transformers raises many kinds
            reason = f"could not be loaded and compared: {error!r}"
            raise CheckpointError(f"{folder} {reason}") from error
    if not report["passed"]:
        raise ParityError(f"{folder} is not the model of {checkpoint}:\n{summary(report)}")
    return report


# ---------------------------------------------------------------- in the fresh process


@torch.no_grad()
def compare(folder: Path, checkpoint: Path, dtype: str) -> dict:
    """The report on an exported folder: loads both models, in float32, and compares them."""
    import tokenizers
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Not on Apple's MPS: its float32 has not been measured against the tolerance.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    native, tokenizer = native_model(checkpoint, dtype, device)
    options = {"trust_remote_code": False, "local_files_only": True}
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    options |= {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    theirs = theirs.to(device).eval()
    checks = Checks()
    check_files(checks, folder, hugging_face_texts(native.config, tokenizer, dtype=dtype))
    check_config(checks, theirs, native.config, tokenizer)
    check_weights(checks, theirs, loading, native)
    check_tokenizer(checks, their_tokenizer, tokenizer)
    check_chats(checks, their_tokenizer, tokenizer)
    logits = check_logits(checks, theirs, native, tokenizer)
    greedy = check_greedy(checks, theirs, native, tokenizer)
    modules = {"torch": torch, "transformers": transformers, "tokenizers": tokenizers}
    return {
        "dtype": dtype,
        "texts": len(parity_texts.texts()),
        **checks.report(),
        "logits": logits,
        "greedy": greedy,
        "versions": {name: module.__version__ for name, module in modules.items()},
    }


def native_model(checkpoint: Path, dtype: str, device: torch.device):
    """(model, tokenizer) of the checkpoint, its weights rounded to `dtype`, in float32."""
    weights, config, tokenizer, _ = load_checkpoint(checkpoint)
    for name in weights:  # in place: one copy in memory
        weights[name] = weights[name].to(DTYPES[dtype]).to(device, torch.float32)
    model = GPT.from_weights(config, weights)
    model.compute_dtype = torch.float32
    return model.eval(), tokenizer


def check_files(checks: Checks, folder: Path, texts: dict[str, str]) -> None:
    """The files themselves, for what the other checks could miss: a setting, a tokenizer's rule, a
    file that does not belong there."""
    for name, text in texts.items():
        path = folder / name
        equal = path.is_file() and path.read_bytes() == text.encode()
        checks.same("files", f"{name} equals the checkpoint's", equal, True)
    known = {*texts, WEIGHTS, RUN, CARD, PARITY, MANIFEST}
    others = {path.name for path in folder.iterdir()} - known
    checks.same("files", "other files", sorted(others), [])


def check_config(checks: Checks, theirs, config, tokenizer) -> None:
    """Every field that the checkpoint wrote, as transformers understood it."""
    expected, generation = hugging_face_records(config, tokenizer).values()
    expected["dtype"] = torch.float32  # as it was loaded
    del expected["rope_theta"]  # in rope_parameters
    for found, wanted in ((theirs.config, expected), (theirs.generation_config, generation)):
        for name, value in wanted.items():
            checks.same("config", name, getattr(found, name, "absent"), value)


def check_weights(checks: Checks, theirs, loading: dict, native: GPT) -> None:
    """Every number as transformers loaded it; nothing missing, left over or of another shape."""
    loaded = theirs.state_dict()
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        checks.same("weights", kind.replace("_", " "), sorted(map(str, loading[kind])), [])
    for name, expected in native.state_dict().items():
        equal = name in loaded and torch.equal(loaded[name], expected)
        checks.same("weights", f"{name} equals the checkpoint's, rounded", equal, True)


def check_tokenizer(checks: Checks, theirs, ours) -> None:
    """Ids of every text with markup honoured and with markup as text, and the way back."""
    for text in parity_texts.texts():
        ids = ours.encode(text)
        bare = theirs(text, add_special_tokens=False)["input_ids"]
        checks.same("encode", repr(text), bare, ids)
        checks.same("encode", f"<|bos|> and {text!r}", theirs(text)["input_ids"], [ours.bos, *ids])
        decoded = theirs.decode(ids, skip_special_tokens=False)
        checks.same("decode", repr(text), decoded, ours.decode(ids))
        plain = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        checks.same("encode_ordinary", repr(text), plain, ours.encode_ordinary(text))


def check_chats(checks: Checks, theirs, ours) -> None:
    """Rendered chats, complete and to be completed; and that no content makes a special id."""
    special = set(ours.special_ids.values())

    def rendered(chat: dict, **options) -> list[int]:
        return theirs.apply_chat_template(chat["messages"], **options)["input_ids"]

    for chat in parity_texts.chats():
        checks.same("chats", str(chat), rendered(chat), render(chat, ours)[0])
        if chat["messages"][-1]["role"] == "user":
            found = rendered(chat, add_generation_prompt=True)
            checks.same("chats", f"to complete: {chat}", found, render_for_completion(chat, ours))
    for chat in parity_texts.hostile_chats():
        found = [i for i in rendered(chat) if i in special]
        expected = [i for i in render(chat, ours)[0] if i in special]
        checks.same("chats", f"special ids of {chat}", found, expected)


def check_logits(checks: Checks, theirs, native: GPT, tokenizer) -> dict:
    """All logits of all texts, which are joined into rows that fill the context."""
    largest, length = 0.0, native.config.sequence_len
    ids = [i for text in parity_texts.texts() for i in (tokenizer.bos, *tokenizer.encode(text))]
    ids += [tokenizer.bos] * (-len(ids) % length)
    rows = torch.tensor(ids, device=native.device).view(-1, length)  # (B, T)
    for batch in rows.split(max(1, LOGITS_AT_ONCE // (length * native.config.vocab_size))):
        difference = (theirs(batch, use_cache=False).logits.float() - native(batch)).abs()
        for row, worst in zip(batch.tolist(), difference.amax((1, 2)).tolist(), strict=True):
            largest = max(largest, worst) if worst == worst else worst  # a NaN stays
            what = f"logits differ by {worst:.2g} in {tokenizer.decode(row)!r:.100}"
            checks.same("logits", what, worst <= TOLERANCE, True)
    return {"positions": len(ids), "max_abs_difference": largest, "tolerance": TOLERANCE}


def check_greedy(checks: Checks, theirs, native: GPT, tokenizer) -> dict:
    """Greedy continuations of eight prompts by transformers' generate(), with its cache.

    Each token must be the native model's likeliest after the same tokens, within twice the
    tolerance of logits. Stop ids are left out, so that all continuations have 64 tokens.
    """
    lines = parity_texts.written()["sentences"][:4]
    chats = [parity_texts.conversation([("user", text)]) for text in lines]
    prompts = [render_for_completion(chat, tokenizer) for chat in chats]
    prompts += [[tokenizer.bos, *tokenizer.encode_ordinary(text[:24])] for text in lines]
    tokens, length = 0, native.config.sequence_len
    for prompt in prompts:
        prompt = prompt[: length // 2]
        count = min(NEW_TOKENS, length - len(prompt))
        ids = torch.tensor([prompt], device=native.device)
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        # subtle: without an attention mask, as people call it; if <|bos|>, the pad token, were not
        # a stop token, transformers would take the prompt's first token for padding and mask it.
        row = theirs.generate(ids, **options)
        chosen = row[0, len(prompt) :]  # (count,)
        logits = native(row[:, :-1])[0, len(prompt) - 1 :]  # (count, V)
        logits[:, list(stop_ids(tokenizer))] = -torch.inf
        behind = float((logits.amax(-1) - logits.gather(-1, chosen[:, None])[:, 0]).max())
        tokens += len(chosen)
        texts = f"{tokenizer.decode(prompt)!r} by {tokenizer.decode(chosen.tolist())!r}"
        agrees = len(chosen) == count and behind <= 2 * TOLERANCE
        checks.same("greedy", f"continuation of {texts}, a token {behind:.3g} behind", agrees, True)
    return {"prompts": len(prompts), "tokens": tokens}
