"""Every hyper-parameter, once: its default, its meaning and its limits.

The options of `l0sign train`, the keys of a config file and the JSON of a run are derived from `TrainConfig`.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ._extras import require
from .metrics import METRICS
from .model import L0SIGN

_MODEL_PARAMETERS = inspect.signature(L0SIGN).parameters


def _option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
    model: bool = False,
) -> Any:
    bounds = {"least": least, "above": above, "below": below, "most": most}
    return field(default=default, metadata={"help": help, **bounds, "model": model})


def _of_model(name: str, help: str, **bounds: Any) -> Any:
    """A hyper-parameter of `L0SIGN`: its default is the model's own."""
    return _option(_MODEL_PARAMETERS[name].default, help, model=True, **bounds)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Hyper-parameters of the model and of its training; immutable, and checked when made."""

    embedding_dim: int = _of_model("embedding_dim", "size d of a node embedding", least=1)
    hidden_dim: int = _of_model("hidden_dim", "hidden size H of the message network", least=1)
    edge_dim: int = _of_model("edge_dim", "size b of an edge embedding", least=1)
    edge_hidden_dim: int = _of_model("edge_hidden_dim", "hidden size of the edge network", least=1)
    aggr: Literal["mean", "neighbor_mean", "sum"] = _of_model("aggr", "how a node aggregates its messages")
    iterations: int = _of_model(
        "iterations", "message passing steps, with the same weights and gates", least=1
    )
    temperature: float = _of_model("temperature", "temperature of the hard concrete gate", above=0)
    limits: tuple[float, float] = _of_model("limits", "stretch (gamma, zeta) of the hard concrete gate")
    gated: bool = _of_model("gated", "learn which edges to keep; without, plain SIGN on all pairs")
    head_bias: bool = _of_model("head_bias", "add a bias to the prediction")
    dropout: float = _of_model(
        "dropout", "probability of zeroing a component of a node embedding in training", least=0, below=1
    )
    init_std: float = _of_model(
        "init_std", "standard deviation of the node embeddings' first values", least=0
    )

    loss: Literal["bce", "mse", "cross_entropy"] = _option(
        "bce", "bce for labels 0 and 1, mse for values, cross_entropy for classes 0..K-1"
    )
    optimizer: Literal["adam", "adamw", "adagrad", "row_adam", "row_adagrad"] = _option(
        "adam",
        "optimizer; the paper's authors use adagrad; row_*: for large vocabularies, on touched rows only",
    )
    lr: float = _option(0.01, "learning rate", above=0)
    edge_lr_factor: float = _option(0.1, "learning rate of the edge network, as a multiple of lr", above=0)
    weight_decay: float = _option(1e-5, "weight decay of everything but the edge network", least=0)
    batch_size: int = _option(1024, "samples in a step", least=1)
    epochs: int = _option(15, "passes over the training samples, at most", least=0)
    l0_weight: float = _option(
        0.05, "weight of the expected share (or number) of open edges in the loss", least=0
    )
    l0_reduction: Literal["mean", "sum"] = _option(
        "mean", "l0_weight counts for the mean over a sample's pairs, or for their sum as in the paper"
    )
    l0_warmup_epochs: float = _option(
        0.0, "raise l0_weight linearly from zero over this many epochs", least=0
    )
    l2_weight: float = _option(0.0, "weight of the squared messages over open edges in the loss", least=0)
    clip_norm: float = _option(0.0, "clip the gradient's norm to this; 0: never", least=0)
    ema_decay: float = _option(
        0.0,
        "validate and keep the moving average of the weights of about 1 / (1 - X) steps; 0: none",
        least=0,
        below=1,
    )
    precision: Literal["float32", "bfloat16"] = _option("float32", "bfloat16: train under autocast")
    monitor: Literal["auto", "auc", "accuracy", "logloss", "rmse"] = _option(
        "auto", "validation metric that picks the best epoch; auto: auc for bce, rmse for mse, else logloss"
    )
    patience: int = _option(
        3, "stop after this many epochs without a better validation metric; 0: never", least=0
    )
    on_collapse: Literal["warn", "stop", "raise", "ignore"] = _option(
        "warn", "what to do when all edges close, the prediction turns constant or the loss is not finite"
    )
    seed: int = _option(
        0, "seed of the split, the weights, the order of samples and the gates", least=0, most=2**63 - 1
    )
    device: str = _option("auto", "cpu, cuda or cuda:N; auto: a GPU where there is one")
    num_threads: int = _option(0, "CPU threads; 0: leave it to torch", least=0, most=1024)
    checkpoint_steps: int = _option(
        0, "also save within an epoch, every so many steps; 0: at its end only", least=0
    )

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = _checked(spec.name, getattr(self, spec.name), option_types()[spec.name])
            least, above, below, most = map(spec.metadata.get, ("least", "above", "below", "most"))
            if least is not None and value < least:
                raise ValueError(f"{spec.name} must be at least {least:g}, got {value!r}")
            if above is not None and value <= above:
                raise ValueError(f"{spec.name} must be greater than {above:g}, got {value!r}")
            if below is not None and value >= below:
                raise ValueError(f"{spec.name} must be less than {below:g}, got {value!r}")
            if most is not None and value > most:
                raise ValueError(f"{spec.name} must be at most {most}, got {value!r}")
            object.__setattr__(self, spec.name, value)
        if self.monitor not in ("auto", *METRICS[self.loss]):
            known = ", ".join(METRICS[self.loss])
            raise ValueError(
                f"monitor must be auto or one of {known} for loss {self.loss!r}; got {self.monitor!r}"
            )
        if self.ema_decay and self.sparse:
            raise ValueError(
                f"ema_decay must be 0 with optimizer {self.optimizer!r}, got {self.ema_decay!r}: "
                "an average moves every row at each step, and this optimizer is there to touch few"
            )
        if not self.limits[0] < 0 or not self.limits[1] > 1:
            raise ValueError(f"limits must be (gamma < 0, zeta > 1), got {self.limits!r}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "config") -> TrainConfig:
        """A config from names and values; an unknown name is an error that lists the known ones."""
        check_names(values, source)
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from None

    @classmethod
    def from_stored(cls, values: Mapping[str, Any], source: str) -> TrainConfig:
        """The config that a run has stored, maybe before there were all of today's names."""
        # One rate for all parameters, when there was no factor.
        return cls.from_mapping({"edge_lr_factor": 1.0, **values}, source)

    @classmethod
    def from_file(cls, path: str | Path) -> TrainConfig:
        """A config from a .toml, .yaml, .yml or .json file of `name = value` pairs."""
        return cls.from_mapping(read_config_file(path), source=str(path))

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some values changed, checked again."""
        check_names(changes, "config")
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All values, ready for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    def model_options(self) -> dict[str, Any]:
        """The keyword arguments of `L0SIGN` that this config decides."""
        options = {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.metadata["model"]}
        # Nobody pays for a penalty that has no weight.
        return options | {"l2_penalty": self.l2_weight > 0}

    @property
    def sparse(self) -> bool:
        """Whether the optimizer takes sparse gradients of the embeddings."""
        return self.optimizer in ("row_adam", "row_adagrad")

    @property
    def monitored(self) -> str:
        """The validation metric that picks the best epoch."""
        return METRICS[self.loss][0] if self.monitor == "auto" else self.monitor

    def l0_weight_at(self, epochs_done: float) -> float:
        """lambda_1 after `epochs_done` epochs (fractions count): linear over the warm-up, then constant."""
        if epochs_done >= self.l0_warmup_epochs:
            return self.l0_weight
        return self.l0_weight * epochs_done / self.l0_warmup_epochs


@cache
def option_types() -> dict[str, Any]:
    """The type of every hyper-parameter."""
    return get_type_hints(TrainConfig)


def check_names(values: Mapping[str, Any], source: str) -> None:
    """Refuse names that are no hyper-parameter, and list those that are."""
    known = [spec.name for spec in fields(TrainConfig)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"{source}: unknown key {name!r}{hint}; known keys: {', '.join(known)}")


def _checked(name: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`, or a ValueError that says what was expected."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}; got {value!r}")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(get_args(kind)):
            raise ValueError(f"{name} must be {len(get_args(kind))} numbers, got {value!r}")
        return tuple(_checked(name, item, part) for item, part in zip(value, get_args(kind), strict=True))
    if kind is float:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                number = float(value)  # a string too: YAML 1.1 reads 1e-5 as one
            except ValueError:
                number = math.nan
            if math.isfinite(number):
                return number
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {int: "a whole number", bool: "true or false", str: "text"}
        raise ValueError(f"{name} must be {words[kind]}, got {value!r}")
    return value


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The names and values of a config file, unchecked but for being a flat table of known names."""
    path = Path(path)
    readers: dict[str, Callable[[str], Any]] = {
        ".toml": _read_toml,
        ".yaml": _read_yaml,
        ".yml": _read_yaml,
        ".json": json.loads,
    }
    if path.suffix not in readers:
        raise ValueError(f"{path}: a config file ends in one of {', '.join(readers)}")
    try:
        values = readers[path.suffix](path.read_text(encoding="utf-8"))
    except (OSError, ImportError):
        raise
    except Exception as error:  # each reader has its own class of error
        raise ValueError(
            f"{path}: not valid {path.suffix[1:].upper()}: {' '.join(str(error).split())}"
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected `name = value` pairs, found {type(values).__name__}")
    check_names(values, str(path))
    return values


def _read_toml(text: str) -> Any:
    return require("tomllib" if sys.version_info >= (3, 11) else "tomli", "train").loads(text)


def _read_yaml(text: str) -> Any:
    return require("yaml", "train").safe_load(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """One option for each hyper-parameter. Options that are not given leave no trace in the parsed result."""
    groups = {
        True: parser.add_argument_group("model"),
        False: parser.add_argument_group("training"),
    }
    for spec in fields(TrainConfig):
        kind = option_types()[spec.name]
        flag = "--gates" if spec.name == "gated" else f"--{spec.name.replace('_', '-')}"
        shown = (
            " ".join(f"{part:g}" for part in spec.default)
            if isinstance(spec.default, tuple)
            else spec.default
        )
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": spec.name}
        settings["help"] = f"{spec.metadata['help']} (default: {shown})".replace("%", "%%")
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            settings["choices"] = get_args(kind)
        elif get_origin(kind) is tuple:
            settings |= {
                "type": get_args(kind)[0],
                "nargs": len(get_args(kind)),
                "metavar": ("GAMMA", "ZETA"),
            }
        else:
            settings |= {"type": kind, "metavar": {int: "N", float: "X"}.get(kind, "NAME")}
        groups[spec.metadata["model"]].add_argument(flag, **settings)


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The hyper-parameters that the user gave as options."""
    return {
        spec.name: value
        for spec in fields(TrainConfig)
        if (value := getattr(arguments, spec.name, None)) is not None
    }
