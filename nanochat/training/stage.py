"""One training stage from set-up to last checkpoint: resume, events, saves, around the one loop.

A script starts the stage, makes rows for the batch plan that it gets, and trains on them:

    stage = start_stage("sft", config, parent=("mid", None, None))
    plan = stage.plan_batch(config.examples_per_step, row_tokens)
    stage.train(StageData(rows, val_rows, fingerprint, report, num_steps, planned_steps), plan)
"""

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from nanochat.checkpoint.index import checkpoint_dir, checkpoint_of, prune, step_dir
from nanochat.checkpoint.mirror import Mirror
from nanochat.checkpoint.rng import print_differences, restore_rng
from nanochat.checkpoint.writing import Writer
from nanochat.checkpoint_manager import load_folder, load_training_state, prepare_checkpoint
from nanochat.common import (
    ConfigError,
    all_equal,
    compute_init,
    on_rank0,
    print0,
    rank_and_world,
)
from nanochat.dataloader import batches
from nanochat.hardware import attention_backends, peak_flops, peak_rss
from nanochat.loss import LossFn
from nanochat.train import DivergedError, LoopState, LossScaler, Periodic, stop_on_signals, train
from nanochat.training.batch_plan import BatchPlan, can_compile, out_of_memory, plan_batch
from nanochat.training.config import StageConfig
from nanochat.training.energy import open_meter
from nanochat.training.log import TrainLog, session_record, truncate_metrics
from nanochat.training.optimizers import build_optimizers, make_schedule
from nanochat.training.resume import compare_settings, find_resume
from nanochat.training.validation import measure_rows


@dataclass(frozen=True)
class StageData:
    """What a stage trains and is measured on, and for how long."""

    rows: object  # row(i) -> (inputs, targets); see dataloader.py
    val_rows: object
    fingerprint: str  # of data and mixture, for the record
    report: dict  # counts worth keeping in run.json
    num_steps: int | None  # None: from config.target_seconds
    planned_steps: int | None  # of a whole run, whatever --num-steps says


def steps_or_epoch(config: StageConfig, epoch: int) -> int | None:
    """The number of steps: as given, or an epoch's; None when it follows from target_seconds."""
    return config.num_steps or (None if config.target_seconds else epoch)


def start_stage(
    name: str,
    config: StageConfig,
    *,
    parent: tuple[str, str | None, int | None] | None = None,
    tag: str = "",
    new_model: Callable[[torch.device], tuple] | None = None,
) -> "Stage":
    """Joins the ranks and loads what the stage begins with: its own checkpoint with --resume, else
    the one that `parent` names (stage, tag, step), else new_model(device) -> (model, tokenizer).

    tag: the run's name where neither --model-tag nor a parent gives one.
    """
    if config.num_steps and config.target_seconds:
        raise ConfigError("give one horizon, not both of num_steps and target_seconds")
    if config.keep_last < 1:
        raise ConfigError(f"--keep-last {config.keep_last}: the newest checkpoint stays, at least")
    *_, device = compute_init(config.device_type, config.seed, config.deterministic)
    if config.fp8 and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        raise ConfigError("--fp8 needs a GPU with 8-bit products (sm89 or newer); leave it out")
    compiled = can_compile(device, config.compile)
    folder = on_rank0(lambda: checkpoint_of(*parent)) if parent else None
    tag = config.model_tag or (folder.parent.name if folder else tag)
    resume_from, meta = on_rank0(lambda: find_resume(name, tag, config)), None
    if resume_from:
        model, tokenizer, meta = load_folder(resume_from, device, "train")
    elif folder:
        model, tokenizer, _ = load_folder(folder, device, "train")
    else:
        model, tokenizer = new_model(device)
    if config.fp8:
        model.use_fp8()
    return Stage(name, config, tag, model, tokenizer, compiled, folder, resume_from, meta)


@dataclass
class Stage:
    """A running stage: see start_stage."""

    name: str
    config: StageConfig
    tag: str
    model: object
    tokenizer: object
    compiled: bool
    parent: Path | None
    resume_from: Path | None
    meta: dict | None  # of resume_from

    def __post_init__(self):
        self.loss_fn = LossFn(self.model, self.compiled)
        self.run_folder = checkpoint_dir(self.name) / self.tag
        self.saved = self.resume_from  # the newest checkpoint of this run

    def plan_batch(self, rows_per_step: int, row_tokens: int) -> BatchPlan:
        """How a step of about so many rows, each of up to row_tokens tokens, is computed here."""
        config, meta = self.config, self.meta
        same_ranks = meta and meta["world_size"] == rank_and_world()[1]
        if config.device_batch_size == "auto" and same_ranks:
            config = replace(config, device_batch_size=meta["device_batch_size"])
        self.row_tokens = row_tokens
        # subtle: a micro-batch is tried and compiled here; what it was compiled with, it keeps
        with attention_backends(self.model.device):
            return plan_batch(
                self.model, config, rows_per_step, row_tokens, self.loss_fn, self.compiled
            )

    def train(self, data: StageData, plan: BatchPlan, events: tuple[Periodic, ...] = ()) -> Path:
        """Trains to the end and returns the folder of the last checkpoint.

        Raises SystemExit(130) after saving when asked to stop by SIGTERM or Ctrl-C.
        """
        config, model = self.config, self.model
        self.data, self.plan = data, plan
        self.optimizers = build_optimizers(model, config)
        self.scaler = LossScaler() if model.compute_dtype == torch.float16 else None
        state, self.first_cursor = LoopState(num_steps=data.num_steps), 0
        if self.resume_from:
            compare_settings(self.resume_from, config, self.meta, data.fingerprint)
            state, self.first_cursor = self.restore(data.num_steps)
            if state.num_steps and state.step >= state.num_steps:
                print0(f"{self.name} {self.tag} is finished, at step {state.step}")
                return self.resume_from
        self.first_step = state.step
        self.record = {
            "config": asdict(config),
            "parent": str(self.parent) if self.parent else None,
            "world_size": rank_and_world()[1],
            "device_batch_size": plan.device_batch,
            "rows_per_step": plan.rows_per_step,
            "planned_steps": data.planned_steps,
            "data_fingerprint": data.fingerprint,
            "data": data.report,
        }
        truncate_metrics(self.run_folder, state.step if self.resume_from else -1)
        self.log = self.open_log(state.step)
        self.mirror = Mirror(config.mirror) if config.mirror and rank_and_world()[0] == 0 else None
        due = Periodic(self.evaluate, config.eval_every), *events
        with ExitStack() as stack:
            stack.callback(self.log.close)
            if self.mirror:
                stack.callback(self.mirror.close)
            self.writer = stack.enter_context(Writer())
            done = self.loop(state, (*due, Periodic(self.save, config.save_every)))
            if not done:
                self.save(state)
            self.writer.wait()
        if not done:
            print0(f"stopped at step {state.step}, saved {self.saved}; go on with --resume")
            raise SystemExit(130)
        print0(
            f"{self.name}: {state.seconds:.0f} s of training, {state.tokens:,} targets; "
            f"saved {self.saved}"
        )
        return self.saved

    def restore(self, num_steps: int | None) -> tuple[LoopState, int]:
        """(LoopState, cursor) of the checkpoint; optimizers, scaler and generators are restored."""
        path, config = self.resume_from, self.config
        saved, generators, tensors = load_training_state(path)
        if missing := self.optimizers.keys() - tensors.keys():
            raise ConfigError(
                f"{path} was saved without its optimizers {sorted(missing)}: no resuming"
            )
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_tensors(tensors[name])
        restore_rng(generators)
        print_differences(saved["environment"], self.model.device)
        state = LoopState(**saved["loop"])
        print0(f"resumed {path} at step {state.step}")
        if self.meta["rows_per_step"] != self.plan.rows_per_step:
            print0(
                f"a step now has {self.plan.rows_per_step} rows, it had "
                f"{self.meta['rows_per_step']}: fine-tuning may repeat or miss some of one step's"
            )
        if self.scaler and saved["scaler"]:
            self.scaler = LossScaler(**saved["scaler"])
        finished = state.step == state.num_steps
        if config.target_seconds is None:
            state.num_steps = num_steps
        elif config.target_seconds != self.meta["config"]["target_seconds"] and not finished:
            state.num_steps = None  # timed anew
        return state, saved["cursor"]

    def loop(self, state: LoopState, events) -> bool:
        """Feeds the training loop, from the cursor on; False when it was asked to stop."""
        rank, world = rank_and_world()
        source = batches(
            self.data.rows,
            rows_per_step=self.plan.rows_per_step,
            device_batch_size=self.plan.device_batch,
            cursor=self.first_cursor,
            rank=rank,
            world_size=world,
            device=self.model.device,
            pad_id=self.tokenizer.bos,
        )
        attention = attention_backends(self.model.device)
        with closing(source), attention, stop_on_signals() as asked_to_stop:
            try:
                return train(
                    self.model,
                    list(self.optimizers.values()),
                    source,
                    loss_fn=self.loss_fn,
                    schedule=make_schedule(self.config),
                    accum_steps=self.plan.accum_steps,
                    state=state,
                    log=self.log,
                    events=events,
                    seconds=self.config.target_seconds,
                    grad_clip=self.config.grad_clip,
                    scaler=self.scaler,
                    asked_to_stop=asked_to_stop,
                )
            except torch.OutOfMemoryError as error:
                raise ConfigError(out_of_memory(self.plan.device_batch)) from error
            except DivergedError as error:
                self.writer.wait()
                last = self.saved or "none yet"
                raise DivergedError(f"{error} The last good checkpoint: {last}.") from error

    def evaluate(self, state: LoopState) -> None:
        """Bits per byte of the validation rows; also that all ranks still hold the same weights."""
        if not all_equal(p.detach() for p in self.model.parameters()):
            raise DivergedError(
                f"step {state.step}: the ranks no longer hold the same weights; resume from the "
                f"last checkpoint, and if it happens again look for a faulty device"
            )
        # compiled only on a GPU: on a CPU that would take longer than it saves
        on_gpu = self.model.device.type == "cuda"
        features = self.loss_fn.features if on_gpu else self.model.features
        self.model.eval()
        bits, _ = measure_rows(
            self.model,
            self.tokenizer,
            self.data.val_rows,
            self.config.eval_tokens,
            self.plan.device_batch,
            features,
        )
        self.model.train()
        self.record["val_bpb"] = bits
        self.log.note(state, val_bpb=bits)

    def save(self, state: LoopState) -> None:
        """Writes a checkpoint: beside the next steps on a GPU, at once elsewhere."""
        device, config = self.model.device, self.config
        cuda = device.type == "cuda"
        progress = {
            "tokens": state.tokens,
            "seconds": state.seconds,
            "loss": state.average_loss,
            "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if cuda else peak_rss(),
        }
        steps_now = state.step - self.first_step
        cursor = self.first_cursor + steps_now * self.plan.rows_per_step
        write = prepare_checkpoint(
            self.name,
            self.tag,
            state.step,
            model=self.model,
            tokenizer=self.tokenizer,
            run=self.record | progress,
            state={
                "loop": asdict(state),
                "cursor": cursor,
                "scaler": self.scaler.state_dict() if self.scaler else None,
            },
            optimizers=self.optimizers,
        )

        def finish() -> None:
            path = write()
            prune(self.name, self.tag, config.keep_last, config.keep_every)
            if self.mirror:
                self.mirror.push(path)

        self.writer.run(finish)
        if not cuda:
            self.writer.wait()
        self.saved = step_dir(self.name, self.tag, state.step)

    def open_log(self, first_step: int) -> TrainLog:
        """The stage's log; prints what MFU is measured against."""
        model, (rank, world) = self.model, rank_and_world()
        peak, source = peak_flops(model.device, model.compute_dtype)
        print0(f"MFU is against {world} x {peak / 1e12:.3g} TFLOP/s ({source})")
        flops = model.flops_per_token(self.row_tokens)
        return TrainLog(
            self.run_folder,
            self.name,
            flops_per_token=flops,
            peak=peak * world,
            session=session_record(model, flops, peak * world, source),
            first_step=first_step,
            meter=open_meter(model.device) if rank == 0 else None,
        )
