"""One training stage from set-up to last checkpoint: resume, events, saves, around the one loop."""

import dataclasses
import os
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nanochat import checkpoint_manager as checkpoints
from nanochat.common import (
    ConfigError,
    barrier,
    peak_flops,
    peak_rss,
    print0,
    rank_and_world,
)
from nanochat.dataloader import batches
from nanochat.evals import measure_rows
from nanochat.loss import make_loss_fn
from nanochat.metrics import truncate_metrics
from nanochat.mirror import Mirror
from nanochat.monitor import TrainLog
from nanochat.recipe import (
    StageConfig,
    build_optimizers,
    can_compile,
    make_schedule,
    out_of_memory,
    plan_batch,
)
from nanochat.run_state import print_differences, restore_rng
from nanochat.train import Event, LoopState, stop_on_signals, train

NOT_RESUMED = ("resume", "fresh", "mirror", "device_type", "compile", "keep_last", "keep_every")


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
            f"{run_folder} already holds a run, up to step {max(c.step for c in existing)}. Continue "
            f"it with --resume, move it aside with --fresh, or name another --model-tag"
        )
    return checkpoints.find_checkpoint(stage, tag)


def resume(path: Path, config: StageConfig, meta: dict, optimizers: dict, device) -> tuple:
    """(LoopState, cursor, scaler state) of a checkpoint, its optimizers and generators restored.

    A setting that differs from the saved run's is printed, and holds from now on.
    """
    saved, tensors = checkpoints.load_training_state(path)
    if missing := optimizers.keys() - tensors.keys():
        raise ConfigError(f"{path} was saved without its optimizers {sorted(missing)}: no resuming")
    for name, optimizer in optimizers.items():
        optimizer.load_state_tensors(tensors[name])
    restore_rng(saved["rng"])
    print_differences(saved["environment"], device)
    now = asdict(config)
    for name in sorted(now.keys() & meta["config"].keys() - set(NOT_RESUMED)):
        if now[name] != meta["config"][name]:
            print0(f"resumed with --{name} {now[name]}; it was {meta['config'][name]}")
    state = LoopState(**saved["loop"])
    print0(f"resumed {path} at step {state.step}")
    return state, saved["cursor"], saved["scaler"]


def progress_of(state: LoopState, device: torch.device) -> dict:
    """What run.json says of how far the run is, and of the most memory that this process held."""
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss()
    return {
        "tokens": state.tokens,
        "seconds": state.seconds,
        "loss": state.average_loss,
        "peak_memory_bytes": memory,
    }


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
    events: tuple[Event, ...] = (),
) -> Path:
    """Trains `model` on `data` and returns the folder of the last checkpoint.

    num_steps None: from config.target_seconds. resume_from and meta: the checkpoint that `model`
    was loaded from, to be continued. parent: the checkpoint folder that the stage began with.
    Raises SystemExit(130) after saving when asked to stop by SIGTERM or Ctrl-C.
    """
    device, (rank, world) = model.device, rank_and_world()
    optimizers = build_optimizers(model, config)
    scaled = model.compute_dtype == torch.float16
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**14) if scaled else None
    state, cursor = LoopState(num_steps=num_steps), 0
    if resume_from:
        state, cursor, scaler_state = resume(resume_from, config, meta, optimizers, device)
        if scaler and scaler_state:
            scaler.load_state_dict(scaler_state)
        if config.num_steps or config.target_seconds is None:
            state.num_steps = num_steps
        if state.step >= (state.num_steps or state.step + 1):
            print0(f"{stage} {tag} is finished, at step {state.step}")
            return resume_from
        if config.device_batch_size == "auto" and meta["world_size"] == world:
            config = dataclasses.replace(config, device_batch_size=meta["device_batch_size"])
    rows_per_step, device_batch = plan_batch(model, config, data.rows_per_step, data.row_tokens)
    first_step, first_cursor = state.step, cursor

    run_folder = checkpoints.checkpoint_dir(stage) / tag
    truncate_metrics(run_folder, state.step if resume_from else -1)
    peak, source = peak_flops(device, model.compute_dtype)
    print0(f"MFU is against {world} x {peak / 1e12:.3g} TFLOP/s ({source})")
    log = TrainLog(
        run_folder,
        stage,
        flops_per_token=model.flops_per_token(data.row_tokens),
        peak=peak * world,
    )
    run = {
        "config": asdict(config),
        "parent": parent,
        "world_size": world,
        "device_batch_size": device_batch,
        "rows_per_step": rows_per_step,
        "planned_steps": data.planned_steps,
        "data_fingerprint": data.fingerprint,
        "data": data.report,
    }
    mirror = Mirror(config.mirror) if config.mirror and rank == 0 else None
    saved: list[Path] = []

    def evaluate(state: LoopState) -> None:
        model.eval()
        run["val_bpb"], _ = measure_rows(
            model, tokenizer, data.val_rows, config.eval_tokens, device_batch
        )
        model.train()
        log.note(state, val_bpb=run["val_bpb"])

    def save(state: LoopState) -> None:
        path = checkpoints.save_checkpoint(
            stage,
            tag,
            state.step,
            model=model,
            tokenizer=tokenizer,
            run=run | progress_of(state, device),
            state={
                "loop": asdict(state),
                "cursor": first_cursor + (state.step - first_step) * rows_per_step,
                "scaler": scaler.state_dict() if scaler else None,
            },
            optimizers=optimizers,
        )
        saved[:] = [path]
        checkpoints.prune(stage, tag, config.keep_last, config.keep_every)
        if mirror:
            mirror.push(path)

    with ExitStack() as stack:
        asked = stack.enter_context(stop_on_signals())
        stack.callback(log.close)
        if mirror:
            stack.callback(mirror.close)
        source = batches(
            data.rows,
            rows_per_step=rows_per_step,
            device_batch_size=device_batch,
            cursor=cursor,
            rank=rank,
            world_size=world,
            device=device,
            pad_id=tokenizer.bos,
        )
        stack.callback(source.close)
        try:
            finished = train(
                model,
                list(optimizers.values()),
                source,
                loss_fn=make_loss_fn(model, compiled=can_compile(device, config.compile)),
                schedule=make_schedule(config),
                accum_steps=rows_per_step // (device_batch * world),
                state=state,
                log=log,
                events=(
                    Event(evaluate, config.eval_every),
                    *events,
                    Event(save, config.save_every),
                ),
                seconds=config.target_seconds,
                grad_clip=config.grad_clip,
                scaler=scaler,
                asked_to_stop=asked,
            )
        except torch.OutOfMemoryError as error:
            raise ConfigError(out_of_memory(device_batch)) from error
        if not finished:
            save(state)
    if not finished:
        print0(f"stopped at step {state.step}, saved {saved[0]}; go on with --resume")
        raise SystemExit(130)
    print0(
        f"{stage}: {state.seconds:.0f} s of training, {state.tokens:,} targets; saved {saved[0]}"
    )
    return saved[0]
