"""The `l0sign` command."""

from __future__ import annotations

import argparse
import contextlib
import csv
import inspect
import itertools
import os
import platform
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import _checks, data, report, run_report
from . import config as configuration
from ._extras import require
from ._version import __version__
from .checkpoint import (
    STATE_FILE,
    check_target,
    load_config,
    load_model,
    load_vocabulary,
    write_json,
    written_aside,
)
from .collapse import CollapseError, CollapseWarning
from .config import TrainConfig
from .data import GraphDataset, Vocabulary
from .evaluation import Part, Predictions, Samples, evaluate, measure, run
from .memory import peak_memory
from .model import L0SIGN
from .training import FitResult, Progress, fit, holds_run, resolve_device, stored_config, stored_split

_INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended
_CPU_VARIABLE = "L0SIGN_CPU_CAPABILITY"
_COLUMNS = ("epoch", "loss", "auc", "accuracy", "rmse", "logloss", "edges_kept", "samples_per_second")
_SPLIT = (0.7, 0.15, 0.15)
_READ = "read:"  # marks the options that go to the reader
_PARTS = ("train", "valid", "test")
_PIECE = (
    65_536  # samples of a prepared directory that are predicted at a time, as the reader has them of a file
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `l0sign` command: 0 for success, 2 for input that does not fit, 130 after Ctrl-C."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # The doctor has options of its own.
    arguments = argparse.Namespace(debug=False) if argv[:1] == ["doctor"] else _parser().parse_args(argv)
    try:
        if argv[:1] == ["doctor"]:
            from . import doctor

            return doctor.main(argv[1:])
        arguments.command(arguments)
    except KeyboardInterrupt:
        _say("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has had enough; nothing more can be written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, IndexError, OSError, ImportError, RuntimeError) as error:
        # Of the RuntimeErrors, those that the user can mend; others are bugs, and show where they come from.
        known = (_CPU_VARIABLE, "can't allocate memory", "Storage size calculation overflowed")
        mendable = isinstance(error, (NotImplementedError, CollapseError)) or any(
            phrase in str(error) for phrase in known
        )
        if arguments.debug or (isinstance(error, RuntimeError) and not mendable):
            raise
        _say(f"error: {' '.join(str(error).split()) or type(error).__name__}")
        return 2
    return 0


def _say(message: str) -> None:
    print(f"l0sign: {message}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------ options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="l0sign", description="L0-SIGN: detect beneficial feature interactions, and predict from them."
    )
    parser.add_argument("--version", action="version", version=f"l0sign {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    def add(name: str, command: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        # No abbreviations: an option that comes later must not change what an old command line means.
        made = commands.add_parser(
            name, help=help, description=help[0].upper() + help[1:], allow_abbrev=False
        )
        made.add_argument("--debug", action="store_true", help="show the traceback of an error")
        made.set_defaults(command=command)
        return made

    made = add("prepare", _prepare, "turn raw data into a directory that loads at once")
    made.add_argument(
        "source",
        nargs="+",
        metavar="[PROTOCOL] FILE",
        help=f"the file, and before it a protocol if one is wanted: {', '.join(data.PROTOCOLS)}",
    )
    made.add_argument("--out", required=True, metavar="DIR", help="the directory to write")
    made.add_argument(
        "--seed", type=int, default=0, help="seed of a protocol's negative samples (default: 0)"
    )
    _add_reading_options(made)

    made = add("train", _train, "train a model, and measure it on held-out samples")
    made.add_argument("data", metavar="DATA", help="a prepared directory, or a file")
    made.add_argument("--out", required=True, metavar="DIR", help="the directory of the run")
    made.add_argument(
        "--config",
        metavar="FILE",
        help="hyper-parameters from a TOML, YAML or JSON file; options override it",
    )
    made.add_argument("--resume", action="store_true", help="continue the run in DIR, or start it")
    made.add_argument("--overwrite", action="store_true", help="replace a run that is in DIR")
    made.add_argument("--valid", metavar="DATA", help="validation samples; DATA is then not split")
    made.add_argument("--test", metavar="DATA", help="test samples; DATA is then not split")
    default = f"default: {' '.join(map(str, _SPLIT))}"
    _add_split_option(made, f"shares of the three parts ({default})", _SPLIT)
    _add_reading_options(made)
    configuration.add_options(made)

    made = add("evaluate", _evaluate, "measure a trained model on labelled samples")
    made.add_argument("--json", metavar="FILE", help="also write the metrics to this file")
    _add_running_options(made)

    made = add(
        "predict", _predict, "write a model's predictions as CSV, in memory that does not grow with the data"
    )
    made.add_argument("--out", metavar="FILE", help="the file to write (default: standard output)")
    _add_running_options(made)

    made = add("explain", _explain, "show which interactions a trained model keeps, and explain predictions")
    made.add_argument(
        "--samples",
        metavar="FILE",
        help="explain these samples (default: the first of DATA); without --data the tables are about them",
    )
    made.add_argument(
        "--limit", type=int, default=5, metavar="N", help="explain at most N samples (default: 5)"
    )
    made.add_argument(
        "--top", type=int, default=20, metavar="N", help="show at most N pairs in a table (default: 20)"
    )
    made.add_argument(
        "--min-support",
        type=int,
        metavar="N",
        help="leave out pairs of features open in fewer samples (default: a thousandth of the samples)",
    )
    made.add_argument(
        "--output", type=int, default=0, metavar="K", help="the class to explain, of several (default: 0)"
    )
    made.add_argument("--html", metavar="FILE", help="write a report as one HTML page")
    made.add_argument("--json", metavar="FILE", help="write everything as JSON")
    _add_running_options(made, "--data")

    made = add("demo", _demo, "train SIGN and L0-SIGN on planted interactions, and show what they found")
    made.add_argument(
        "--out", default="demo_out", metavar="DIR", help="the directory to write (default: demo_out)"
    )

    commands.add_parser(
        "doctor", help="show versions, the kernels that will run, and what is missing", add_help=False
    )
    return parser


def _add_running_options(parser: argparse.ArgumentParser, data_argument: str = "data") -> None:
    parser.add_argument("run", metavar="RUN", help="the directory of a trained model")
    parser.add_argument(data_argument, metavar="DATA", help="a prepared directory, or a file")
    parser.add_argument(
        "--part",
        choices=_PARTS,
        help="only this part of the split that training made of DATA, which the run remembers",
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, cuda or cuda:N (default: auto)"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="samples in a step (default: as in training)"
    )
    _add_split_option(parser, "the shares for --part, of a model without the record of a run")
    _add_reading_options(parser)


def _add_split_option(
    parser: argparse.ArgumentParser, help: str, default: Sequence[float] | None = None
) -> None:
    parser.add_argument(
        "--split",
        type=float,
        nargs=3,
        default=default,
        metavar=tuple(part.upper() for part in _PARTS),
        help=help,
    )


def _add_reading_options(parser: argparse.ArgumentParser) -> None:
    """How to read a file. Options that are not given leave no trace; the reader has the defaults."""
    group = parser.add_argument_group("reading a file (what was prepared needs none of these)")

    def add(flag: str, help: str, option: str | None = None, **settings: Any) -> None:
        option = option or flag[2:].replace("-", "_")
        group.add_argument(flag, help=help, dest=_READ + option, default=argparse.SUPPRESS, **settings)

    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    add("--format", "format, where the suffix does not tell", choices=data.FORMATS)
    add("--label", "table: the column with the label", metavar="COLUMN")
    add("--categorical", "table: columns whose every value is a feature", type=names, metavar="A,B,...")
    add("--numeric", "table: columns that are one feature with a value", type=names, metavar="A,B,...")
    add("--ignore", "table: columns to leave out", type=names, metavar="A,B,...")
    add("--columns", "table: names of the columns of a file without a header", type=names, metavar="A,B,...")
    add("--separator", "table: what separates columns", metavar="CHAR")
    add("--unlabelled", "libsvm, graph: lines have no label", "labelled", action="store_false")
    add("--duplicates", "libsvm, graph: ids that repeat in a line", choices=("keep", "unique"))
    add("--targets", "labels: binary makes -1 into 0, real keeps them", choices=("auto", "binary", "real"))
    add("--skip-bad-lines", "skip and count malformed lines", action="store_true")


def _reading(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name[len(_READ) :]: value for name, value in vars(arguments).items() if name.startswith(_READ)}


# ----------------------------------------------------------------------------------------------- commands


def _prepare(arguments: argparse.Namespace) -> None:
    *protocol, source = arguments.source
    options = _reading(arguments)
    if not protocol:
        prepared = _read(data.open, source, options)
    elif len(protocol) == 1 and protocol[0] in data.PROTOCOLS:
        known = inspect.signature(data.PROTOCOLS[protocol[0]]).parameters
        for name in options:
            if name not in known:
                raise ValueError(f"{protocol[0]}: the protocol takes no option {name!r}")
        prepared = _read(data.PROTOCOLS[protocol[0]], source, {**options, "seed": arguments.seed})
    else:
        names = ", ".join(data.PROTOCOLS)
        raise ValueError(f"expected FILE, or a protocol ({names}) and FILE; got {' '.join(arguments.source)}")
    prepared.save(arguments.out)
    print(f"{report.printable(str(arguments.out))}: {prepared}")


def _train(arguments: argparse.Namespace) -> None:
    out = Path(arguments.out)
    config = _settings(arguments, out)
    parts = _parts(arguments, config.seed)
    train, valid, test = parts["train"], parts["valid"], parts["test"]
    if train is None:
        raise ValueError(f"{arguments.data}: no training samples")
    out.mkdir(parents=True, exist_ok=True)
    record = _Record(out, config, arguments, parts)
    with _Display() as show:

        def progress(event: Progress) -> None:
            show(event)
            if event.row is not None:
                record.add(event.history)

        # A cluster that wants its machine back sends SIGTERM.
        signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
        try:
            result = fit(
                train,
                valid,
                config,
                out=out,
                resume=arguments.resume,
                overwrite=arguments.overwrite,
                progress=progress,
            )
        except KeyboardInterrupt:
            _say(f"stopped; the same command with --resume continues ({out})")
            raise
    found = {
        name: None
        if samples is None
        else evaluate(result.model, samples, loss=config.loss, batch_size=config.batch_size)
        for name, samples in (("valid", valid), ("test", test))
    }
    record.finish(result, found)
    end = {"epochs": "", "patience": ", stopped early", "collapse": ", stopped by collapse"}[result.stopped]
    print(f"best epoch {result.best_epoch} of {len(result.history)}{end}")
    print(report.table([{"": name, **values} for name, values in found.items() if values is not None]))
    peaks = {"host": "", "device": " of the GPU"}
    for kind, size in peak_memory().items():
        print(f"peak memory{peaks[kind]}: {size / 2**20:,.0f} MiB")
    print(f"{report.printable(str(out))}: the model, metrics.json and metrics.csv")


def _settings(arguments: argparse.Namespace, out: Path) -> TrainConfig:
    """The hyper-parameters: options, over the config file, over those of the run that is resumed."""
    if arguments.resume and arguments.overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    if not (arguments.resume or arguments.overwrite) and holds_run(out):
        raise FileExistsError(f"{out} holds a run: give --resume, --overwrite or another --out")
    stored = stored_config(out) if arguments.resume else None
    if arguments.resume and stored is None:
        _say(f"{out} holds no checkpoint: starting from the beginning")
    given = configuration.given_options(arguments)
    if arguments.config is not None:
        from_file = configuration.read_config_file(arguments.config)
        TrainConfig.from_mapping(from_file, source=arguments.config)  # its errors name the file
        given = {**from_file, **given}
    return (stored or TrainConfig()).replace(**given)


def _parts(arguments: argparse.Namespace, seed: int) -> dict[str, Samples | None]:
    """The samples to train, validate and test with; None for a part without any."""
    options = _reading(arguments)
    whole = _read(data.open, arguments.data, options)
    if whole.labels is None:
        raise ValueError(f"{arguments.data}: no labels; for a table, --label names their column")
    if arguments.valid is None and arguments.test is None:
        split = whole.split(arguments.split, seed)
        return {name: (whole, part) if len(part) else None for name, part in zip(_PARTS, split, strict=True)}
    parts: dict[str, Samples | None] = {"train": whole if len(whole) else None, "valid": None, "test": None}
    known = whole.vocabulary, whole.num_features
    for name in ("valid", "test"):
        path = getattr(arguments, name)
        if path is not None:
            parts[name] = held = _read(data.open, path, {**options, **_encoding(*known)})
            _check_known(held, *known, path)
    return parts


class _Record:
    """metrics.json and metrics.csv of a run, complete after every epoch."""

    def __init__(
        self,
        out: Path,
        config: TrainConfig,
        arguments: argparse.Namespace,
        parts: Mapping[str, Samples | None],
    ) -> None:
        from . import doctor

        facts = doctor.report()
        self._out = out
        self._content: dict[str, Any] = {
            "test": None,
            "valid": None,
            "best_epoch": None,
            "stopped": None,
            "collapse": None,
            "peak_memory_bytes": {},
            "epochs": [],
            "settings": config.to_dict(),
            "data": {
                "paths": [
                    path for path in (arguments.data, arguments.valid, arguments.test) if path is not None
                ],
                "split": None if arguments.valid or arguments.test else list(arguments.split),
                "samples": {name: 0 if part is None else len(Part(part)) for name, part in parts.items()},
            },
            "versions": facts["versions"],
            "machine": {
                "system": platform.platform(),
                "cores": os.cpu_count(),
                "cpu": facts["cpu"],
                "gpu": facts["gpu"],
            },
        }

    def add(self, history: Sequence[Mapping[str, float]]) -> None:
        """The epochs so far."""
        self._content["epochs"] = list(history)
        report.write_csv(self._out / "metrics.csv", history)
        write_json(self._out / "metrics.json", self._content)

    def finish(self, result: FitResult, found: Mapping[str, Mapping[str, float] | None]) -> None:
        """The metrics of the best model."""
        self._content |= {
            "best_epoch": result.best_epoch,
            "stopped": result.stopped,
            "collapse": result.collapse,
            "peak_memory_bytes": peak_memory(),
        }
        self._content |= found
        self.add(result.history)


class _Display:
    """Shows training: a row an epoch, and on a terminal a bar for the epoch that is under way."""

    def __init__(self) -> None:
        self._widths: dict[str, int] = {}
        self._bar: Any = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> _Display:
        self._open.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", CollapseWarning)  # it is among what is shown
        if sys.stdout.isatty():
            rich = require("rich.progress", "train")
            bar = rich.Progress(
                rich.TextColumn("epoch {task.fields[epoch]}"),
                rich.BarColumn(),
                rich.MofNCompleteColumn(),
                rich.TimeRemainingColumn(),
                transient=True,
            )
            self._bar = self._open.enter_context(bar)
            self._task = self._bar.add_task("", epoch="")
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    def line(self, text: str) -> None:
        """Show a line of text."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def __call__(self, event: Progress) -> None:
        """Show where training stands."""
        if self._bar is not None:
            place = f"{event.epoch}/{event.epochs}"
            self._bar.update(self._task, completed=event.step, total=event.steps, epoch=place)
        if event.row is not None:
            cells = {name: report.cell(name, event.row[name]) for name in _COLUMNS if name in event.row}
            if not self._widths:
                self._widths = {
                    name: max(len(report.title(name)), len(text) + 1) for name, text in cells.items()
                }
                self.line("  ".join(report.title(name).rjust(width) for name, width in self._widths.items()))
            self.line("  ".join(cells[name].rjust(width) for name, width in self._widths.items()))
        if event.message is not None:
            self.line(f"warning: {event.message}")


def _evaluate(arguments: argparse.Namespace) -> None:
    model, config = _load(arguments)
    batch_size = _batch_size(arguments, config)
    chunks, found = [], []
    for part in _stream(arguments, model, config):
        found.append(run(model, part, batch_size))
        chunks.append(torch.from_numpy(part.labels()))
    if not chunks:
        raise ValueError(f"{arguments.data}: there are no samples")
    metrics = measure(Predictions.join(found), torch.cat(chunks), config.loss)
    print(report.table([{"samples": sum(map(len, chunks)), **metrics}]))
    if arguments.json is not None:
        write_json(arguments.json, metrics)


def _predict(arguments: argparse.Namespace) -> None:
    model, config = _load(arguments)
    batch_size = _batch_size(arguments, config)
    parts = _stream(arguments, model, config)
    first = list(itertools.islice(parts, 1))  # what is wrong with the data comes before any output
    with _output(arguments.out) as file:
        writer = csv.writer(file, lineterminator="\n")
        outputs = model.head.out_features
        writer.writerow(
            {"bce": ["probability"], "mse": ["value"]}.get(config.loss)
            or ["class", *(f"probability_{k}" for k in range(outputs))]
        )
        for part in itertools.chain(first, parts):
            logits = run(model, part, batch_size).logits.double()
            if config.loss == "mse":
                rows = logits[:, None].tolist()
            elif config.loss == "bce":
                rows = torch.sigmoid(logits)[:, None].tolist()
            else:
                rows = [
                    [max(range(outputs), key=row.__getitem__), *row]
                    for row in torch.softmax(logits, 1).tolist()
                ]
            writer.writerows([[f"{x:.9g}" if isinstance(x, float) else x for x in row] for row in rows])


def _explain(arguments: argparse.Namespace) -> None:
    from . import html_report
    from .explanation import explain
    from .interactions import Survey, by_sign

    limit, top = _checks.positive(limit=arguments.limit, top=arguments.top)
    if arguments.data is None and arguments.samples is None:
        raise ValueError("expected --data DATA, --samples FILE, or both")
    if arguments.data is None and arguments.part is not None:
        raise ValueError("--part: it is a part of DATA, which is missing")
    for target in (arguments.json, arguments.html):
        if target is not None:
            check_target(target)
    model, config = _load(arguments)
    device, batch_size = model.head.weight.device, _batch_size(arguments, config)
    # Where nothing has a name, features are numbers of one field.
    vocabulary = load_vocabulary(arguments.run) or Vocabulary.from_ids(
        np.arange(model.node_embedding.num_embeddings)
    )
    survey = Survey(model, vocabulary, output=arguments.output)
    explained: list[run_report.Sample] = []

    def count(part: Part) -> None:
        survey.add((part.data, part.indices), batch_size=batch_size)

    def show(part: Part) -> None:
        """Explain its first samples, as far as there is room."""
        batch = part.data.batch(part.indices[: limit - len(explained)])
        entries = explain(model, *batch.to(device)[:3], vocabulary=vocabulary, output=arguments.output)
        labels = [None] * len(entries) if batch.labels is None else batch.labels.tolist()
        explained.extend(map(run_report.Sample, entries, labels))

    if arguments.data is not None:
        for part in _stream(arguments, model, config):
            count(part)
            if arguments.samples is None:
                show(part)
    if arguments.samples is not None:
        samples = argparse.Namespace(**vars(arguments) | {"data": arguments.samples, "part": None})
        for part in _stream(samples, model, config):
            show(part)
            if arguments.data is None:
                count(part)
            elif len(explained) == limit:
                break
    if not survey.samples:
        raise ValueError(f"{arguments.data or arguments.samples}: there are no samples")
    min_support = arguments.min_support
    if min_support is None:
        min_support = max(1, survey.samples // 1000)
    fields = sorted(survey.fields(), key=lambda pair: -pair.mean_strength)
    positive_fields, negative_fields = by_sign(fields, top)
    positive, negative = survey.features(top, min_support=min_support)
    content = run_report.RunReport(
        name=_file_name(arguments.run),
        config=config,
        hyperparameters=model.hyperparameters,
        record=run_report.read_record(arguments.run),
        output=arguments.output,
        data=_file_name(arguments.data or arguments.samples),
        part=arguments.part,
        samples=survey.samples,
        min_support=min_support,
        field_names=vocabulary.field_names,
        fields=fields,
        positive_fields=positive_fields,
        negative_fields=negative_fields,
        positive=positive,
        negative=negative,
        explained=explained,
        explained_data=None if arguments.samples is None else _file_name(arguments.samples),
    )
    if arguments.json is not None:
        write_json(arguments.json, content.to_json())
    if arguments.html is not None:
        html_report.write_html(content, arguments.html)
    print(content.text(top))
    if arguments.html is not None:
        print(f"\n{report.printable(arguments.html)}: the report; it opens in any browser")


def _file_name(path: str) -> str:
    """The name alone: where it lies is no one else's business."""
    return Path(path).resolve().name


def _demo(arguments: argparse.Namespace) -> None:
    from . import demo

    with _Display() as show:

        def progress(name: str, event: Progress) -> None:
            if event.epoch == event.step == 1 and event.row is None:
                show.line(f"{name}:")
            show(event)

        text = demo.run(arguments.out, progress)
    print(text)


# ------------------------------------------------------------------------------------------------ reading


def _read(reader: Callable[..., GraphDataset], path: str, options: Mapping[str, Any]) -> GraphDataset:
    """Read a file, or a prepared directory, which needs no options; tell what was left out."""
    found = reader(path, **({} if Path(path).is_dir() else options))
    _tell_report(found)
    return found


def _tell_report(dataset: GraphDataset) -> None:
    found = dataset.report
    if found.bad_lines or found.unseen:
        counts = [(found.bad_lines, "bad lines skipped"), (found.unseen, "unknown values left out")]
        _say(", ".join(f"{count} {what}" for count, what in counts if count) + "; for example:")
        for message in found.examples:
            _say(f"  {message}")


def _load(arguments: argparse.Namespace) -> tuple[L0SIGN, TrainConfig]:
    model = load_model(arguments.run, resolve_device(arguments.device))
    # A model that `save_model` wrote without its settings: the number of outputs tells what it predicts.
    config = load_config(arguments.run) or TrainConfig(
        loss="bce" if model.head.out_features == 1 else "cross_entropy"
    )
    return model, config


def _batch_size(arguments: argparse.Namespace, config: TrainConfig) -> int:
    if arguments.batch_size is None:
        return config.batch_size
    (size,) = _checks.positive(batch_size=arguments.batch_size)
    return size


def _stream(arguments: argparse.Namespace, model: L0SIGN, config: TrainConfig) -> Iterator[Part]:
    """The samples, in pieces that fit in memory, encoded as the model knows them."""
    known = load_vocabulary(arguments.run), model.node_embedding.num_embeddings
    options = _reading(arguments) | _encoding(*known)
    path = arguments.data
    if arguments.part is not None or Path(path).is_dir():
        whole = _read(data.open, path, options)
        _check_known(whole, *known, path)
        chosen = None
        if arguments.part is not None:
            chosen = _split(arguments, whole, config.seed)[_PARTS.index(arguments.part)]
        total = len(whole) if chosen is None else len(chosen)
        for start in range(0, total, _PIECE):
            stop = min(start + _PIECE, total)
            yield Part((whole, np.arange(start, stop) if chosen is None else chosen[start:stop]))
        return
    chunk = None
    for chunk in data.read_chunks(path, **options):
        yield Part(chunk)
    if chunk is not None:
        _tell_report(chunk)


def _split(arguments: argparse.Namespace, whole: GraphDataset, seed: int) -> tuple[NDArray[np.int64], ...]:
    """The parts that training made of DATA: another split would put samples it learned from among others."""
    given = None if arguments.split is None else whole.split(arguments.split, seed)
    made = stored_split(arguments.run, whole)
    if made is None:
        made = run_report.recorded_split(arguments.run, whole, seed)
    if made is None:
        if given is None:
            raise ValueError(
                f"--part: {arguments.run} has no record of its split ({STATE_FILE} or metrics.json): give the"
                " shares with --split"
            )
        return given
    if given is not None and [*map(len, given)] != [*map(len, made)]:
        sizes = [" / ".join(str(len(part)) for part in parts) for parts in (made, given)]
        raise ValueError(f"--split: expected none, or that of the run, {sizes[0]} samples; got {sizes[1]}")
    return made


def _encoding(vocabulary: Vocabulary | None, num_features: int) -> dict[str, Any]:
    """Options for reading a file with ids that are fixed already; values without one are dropped."""
    return (
        {"num_features": num_features} if vocabulary is None else {"vocabulary": vocabulary, "unseen": "drop"}
    )


def _check_known(dataset: GraphDataset, vocabulary: Vocabulary | None, num_features: int, path: str) -> None:
    """A prepared directory has its ids already: they must be those of the model."""
    if vocabulary is not None and dataset.vocabulary is not None and dataset.vocabulary != vocabulary:
        raise ValueError(
            f"{path}: it was prepared with another vocabulary than the model's; give the raw file"
        )
    if dataset.num_features > num_features:
        raise ValueError(
            f"{path}: it has {dataset.num_features} features, but the model knows {num_features}"
        )


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[IO[str]]:
    if path is None or path == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    with written_aside(path) as aside, open(aside, "w", encoding="utf-8", newline="") as file:
        yield file
