"""Training: one loop with schedules, early stopping, a guard against collapse, and exact continuation.

The order of the samples is a function of (seed, epoch), the gates' noise comes from a generator of the run's
own whose state is saved, and a checkpoint holds the position within the epoch and the running sums. So a run
that was interrupted and resumed computes the same numbers, bit for bit, as one that was not.
"""

from __future__ import annotations

import contextlib
import functools
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from . import _extension
from .checkpoint import (
    MODEL_FILE,
    STATE_FILE,
    read_header,
    read_tensors,
    write_model,
    write_tensors,
)
from .collapse import Collapse, CollapseError, CollapseWarning, diagnose
from .config import TrainConfig
from .data import Batch, GraphDataset
from .evaluation import Part, Samples, count_pairs, measure, run
from .metrics import Loss, is_better
from .model import L0SIGN
from .optim import RowAdagrad, RowAdam, parameter_groups

#: What may differ when a run continues: none of these touches a number that is already computed.
RESUMABLE = ("epochs", "patience", "on_collapse", "num_threads", "checkpoint_steps")

# Without validation samples, the guard against collapse looks at this many training samples.
_GUARD_SAMPLES = 8192


@dataclass(frozen=True)
class Progress:
    """Where training stands: in `step` of `steps` in `epoch` of `epochs`."""

    epoch: int
    epochs: int
    step: int
    steps: int
    history: Sequence[dict[str, float]]
    """The rows of the epochs that are complete, those before a resume included."""
    row: dict[str, float] | None = None
    """The row of the epoch, when it has just ended."""
    message: str | None = None
    """What the guard against collapse has to say."""


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns: the best model, in evaluation mode, and how it came about."""

    model: L0SIGN
    config: TrainConfig
    history: list[dict[str, float]]
    """A row an epoch: epoch, loss, validation metrics, edges_kept, l0_weight, seconds, samples_per_second."""
    best_epoch: int
    """The epoch whose weights the model has; 0 for the initial weights."""
    stopped: str
    """Why training ended: "epochs", "patience" or "collapse"."""
    collapse: str | None = None
    """What the guard said, if it said anything."""


@dataclass
class _State:
    """Everything that a checkpoint must remember besides tensors."""

    epoch: int = 0  # complete epochs
    step: int = 0  # complete steps of the current one
    seconds: float = 0.0  # spent in the current epoch
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_value: float = math.nan
    collapses: dict[str, str] = field(default_factory=dict)  # kind -> message, each told once
    stopped: str | None = None
    finite: bool = True  # False after a loss or a prediction that was not: the weights are lost


def fit(
    train: Samples,
    valid: Samples | None = None,
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> FitResult:
    """Train L0-SIGN.

        >>> data = l0sign_cuda.data.planted()
        >>> train, valid, test = data.split()
        >>> result = l0sign_cuda.fit((data, train), (data, valid), epochs=5, l0_weight=0.01)
        >>> l0sign_cuda.evaluate(result.model, (data, test))

    Args:
        train: the samples to learn from, with labels: a data set, or (data set, indices).
        valid: samples that pick the best epoch and stop training early; without them the last epoch counts.
        config: hyper-parameters; by default `TrainConfig()`, or those of the run that is resumed.
        out: a directory for the model and for checkpoints. With one, Ctrl-C ends the current step, saves and
            then raises KeyboardInterrupt; a second Ctrl-C does so at once.
        resume: continue the run in `out`, or start it where there is none, to the same numbers as without a
            stop.
        overwrite: replace a run that is in `out`.
        progress: called after every step and every epoch.
        options: single hyper-parameters, which override those of `config`.

    Raises:
        ValueError: samples without labels; labels that do not fit the loss; a run of other settings or data.
        FileExistsError: `out` holds a run, and neither `resume` nor `overwrite` was given.
        CollapseError: with `on_collapse="raise"`.
    """
    out = None if out is None else Path(out)
    if resume and out is None:
        raise ValueError("resume needs the directory of the run: out=...")
    continued = out is not None and resume and (out / STATE_FILE).exists()
    stored = stored_config(out) if out is not None and continued else None
    config = (config or stored or TrainConfig()).replace(**options)
    if out is not None:
        if stored is not None:
            _check_resumable(stored, config, out)
        elif not overwrite and holds_run(out):
            if (out / STATE_FILE).exists():
                raise FileExistsError(
                    f"{out} holds a run: resume it, overwrite it, or choose another directory"
                )
            raise FileExistsError(
                f"{out} holds a model without the state of a run, which cannot be resumed: overwrite it, or "
                "choose another directory"
            )
        out.mkdir(parents=True, exist_ok=True)
    with _threads(config.num_threads):
        trainer = _Trainer(
            Part(train, "train"), None if valid is None else Part(valid, "valid"), config, out, progress
        )
        if continued:
            trainer.load()
        elif out is not None:
            for name in (STATE_FILE, MODEL_FILE):  # an overwritten run leaves nothing to mistake for this one
                (out / name).unlink(missing_ok=True)
            trainer.save(model=False)  # first, so that there is a run to resume as soon as there is a file
        trainer.save_model()  # after a load too: whoever stopped the run may have come between its two files
        return trainer.run()


def holds_run(path: str | Path) -> bool:
    """Whether there is a model or a checkpoint in the directory `path`."""
    return any((Path(path) / name).exists() for name in (STATE_FILE, MODEL_FILE))


def stored_config(run: str | Path) -> TrainConfig | None:
    """The settings of the run whose checkpoint is in `run`; None where there is no checkpoint."""
    file = Path(run) / STATE_FILE
    if not file.exists():
        return None
    return TrainConfig.from_stored(read_header(file).get("config", {}), source=str(file))


def stored_split(run: str | Path, data: GraphDataset) -> tuple[NDArray[np.int64], ...] | None:
    """The samples of `data` that the run in `run` was trained, validated and to be tested on.

    They follow from the checkpoint, which is written before the first step: it knows how many samples each
    part had, and its fingerprints tell whether they are these. None where there is no checkpoint.

    Raises:
        ValueError: the run split other samples, in another way, or none.
    """
    file = Path(run) / STATE_FILE
    if not file.exists():
        return None
    header = read_header(file)
    try:
        fingerprints, seed = header["data"], int(header["config"]["seed"])
        samples, trained = int(fingerprints[0][0]), int(fingerprints[0][3])
        validated = 0 if fingerprints[1] is None else int(fingerprints[1][3])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: damaged, or of another version: {error!r}") from None
    if trained == samples:
        raise ValueError(f"{run}: it was trained on all {samples} samples that it was given, and split none")
    if len(data) == samples and trained + validated <= samples:
        sizes = trained, validated, samples - trained - validated
        parts = data.split([size / samples for size in sizes], seed)
        if fingerprints == _fingerprints(
            Part((data, parts[0])), Part((data, parts[1])) if validated else None
        ):
            return parts
    raise ValueError(
        f"{run}: expected the {samples} samples that its training split, {trained} of them to learn from,"
        f" read with the same options; got {'others' if len(data) == samples else len(data)}"
    )


class _Trainer:
    def __init__(
        self,
        train: Part,
        valid: Part | None,
        config: TrainConfig,
        out: Path | None,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.train, self.valid, self.config, self.out = train, valid, config, out
        self.progress = progress or (lambda event: None)
        self.device = resolve_device(config.device)
        outputs = _count_outputs(train, config.loss)
        if valid is not None:
            if valid.data.num_features > train.data.num_features:
                raise ValueError(
                    f"the validation samples have {valid.data.num_features} features, "
                    f"the training samples only {train.data.num_features}"
                )
            if _count_outputs(valid, config.loss) > outputs:
                raise ValueError("the validation samples have classes that the training samples lack")
        with torch.random.fork_rng(devices=[]):  # the caller's generator stays as it is
            torch.default_generator.manual_seed(config.seed)
            model = L0SIGN(
                train.data.num_features, num_outputs=outputs, sparse=config.sparse, **config.model_options()
            )
        self.model = model.to(self.device)
        self.optimizer = _make_optimizer(self.model, config)
        self.average = averaged(self.model, config.ema_decay) if config.ema_decay else None
        self.noise = torch.Generator().manual_seed(config.seed)
        self.steps = math.ceil(len(train) / config.batch_size)
        self.state = _State()
        self.sums = self._no_sums()
        self.best = self._weights()

    @property
    def judged(self) -> L0SIGN:
        """What is validated and kept: the model, or one with the average of its weights."""
        return self.model if self.average is None else cast(L0SIGN, self.average.module)

    def run(self) -> FitResult:
        state = self.state
        with _interruptible(self.out is not None) as interrupted:
            self._stop_if(interrupted)
            while state.stopped is None and state.epoch < self.config.epochs:
                self._train_epoch(interrupted)
                self._end_epoch(interrupted)
        self.model.load_state_dict(self.best)
        self.model.sparse = False  # as a model that is loaded: any optimizer may go on with it
        return FitResult(
            self.model.eval(),
            self.config,
            state.history,
            state.best_epoch,
            state.stopped or "epochs",
            "\n".join(state.collapses.values()) or None,
        )

    def _train_epoch(self, interrupted: threading.Event) -> None:
        state, config = self.state, self.config
        order = np.random.default_rng((config.seed, state.epoch)).permutation(len(self.train))
        self.model.train()
        began = time.perf_counter() - state.seconds
        for batch in self.train.batches(config.batch_size, order, state.step):
            self._step(batch.to(self.device))
            state.step += 1
            state.seconds = time.perf_counter() - began
            self._report()
            self._stop_if(interrupted)
            every = config.checkpoint_steps
            if every and state.step % every == 0 and state.step < self.steps:
                self.save(model=False)

    def _step(self, batch: Batch) -> None:
        config = self.config
        seed = int(torch.randint(2**63 - 1, (), generator=self.noise))
        pairs = count_pairs(batch)
        l0_weight: float | Tensor = config.l0_weight_at(self.state.epoch + self.state.step / self.steps)
        if config.l0_reduction == "mean":
            l0_weight = l0_weight / pairs.clamp(min=1)
        assert batch.labels is not None
        target = batch.labels.long() if config.loss == "cross_entropy" else batch.labels
        self.optimizer.zero_grad(set_to_none=True)  # now: the next gradients come with the risk
        with self._autocast(), self._drawing_from(seed):
            loss, output = self.model.risk(
                batch.ids,
                target,
                batch.offsets,
                batch.values,
                seed=seed,
                l0_weight=l0_weight,
                l2_weight=config.l2_weight,
                loss=config.loss,
            )
        loss.backward()
        if config.clip_norm:
            _clip_gradients(self.model, config.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.sums[0].add_(loss.detach(), alpha=batch.num_graphs)
        self.sums[1].add_(output.num_edges.sum())
        self.sums[2].add_(pairs.sum())

    @contextlib.contextmanager
    def _drawing_from(self, seed: int) -> Iterator[None]:
        """Torch's generator, which dropout takes, starts from a step's seed, and is then put back."""
        if not self.config.dropout:
            yield
            return
        generator = torch.default_generator
        if self.device.type == "cuda":
            index = self.device.index  # "cuda" has none: the current one
            generator = torch.cuda.default_generators[torch.cuda.current_device() if index is None else index]
        state = generator.get_state()
        try:
            generator.manual_seed(seed)
            yield
        finally:
            generator.set_state(state)

    def _end_epoch(self, interrupted: threading.Event) -> None:
        state, config = self.state, self.config
        checked = self.valid
        if checked is None:
            checked = Part((self.train.data, self.train.indices[:_GUARD_SAMPLES]))
        with self._autocast():
            predictions = run(self.judged, checked, config.batch_size, lambda: self._stop_if(interrupted))
        found = measure(predictions, torch.from_numpy(checked.labels()), config.loss)

        loss, open_edges, pairs = self.sums.tolist()
        row: dict[str, float] = {"epoch": state.epoch + 1, "loss": loss / len(self.train)}
        # Without validation samples the share of edges is that of the training draws.
        row |= found if self.valid is not None else {"edges_kept": open_edges / pairs if pairs else math.nan}
        row |= {
            "l0_weight": config.l0_weight_at(state.epoch + 1),
            "seconds": state.seconds,
            "samples_per_second": len(self.train) / state.seconds,
        }
        state.history.append(row)
        state.epoch, state.step, state.seconds, self.sums = state.epoch + 1, 0, 0.0, self._no_sums()

        collapse = diagnose(state.epoch, loss, predictions.logits, found, config)
        better = self._judge(row, finite=collapse is None or collapse.kind != "loss")
        news = self._note(collapse)
        self.save(model=better)
        self._report(row, news)
        if news is not None:
            if config.on_collapse == "raise":
                raise CollapseError(news)
            warnings.warn(news, CollapseWarning, stacklevel=4)

    def _judge(self, row: dict[str, float], finite: bool) -> bool:
        """Whether the epoch is the best so far; remembers it, and ends training when patience is out."""
        state, name = self.state, self.config.monitored
        value = row[name] if self.valid is not None else math.nan
        # Where the metric is never a number (no validation samples, or of one class), the last epoch counts.
        better = finite and (math.isnan(state.best_value) or is_better(name, value, state.best_value))
        if better:
            state.best_epoch, state.best_value = state.epoch, value
            for name, tensor in self.judged.state_dict().items():
                self.best[name].copy_(tensor)  # in place: tables may be most of what memory holds
        self._heed_patience()
        return better

    def _heed_patience(self) -> None:
        state, patience = self.state, self.config.patience
        judged = patience > 0 and not math.isnan(state.best_value)
        late = judged and state.epoch - state.best_epoch >= patience
        if state.stopped in (None, "patience"):
            state.stopped = "patience" if late else None

    def _note(self, collapse: Collapse | None) -> str | None:
        """Act on a collapse; its message when it is of a kind that this run was not told of before."""
        if collapse is None:
            return None
        state, policy = self.state, self.config.on_collapse
        # Nothing comes after a loss that is not finite.
        state.finite = collapse.kind != "loss"
        if not state.finite or policy in ("stop", "raise"):
            state.stopped = "collapse"
        if policy == "ignore" or collapse.kind in state.collapses:
            return None
        state.collapses[collapse.kind] = collapse.message
        return collapse.message

    def _report(self, row: dict[str, float] | None = None, message: str | None = None) -> None:
        epoch, step = (self.state.epoch, self.steps) if row else (self.state.epoch + 1, self.state.step)
        self.progress(Progress(epoch, self.config.epochs, step, self.steps, self.state.history, row, message))

    def _stop_if(self, interrupted: threading.Event) -> None:
        if interrupted.is_set():
            self.save()
            raise KeyboardInterrupt

    def save(self, model: bool = True) -> None:
        """Save the state, and the best weights so far unless `model` says that they have not changed."""
        if self.out is None:
            return
        # The model comes first: an epoch that no state remembers is computed again, to the same model.
        if model:
            self.save_model()
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
        tensors |= {"noise": self.noise.get_state(), "sums": self.sums}
        header = {"config": self.config.to_dict(), "data": self._fingerprint, "state": vars(self.state)}
        write_tensors(self.out / STATE_FILE, tensors, header)

    def save_model(self) -> None:
        """Save the best weights so far."""
        if self.out is not None:
            options, vocabulary = self.model.hyperparameters, self.train.data.vocabulary
            write_model(self.out, self.best, options, vocabulary, self.config)

    def load(self) -> None:
        """Continue from the checkpoint in the run's directory."""
        assert self.out is not None
        file = self.out / STATE_FILE
        tensors, header = read_tensors(file)
        if header.get("data") != self._fingerprint:
            raise ValueError(f"{file}: the run was started on other samples than these")

        def part(prefix: str) -> dict[str, Tensor]:
            return {
                name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)
            }

        try:
            self.model.load_state_dict(part("model."))
            self.best = part("best.")
            if self.average is not None:
                self.average.load_state_dict(part("average."))
            packed = self.optimizer.state_dict()
            packed["state"] = {}
            for name, tensor in part("optimizer.").items():
                index, _, key = name.partition(".")
                packed["state"].setdefault(int(index), {})[key] = tensor
            self.optimizer.load_state_dict(packed)
            self.noise.set_state(tensors["noise"])
            self.sums = tensors["sums"].to(self.device)
            self.state = _State(**header["state"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{file}: damaged, or of another version: {error}") from None
        # A larger patience goes on, and so does one who no longer wants to stop at a collapse.
        self._heed_patience()
        if not self.state.finite:
            news = (
                f"{self.out}: the run ended on a loss or a prediction that is not finite, and cannot go on. "
                "Start another with a smaller lr or with clip_norm."
            )
            self._report(message=news)
            warnings.warn(news, CollapseWarning, stacklevel=3)
        elif self.state.stopped == "collapse" and self.config.on_collapse in ("warn", "ignore"):
            self.state.stopped = None

    @functools.cached_property
    def _fingerprint(self) -> list[Any]:
        return _fingerprints(self.train, self.valid)

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    def _no_sums(self) -> Tensor:
        """Of the epoch so far: the loss over its samples, open edges, pairs."""
        return torch.zeros(3, dtype=torch.float64, device=self.device)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        device, half = self.device.type, self.config.precision == "bfloat16"
        if not half and not torch.is_autocast_enabled(device):
            return contextlib.nullcontext()  # leaving autocast takes as long as the loss
        return torch.autocast(device, torch.bfloat16, enabled=half)


def resolve_device(name: str) -> torch.device:
    """The device of a config; "auto" is a GPU where there is one that this build has kernels for."""
    if name == "auto":
        kernels = torch.cuda.is_available() and _extension.is_available() and _extension.cuda_operators()
        return torch.device("cuda" if kernels and "l0_sign" in kernels else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N; got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, but torch finds no GPU here")
    return device


def _fingerprints(train: Part, valid: Part | None) -> list[Any]:
    return [train.fingerprint(), None if valid is None else valid.fingerprint()]


def _count_outputs(part: Part, loss: Loss) -> int:
    """How many outputs the model needs for these labels; ValueError where they do not fit the loss."""
    labels = part.labels()
    if not len(labels):
        raise ValueError("there are no samples")
    if loss == "mse":
        return 1
    found = np.unique(labels)
    if loss == "bce":
        strange = found[(found != 0) & (found != 1)]
        if strange.size:
            raise ValueError(
                f"loss 'bce' needs labels 0 and 1, found {strange[0]:g}; "
                "use 'mse' for values or 'cross_entropy' for classes 0..K-1"
            )
        return 1
    strange = found[(found < 0) | (found != np.floor(found))]
    if strange.size:
        raise ValueError(f"loss 'cross_entropy' needs classes 0..K-1 as labels, found {strange[0]:g}")
    return max(int(found[-1]) + 1, 2)


def _make_optimizer(model: L0SIGN, config: TrainConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(model, config.lr, config.edge_lr_factor, config.weight_decay)
    on_cpu = next(model.parameters()).device.type == "cpu"
    if config.optimizer == "row_adam":
        return RowAdam(groups, lr=config.lr)
    if config.optimizer == "row_adagrad":
        return RowAdagrad(groups, lr=config.lr)
    if config.optimizer == "adagrad":
        return torch.optim.Adagrad(groups, lr=config.lr, fused=on_cpu)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, fused=True)


def averaged(model: torch.nn.Module, decay: float) -> AveragedModel:
    """The moving average of a model's weights; of the first t steps it is their weighted mean, as Adam's are.

    Torch's own starts from the first weights alone, which weigh decay^t after t more steps.
    """

    @torch.no_grad()
    def move(averages: Any, weights: Any, steps: Any) -> None:
        torch._foreach_lerp_(averages, weights, (1 - decay) / (1 - decay ** (int(steps) + 1)))

    return AveragedModel(model, multi_avg_fn=move)


def _clip_gradients(model: L0SIGN, max_norm: float) -> None:
    """Scale all gradients so that their norm is at most `max_norm`."""
    # torch's own function takes no sparse gradients. The model's have each row once, so that their values
    # have the norm of the whole.
    gradients = [
        parameter.grad._values() if parameter.grad.is_sparse else parameter.grad
        for parameter in model.parameters()
        if parameter.grad is not None
    ]
    scale = (max_norm / (torch.nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(scale)


def _check_resumable(stored: TrainConfig, config: TrainConfig, out: Path) -> None:
    for name, value in stored.to_dict().items():
        if name not in RESUMABLE and config.to_dict()[name] != value:
            raise ValueError(
                f"{out}: the run has {name} = {value}, which cannot become {config.to_dict()[name]} "
                f"when it resumes; only {', '.join(RESUMABLE)} can change"
            )


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if number:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number:
            torch.set_num_threads(before)


@contextlib.contextmanager
def _interruptible(enabled: bool) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one interrupts as ever."""
    event = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    # Only the main thread may set a handler, and one who ignores Ctrl-C (nohup) goes on doing so.
    if (
        not enabled
        or threading.current_thread() is not threading.main_thread()
        or before is not signal.default_int_handler
    ):
        yield event
        return

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        event.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
