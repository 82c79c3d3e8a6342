"""One training stage from set-up to last checkpoint: resume, events, saves, around the one loop.

A script starts the stage, makes rows for its batch plan, and trains on them: see chat_sft.py.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch

from nanochat.checkpoint.index import prune, run_dir, step_dir
from nanochat.checkpoint.rng import print_differences, restore_rng
from nanochat.checkpoint.writing import Writer
from nanochat.checkpoint_manager import load_folder, load_training_state, prepare_checkpoint
from nanochat.common import ConfigError, compute_init, on_rank0, print0, rank_and_world
from nanochat.conversation import stop_ids
from nanochat.data.word_vectors import share_gradients
from nanochat.dataloader import Batch, batches
from nanochat.gpt import GPT
from nanochat.hardware import attention_backends, peak_rss
from nanochat.loss import LossFn
from nanochat.tokenizer import Tokenizer
from nanochat.train import DivergedError, LoopState, LossScaler, Periodic, train
from nanochat.training.batch_plan import BatchPlan, can_compile, out_of_memory, plan_batch
from nanochat.training.config import StageConfig, check_settings
from nanochat.training.distributed import join, shard
from nanochat.training.log import TrainLog, session_of, truncate_metrics
from nanochat.training.optimizers import build_optimizers, make_schedule
from nanochat.training.resume import compare_settings, find_resume, lock_run, move_aside
from nanochat.training.stopping import stop_on_signals
from nanochat.training.validation import measure_rows


@dataclass(frozen=True)
class StageData:
    """What a stage trains and is measured on, and for how long."""

    rows: object  # row(i) -> (inputs, targets); see dataloader.py
    val_rows: object  # None: nothing is measured in bits per byte
    fingerprint: str  # of data and mixture, for the record
    report: dict  # counts worth keeping in run.json
    planned_steps: int | None = None  # default: one epoch


class Stage:
    """A stage at its beginning: ranks joined, run locked, model loaded."""

    def __init__(
        self,
        name: str,
        config: StageConfig,
        *,
        parent: Callable[[], Path] | None = None,
        tag: str = "",
        new_model: Callable[[torch.device], tuple] | None = None,
    ):
        """The model is that of this run's own checkpoint with --resume, else that in the folder
        parent(), else new_model(device) -> (model, tokenizer). tag: the run's name, unless
        --model-tag or the parent gives one."""
        *_, ranks, device = compute_init(config.device_type, config.seed, config.deterministic)
        check_settings(name, config, device)
        self.compiled = can_compile(device, config.compile)
        self.parent = on_rank0(parent) if parent else None
        tag = config.model_tag or (self.parent.parent.name if self.parent else tag)
        self.name, self.config, self.tag, self.run_folder = name, config, tag, run_dir(name, tag)
        self.locks = []  # rank 0's
        on_rank0(lambda: self.locks.append(lock_run(name, tag)))
        self.resume_from = on_rank0(lambda: find_resume(name, tag, config))
        self.saved = self.resume_from  # the newest checkpoint of this run
        place = torch.device("cpu") if ranks > 1 else device  # where a whole model finds room
        loaded = []  # on rank 0, which alone reads the disk: the others get its weights in shard()

        def load() -> tuple:
            source = self.resume_from or self.parent
            found = load_folder(source, place, "train") if source else (*new_model(place), None)
            loaded.extend(found[:2])
            meta = found[2] if self.resume_from else None
            if meta and meta["parent"] and Path(meta["parent"]).is_dir():
                self.parent = Path(meta["parent"])  # not what is the newest by now
            return found[0].config, found[1].parts, meta, self.parent

        shape, parts, self.meta, self.parent = on_rank0(load)
        model, self.tokenizer = loaded or (GPT.from_weights(shape, None), Tokenizer(parts))
        model.stop_ids = stop_ids(self.tokenizer)
        if config.document_mask:
            model.document_start = self.tokenizer.bos
        if config.share_letter_cases:
            share_gradients(model.model.embed_tokens, self.tokenizer.pieces())
        if config.fp8:
            model.use_fp8()
        for block in model.model.layers[: config.checkpoint_blocks]:
            block.recompute = True
        self.model = model
        # share: of the weights that a rank holds
        self.share = shard(model, config, device, self.compiled) if ranks > 1 else 1.0
        self.ranks = join(model, config)
        self.loss_fn = LossFn(model, self.compiled, ranks > 1, config.sampled_ids)

    def plan_batch(self, rows_per_step: int, row_tokens: int) -> BatchPlan:
        """How a step of about `rows_per_step` rows of up to `row_tokens` tokens is computed."""
        size = self.config.device_batch_size
        if size == "auto" and self.resume_from and self.meta["world_size"] == rank_and_world()[1]:
            size = self.meta["device_batch_size"]
        self.row_tokens = row_tokens
        # subtle: a micro-batch tried here is compiled, with these backends
        with attention_backends(self.model.device):
            sizes = size, rows_per_step, row_tokens
            return plan_batch(self.model, *sizes, self.loss_fn, self.compiled, self.share)

    def train(
        self,
        data: StageData,
        plan: BatchPlan,
        events: tuple[Periodic, ...] = (),
        steps: Callable[[int], Iterator[list[Batch]]] | None = None,
        meter=None,
        on_save: Callable[[Path], None] | None = None,
    ) -> None:
        """Trains to the end. Asked to stop by SIGTERM or Ctrl-C, it saves and raises
        SystemExit(130).

        steps(first_step) yields the micro-batches of each step; default: those of data.rows.
        meter: of energy, see training/log.py. on_save: called with each checkpoint's folder.
        """
        config, model = self.config, self.model
        self.data, self.plan = data, plan
        self.optimizers = build_optimizers(model, config, self.ranks.owned)
        self.scaler = LossScaler() if model.compute_dtype == torch.float16 else None
        planned = None
        if not config.target_seconds:
            planned = data.planned_steps or max(1, len(data.rows) // plan.rows_per_step)
        state, cursor = LoopState(num_steps=config.num_steps or planned), 0
        if self.resume_from:
            compare_settings(self.resume_from, config, self.meta, data.fingerprint)
            state, cursor = self.restore(state.num_steps)
            if state.num_steps and state.step >= state.num_steps:
                print0(f"{self.name} {self.tag} is finished, at step {state.step}")
                return
        self.origin = cursor - state.step * plan.rows_per_step  # 0, unless steps had other rows
        self.record = {
            "config": asdict(config),
            "parent": str(self.parent) if self.parent else None,
            "world_size": rank_and_world()[1],
            "device_batch_size": plan.device_batch,
            "rows_per_step": plan.rows_per_step,
            "planned_steps": planned,
            "data_fingerprint": data.fingerprint,
            "data": data.report,
        }
        # not before: until here a wrong setting costs nothing
        if config.fresh and not self.resume_from:
            on_rank0(lambda: move_aside(self.run_folder))
        truncate_metrics(self.run_folder, state.step if self.resume_from else -1)
        session = session_of(model, self.row_tokens, config.sampled_ids)
        self.log = TrainLog(self.run_folder, self.name, session, state.step, meter)
        self.on_save = on_save
        self.steps = steps or self.steps_of_rows
        # What only measures or prints comes last, so that it can lose nothing.
        save = Periodic(self.save, config.save_every)
        events = (save, Periodic(self.evaluate, config.eval_every), *events)
        with ExitStack() as stack:
            for lock in self.locks:
                stack.enter_context(lock)
            stack.callback(self.log.close)
            self.writer = stack.enter_context(Writer())
            done = self.loop(state, events)
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

    def restore(self, num_steps: int | None) -> tuple[LoopState, int]:
        """(loop state, cursor) of resume_from; restores optimizers, scaler, random generators."""
        path, config = self.resume_from, self.config
        tensors = {}  # on rank 0

        def load() -> list:
            *rest, found = load_training_state(path)
            tensors.update(found)
            return rest

        saved, generators = on_rank0(load)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_tensors(self.ranks.own_state(name, tensors.get(name, {})))
        restore_rng(generators)
        print_differences(saved["environment"], self.model.device)
        state = LoopState(**saved["loop"])
        print0(f"resumed {path} at step {state.step}")
        now, then = self.plan.rows_per_step, self.meta["rows_per_step"]
        if now != then:
            print0(f"a step now has {now} rows, it had {then}: fine-tuning may repeat or miss some")
        if self.scaler and saved["scaler"]:
            self.scaler = LossScaler(**saved["scaler"])
        finished = state.step == state.num_steps
        if config.target_seconds is None:
            state.num_steps = num_steps
        elif config.target_seconds != self.meta["config"]["target_seconds"] and not finished:
            state.num_steps = None  # timed anew
        return state, saved["cursor"]

    def steps_of_rows(self, first_step: int) -> Iterator[list[Batch]]:
        """The micro-batches of each step, from the cursor on."""
        source = batches(
            self.data.rows,
            rows_per_step=self.plan.rows_per_step,
            device_batch_size=self.plan.device_batch,
            cursor=self.origin + first_step * self.plan.rows_per_step,
            device=self.model.device,
            pad_id=self.tokenizer.bos,
        )
        with closing(source):
            while True:
                yield list(islice(source, self.plan.accum_steps))

    def loop(self, state: LoopState, events) -> bool:
        """Feeds the training loop; False when it was asked to stop."""
        config, model, optimizers = self.config, self.model, list(self.optimizers.values())
        settings = dict(seconds=config.target_seconds, grad_clip=config.grad_clip)
        settings |= dict(loss_fn=self.loss_fn, schedule=make_schedule(config))
        settings |= dict(log=self.log, events=events, scaler=self.scaler, ranks=self.ranks)
        steps, attention = self.steps(state.step), attention_backends(model.device)
        with closing(steps), attention, stop_on_signals() as asked:
            try:
                return train(model, optimizers, steps, state=state, asked_to_stop=asked, **settings)
            except torch.OutOfMemoryError as error:
                raise ConfigError(out_of_memory(self.plan.device_batch)) from error
            except DivergedError as error:
                self.writer.wait()
                last = self.saved or "none yet"
                raise DivergedError(f"{error} The last good checkpoint: {last}.") from error

    def check_replicas(self, state: LoopState) -> None:
        """Raises DivergedError unless all ranks hold the same weights."""
        if name := self.ranks.first_difference(self.model):
            raise DivergedError(
                f"step {state.step}: the ranks no longer hold the same weights, first in {name}; "
                f"resume from the last checkpoint, and if it happens again look for a faulty device"
            )

    def evaluate(self, state: LoopState) -> None:
        """Measures bits per byte of the validation rows."""
        self.check_replicas(state)
        model, rows = self.model, self.data.val_rows
        if rows is None:
            return
        # compiled only on a GPU: on a CPU that would take longer than it saves
        loss_fn = self.loss_fn if model.device.type == "cuda" else None
        sizes = self.config.eval_tokens, self.plan.device_batch
        model.eval()
        bits, _ = measure_rows(model, self.tokenizer, rows, *sizes, loss_fn)
        model.train()
        self.record["val_bpb"] = bits
        self.log.note(state, val_bpb=bits)

    def save(self, state: LoopState) -> None:
        """Writes a checkpoint: beside the next steps on a GPU, at once elsewhere. One that is there
        already, where a run resumes or stops, stays."""
        self.check_replicas(state)
        folder = step_dir(self.name, self.tag, state.step)
        config, cuda = self.config, self.model.device.type == "cuda"
        progress = {
            "tokens": state.tokens,
            "seconds": state.seconds,
            "loss": state.average_loss,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else peak_rss(),
        }
        to_resume = {
            "loop": asdict(state),
            "cursor": self.origin + state.step * self.plan.rows_per_step,
            "scaler": asdict(self.scaler) if self.scaler else None,
        }
        write = folder != self.saved and prepare_checkpoint(
            self.name,
            self.tag,
            state.step,
            model=self.model,
            tokenizer=self.tokenizer,
            run=self.record | progress,
            state=to_resume,
            weights=self.ranks.weights(self.model),
            optimizers={n: self.ranks.whole_state(n, o) for n, o in self.optimizers.items()},
        )

        def finish() -> None:
            if write:
                write()
            prune(self.name, self.tag, config.keep_last, config.keep_every)
            if self.on_save:
                self.on_save(folder)

        self.writer.run(finish)
        if not cuda:
            self.writer.wait()
        self.saved = folder
