"""One training stage from set-up to last checkpoint: resume, events, saves, around the one loop."""

import dataclasses
import os
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nanochat import checkpoint_manager as checkpoints
from nanochat.checkpoint.mirror import Mirror
from nanochat.checkpoint.rng import print_differences, restore_rng
from nanochat.common import ConfigError, barrier, print0, rank_and_world
from nanochat.dataloader import batches
from nanochat.hardware import attention_backends, peak_flops, peak_rss
from nanochat.loss import make_loss_fn
from nanochat.train import DivergedError, LoopState, LossScaler, Periodic, stop_on_signals, train
from nanochat.training.config import (
    StageConfig,
    build_optimizers,
    can_compile,
    make_schedule,
    out_of_memory,
    plan_batch,
)
from nanochat.training.energy import open_meter
from nanochat.training.log import TrainLog, session_record, truncate_metrics
from nanochat.training.validation import measure_rows

# Settings that a resumed run may change without a word, and those that it may not change.
FREE = ("resume", "fresh", "mirror", "device_type", "compile", "keep_last", "keep_every")
FIXED = ("depth", "head_dim", "num_kv_heads", "sequence_len", "logit_softcap", "seed")


@dataclass(frozen=True)
class StageData:
    """What a stage trains and is measured on."""

    rows: object  # row(i) -> (inputs, targets); see dataloader.py
    val_rows: object
    row_tokens: int  # the longest row
    rows_per_step: int
    planned_steps: int | None  # of a whole run, whatever --num-steps says
    fingerprint: str  # of data and mixture, for the record
    report: dict  # counts worth keeping in run.json


def find_resume(stage: str, tag: str, config: StageConfig) -> Path | None:
    """The checkpoint to continue from, or None to start anew. An existing run is never overwritten:
    without --resume or --fresh it is an error."""
    run_folder = checkpoints.checkpoint_dir(stage) / tag
    existing = checkpoints.available_checkpoints(stage, tag)
    if config.fresh and run_folder.exists():
        aside = run_folder.with_name(f"{tag}.old-{int(time.time())}")
        if rank_and_world()[0] == 0:
            os.rename(run_folder, aside)
            print0(f"the earlier run is now {aside}")
        barrier()
        return None
    if not existing:
        if config.resume:
            print0(f"no checkpoint of {stage} {tag} to resume from: starting anew")
        return None
    if not config.resume:
        raise ConfigError(
            f"{run_folder} already holds a run, up to step {max(c.step for c in existing)}. "
            f"Continue it with --resume, move it aside with --fresh, or name another --model-tag"
        )
    return checkpoints.find_checkpoint(stage, tag)


def compare_settings(path: Path, config: StageConfig, meta: dict, data: StageData) -> None:
    """Prints each setting that differs from the saved run's, and holds from now on; raises
    ConfigError for one that a run cannot change."""
    now, then = asdict(config), meta["config"]
    changed = [n for n in sorted(now.keys() & then.keys() - set(FREE)) if now[n] != then[n]]
    for name in changed:
        if name in FIXED:
            raise ConfigError(
                f"{path} was trained with --{name} {then[name]}, it cannot go on with {now[name]}: "
                f"leave it as it was, or start anew with --fresh or another --model-tag"
            )
        print0(f"resumed with --{name} {now[name]}; it was {then[name]}")
    if data.fingerprint != meta["data_fingerprint"]:
        print0("resumed with other data than the run began with: the order of rows is another")


def resume(path: Path, optimizers: dict, scaler, device) -> tuple[LoopState, int]:
    """(LoopState, cursor) of a checkpoint; its optimizers, scaler and generators are restored."""
    saved, tensors = checkpoints.load_training_state(path)
    if missing := optimizers.keys() - tensors.keys():
        raise ConfigError(f"{path} was saved without its optimizers {sorted(missing)}: no resuming")
    for name, optimizer in optimizers.items():
        optimizer.load_state_tensors(tensors[name])
    restore_rng(saved["rng"])
    print_differences(saved["environment"], device)
    state = LoopState(**saved["loop"])
    print0(f"resumed {path} at step {state.step}")
    if scaler and saved["scaler"]:
        scaler.scale = saved["scaler"]["scale"]
        scaler.good_steps = saved["scaler"].get("good_steps", 0)
    return state, saved["cursor"]


def run_record(config, data: StageData, parent: str | None, rows_per_step, device_batch) -> dict:
    """What run.json says of how the run was set up."""
    return {
        "config": asdict(config),
        "parent": parent,
        "world_size": rank_and_world()[1],
        "device_batch_size": device_batch,
        "rows_per_step": rows_per_step,
        "planned_steps": data.planned_steps,
        "data_fingerprint": data.fingerprint,
        "data": data.report,
    }


def progress_of(state: LoopState, device: torch.device) -> dict:
    """What run.json says of how far the run is, and of the most memory that this process held."""
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss()
    return {
        "tokens": state.tokens,
        "seconds": state.seconds,
        "loss": state.average_loss,
        "peak_memory_bytes": memory,
    }


def make_events(stage, tag, config, model, tokenizer, data, parts: "Parts") -> tuple:
    """evaluate(state) and save(state), which the loop runs when they are due."""

    def evaluate(state: LoopState) -> None:
        model.eval()
        bits, _ = measure_rows(
            model, tokenizer, data.val_rows, config.eval_tokens, parts.device_batch
        )
        model.train()
        parts.run["val_bpb"] = bits
        parts.log.note(state, val_bpb=bits)

    def save(state: LoopState) -> None:
        steps_now = state.step - parts.first_step
        parts.saved = checkpoints.save_checkpoint(
            stage,
            tag,
            state.step,
            model=model,
            tokenizer=tokenizer,
            run=parts.run | progress_of(state, model.device),
            state={
                "loop": asdict(state),
                "cursor": parts.first_cursor + steps_now * parts.rows_per_step,
                "scaler": parts.scaler.state_dict() if parts.scaler else None,
            },
            optimizers=parts.optimizers,
        )
        checkpoints.prune(stage, tag, config.keep_last, config.keep_every)
        if parts.mirror:
            parts.mirror.push(parts.saved)

    return evaluate, save


@dataclass
class Parts:
    """What a running stage holds beside its model and data."""

    optimizers: dict
    scaler: LossScaler | None
    rows_per_step: int
    device_batch: int
    first_step: int
    first_cursor: int
    log: TrainLog
    mirror: Mirror | None
    run: dict  # becomes run.json
    saved: Path | None  # the newest checkpoint of this run


def run_stage(
    stage: str,
    config: StageConfig,
    model,
    tokenizer,
    data: StageData,
    *,
    tag: str,
    num_steps: int | None,
    resume_from: Path | None = None,
    meta: dict | None = None,
    parent: str | None = None,
    events: tuple[Periodic, ...] = (),
) -> Path:
    """Trains `model` on `data` and returns the folder of the last checkpoint.

    num_steps None: from config.target_seconds. resume_from and meta: the checkpoint that `model`
    was loaded from, to be continued. parent: the checkpoint folder that the stage began with.
    Raises SystemExit(130) after saving when asked to stop by SIGTERM or Ctrl-C.
    """
    device, (rank, world) = model.device, rank_and_world()
    optimizers = build_optimizers(model, config)
    scaled = model.compute_dtype == torch.float16
    scaler = LossScaler() if scaled else None
    state, cursor = LoopState(num_steps=num_steps), 0
    if resume_from:
        compare_settings(resume_from, config, meta, data)
        state, cursor = resume(resume_from, optimizers, scaler, device)
        finished = state.step == state.num_steps
        if config.target_seconds is None:
            state.num_steps = num_steps
        elif config.target_seconds != meta["config"]["target_seconds"] and not finished:
            state.num_steps = None  # timed anew
        if state.num_steps and state.step >= state.num_steps:
            print0(f"{stage} {tag} is finished, at step {state.step}")
            return resume_from
        if config.device_batch_size == "auto" and meta["world_size"] == world:
            config = dataclasses.replace(config, device_batch_size=meta["device_batch_size"])
    rows_per_step, device_batch = plan_batch(model, config, data.rows_per_step, data.row_tokens)
    run_folder = checkpoints.checkpoint_dir(stage) / tag
    truncate_metrics(run_folder, state.step if resume_from else -1)
    run = run_record(config, data, parent, rows_per_step, device_batch)
    log = open_log(run_folder, stage, model, data.row_tokens, state.step)
    mirror = Mirror(config.mirror) if config.mirror and rank == 0 else None
    parts = Parts(
        optimizers,
        scaler,
        rows_per_step,
        device_batch,
        state.step,
        cursor,
        log,
        mirror,
        run,
        saved=resume_from,
    )
    evaluate, save = make_events(stage, tag, config, model, tokenizer, data, parts)
    due = (Periodic(evaluate, config.eval_every), *events, Periodic(save, config.save_every))
    with ExitStack() as stack:
        stack.callback(log.close)
        if mirror:
            stack.callback(mirror.close)
        if not loop(config, model, tokenizer, data, parts, state, due):
            save(state)
            print0(f"stopped at step {state.step}, saved {parts.saved}; go on with --resume")
            raise SystemExit(130)
    print0(
        f"{stage}: {state.seconds:.0f} s of training, {state.tokens:,} targets; saved {parts.saved}"
    )
    return parts.saved


def loop(config, model, tokenizer, data: StageData, parts: Parts, state, events) -> bool:
    """Feeds the training loop, from the cursor on; False when it was asked to stop."""
    rank, world = rank_and_world()
    source = batches(
        data.rows,
        rows_per_step=parts.rows_per_step,
        device_batch_size=parts.device_batch,
        cursor=parts.first_cursor,
        rank=rank,
        world_size=world,
        device=model.device,
        pad_id=tokenizer.bos,
    )
    attention = attention_backends(model.device)
    with closing(source), attention, stop_on_signals() as asked_to_stop:
        try:
            return train(
                model,
                list(parts.optimizers.values()),
                source,
                loss_fn=make_loss_fn(model, compiled=can_compile(model.device, config.compile)),
                schedule=make_schedule(config),
                accum_steps=parts.rows_per_step // (parts.device_batch * world),
                state=state,
                log=parts.log,
                events=events,
                seconds=config.target_seconds,
                grad_clip=config.grad_clip,
                scaler=parts.scaler,
                asked_to_stop=asked_to_stop,
            )
        except torch.OutOfMemoryError as error:
            raise ConfigError(out_of_memory(parts.device_batch)) from error
        except DivergedError as error:
            last = parts.saved or "none yet"
            raise DivergedError(f"{error} The last good checkpoint: {last}.") from error


def open_log(run_folder: Path, stage: str, model, row_tokens: int, first_step: int) -> TrainLog:
    """The stage's log; prints what MFU is measured against."""
    rank, world = rank_and_world()
    peak, source = peak_flops(model.device, model.compute_dtype)
    print0(f"MFU is against {world} x {peak / 1e12:.3g} TFLOP/s ({source})")
    flops = model.flops_per_token(row_tokens)
    return TrainLog(
        run_folder,
        stage,
        flops_per_token=flops,
        peak=peak * world,
        session=session_record(model, flops, peak * world, source),
        first_step=first_step,
        meter=open_meter(model.device) if rank == 0 else None,
    )
