"""The benchmarks: all contestants compute one function; results are whole, readable and written safely."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from l0sign_cuda import reference

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are no part of the package

from benchmarks import environment, layer, model, models, problems, report, results, rounds, samples, step
from benchmarks.contestants import CONTESTANTS, PlainOfficial, Task, check_equal
from benchmarks.problems import Problem, Shape

needs_pyg = pytest.mark.skipif(
    importlib.util.find_spec("torch_geometric") is None, reason="needs torch_geometric (extra: bench)"
)
SHAPES = [
    Shape("uniform", "", graphs=3, nodes=4, dim=3, hidden=5, edge_dim=2, edge_hidden=4),
    Shape("ragged", "", graphs=7, nodes=6, dim=3, hidden=5, edge_dim=2, edge_hidden=4, ragged=True),
    Shape("single", "", graphs=2, nodes=1, dim=3, hidden=5, edge_dim=2, edge_hidden=4),
]
COMPILED = ("compile", "repaired")
WAYS = CONTESTANTS | {PlainOfficial.name: PlainOfficial}


def contestant_parameters() -> list[Any]:
    marks = {"official": [needs_pyg]}
    return [pytest.param(name, marks=marks.get(name, ())) for name in WAYS if name not in COMPILED]


def varied(problem: Problem) -> Problem:
    """The problem with edges of which some are closed, some open and some between."""
    edge = list(problem.edge)
    edge[2] = edge[2] * 20
    return replace(problem, edge=tuple(edge), edge_nodes=problem.edge_nodes * 10 - 2)


def definition(problem: Problem, seed: int | None) -> dict[str, Tensor]:
    """The results of a task by l0sign_cuda.reference, in float64."""
    exact = {
        field.name: tuple(t.double() for t in value) if isinstance(value, tuple) else value.double()
        for field in fields(Problem)
        if field.name != "offsets" and (value := getattr(problem, field.name)) is not None
    }
    leaves = [exact["nodes"], exact["edge_nodes"], *exact["message"], *exact["edge"]]
    for leaf in leaves:
        leaf.requires_grad_()
    arguments = (leaves[0], leaves[1], tuple(leaves[2:6]), tuple(leaves[6:]), problem.offsets)
    out = reference.l0_sign(*arguments, seed=seed)
    grads = torch.autograd.grad((out.nodes, out.l0_penalty), leaves, (exact["grad_nodes"], exact["grad_l0"]))
    means = [
        rows.mean(0) for rows in reference.l0_sign(*arguments).nodes.split(problem.offsets.diff().tolist())
    ]
    named = {"nodes": out.nodes, "l0": out.l0_penalty, "prediction": torch.stack(means) @ exact["head"]}
    named |= {"grad nodes": grads[0], "grad edge nodes": grads[1]}
    named |= {f"grad weight {at}": grad for at, grad in enumerate(grads[2:])}
    return {name: value.detach() for name, value in named.items()}


def check(name: str, shape: Shape, seed: int | None) -> None:
    problem = varied(Problem.random(shape))
    actual = Task(WAYS[name](problem.offsets), problem).results(seed)
    expected = definition(problem, seed)
    assert actual.keys() == expected.keys()
    check_equal(actual, expected, name, 1e-5)


@pytest.mark.parametrize("seed", [None, 5], ids=["evaluation", "training"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("name", contestant_parameters())
def test_contestants_compute_the_definition(name: str, shape: Shape, seed: int | None) -> None:
    check(name, shape, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_contestants_compute_the_definition(name: str) -> None:
    torch.compiler.reset()
    check(name, SHAPES[1], seed=5)


def test_problems_have_open_partial_and_closed_gates() -> None:
    problem = varied(Problem.random(SHAPES[1]))
    _, gates, _ = reference.pair_gates(problem.edge_nodes, problem.edge, problem.offsets, seed=5)
    assert (gates == 0).any() and (gates == 1).any() and ((gates > 0) & (gates < 1)).any()


def test_a_contestant_that_computes_something_else_is_refused() -> None:
    expected = {"nodes": torch.ones(4), "l0": torch.ones(2)}
    check_equal({"nodes": torch.ones(4) + 1e-7, "l0": torch.ones(2)}, expected, "eager", 1e-5)
    for wrong in (torch.zeros(2), torch.full((2,), torch.nan)):
        with pytest.raises(ValueError, match="eager computes something else: l0"):
            check_equal({"nodes": torch.ones(4), "l0": wrong}, expected, "eager", 1e-5)


@pytest.mark.parametrize("name", contestant_parameters())
def test_every_mode_runs_with_draws_of_its_own(name: str) -> None:
    problem = Problem.random(SHAPES[1])
    task = Task(WAYS[name](problem.offsets), problem)
    torch.manual_seed(0)
    first, second = task.train(), task.train()
    assert not torch.equal(first[0], second[0])
    assert task.forward()[0].requires_grad
    assert not task.inference().requires_grad
    assert torch.equal(task.inference(), task.inference())


@needs_pyg
def test_models_agree_and_learn() -> None:
    data = samples.frappe_like(40, 5400)
    names = [name for name in models.MODELS if name not in COMPILED]
    made = models.make(names, 10, num_embeddings=5400)
    whole = {name: contestant.collated(data) for name, contestant in made.items()}
    found = {}
    for name, contestant in made.items():
        contestant.model.eval()  # deterministic gates, so that gradients are equal
        logits = contestant.logits(whole[name])
        logits.square().sum().backward()
        gradients = {of: p.grad.to_dense() for of, p in contestant.model.named_parameters()}
        found[name] = {"logits": logits.detach(), **gradients}
        contestant.model.train()
    for name in names[1:]:
        torch.testing.assert_close(found[name], found["fused"])
    l0 = made["fused"].model(whole["fused"].ids).l0_penalty
    torch.testing.assert_close(made["official"].outputs(whole["official"], None)[1], l0)
    torch.testing.assert_close(made["eager"].outputs(whole["eager"].ids, None)[1], l0)
    assert made["fused, row-wise"].model.node_embedding.weight.grad.is_sparse
    for optimizer in models.OPTIMIZERS:
        for contestant in made.values():
            contestant.use_optimizer(optimizer)
            before = copy.deepcopy(contestant.model.state_dict())
            contestant.step(next(contestant.batches(data, 8)))
            after = contestant.model.state_dict()
            assert all(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_edges_stay_open_where_labels_are_chance() -> None:
    data = samples.frappe_like(100 * step.BATCH_SIZE)

    def open_edges(learning_rate: float | None) -> float:
        [model] = models.make(["fused, row-wise"], 10, num_embeddings=data.num_features).values()
        model.use_optimizer("adam", learning_rate)
        batches = model.batches(data, step.BATCH_SIZE)
        for _ in range(100):
            batch = next(batches)
            model.step(batch)
        return float(model.model(batch.ids).num_edges.float().mean())

    assert open_edges(None) < 10, "the premise: to learn from them closes edges"
    assert open_edges(step.LEARNING_RATE_OF_CHANCE) > 45, "of 55; on Frappe they are 54"


@pytest.mark.slow
def test_compiled_models_agree() -> None:
    torch.compiler.reset()
    data = samples.frappe_like(8)
    made = models.make(["fused", *COMPILED], 10, num_embeddings=data.num_features)
    batch = made["fused"].collated(data)
    for contestant in made.values():
        contestant.model.eval()
        torch.testing.assert_close(contestant.predict(batch), made["fused"].predict(batch))


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("features", [samples.FRAPPE_FEATURES, 20_000])
def test_data_like_frappes(features: int, skewed: bool) -> None:
    data = samples.frappe_like(20_000, features, skewed)
    ids = torch.from_numpy(data.ids).view(-1, 10)
    assert (data.graph_size, data.num_features) == (10, features)
    assert (ids.min(0).values[1:] > ids.max(0).values[:-1]).all(), "fields do not overlap"
    assert int(ids.min()) >= 0 and int(ids.max()) < features
    most = ids[:, 1].bincount().max() / len(ids)
    assert (most > 0.05) == skewed


@pytest.mark.parametrize("name", samples.REAL)
def test_real_data(name: str) -> None:
    if not (samples.DATA / samples.REAL[name][1]).exists():
        pytest.skip("the logs are not here (../shared/data)")
    data = samples.real(name)
    assert (len(data), data.num_features, data.graph_size) == {
        "Frappe": (202_026, samples.FRAPPE_FEATURES, 10),
        "MovieLens tags": (200_718, 28_139, 3),
    }[name]


def test_work_of_a_sample_of_frappes_shape() -> None:
    """As counted by hand for d = b = 8, H = He = 32: 624 multiply-adds a pair and 264 a node; in the backward
    1,064 and 520."""
    shape = problems.SHAPES["A"]
    work = problems.gflop(shape, "forward", open_pairs=55 * 1024)
    assert work == pytest.approx(2e-9 * 1024 * (55 * 624 + 10 * 264))
    assert problems.gflop(shape, "inference", 55 * 1024) < work
    backward = 256 + 32 + 64 + 32 + 2 * 256 + 4 * 32 + 5 * 8
    train = problems.gflop(shape, "train", 55 * 1024)
    assert train == pytest.approx(work + 2e-9 * 1024 * (55 * backward + 10 * 520))
    assert problems.gflop(shape, "forward", 0) < work


def test_work_of_a_pooled_sample() -> None:
    """In inference 592 multiply-adds a pair, which is accumulated once, and 264 a graph, which has one second
    layer; in training both networks have one output, and 384 in the backward."""
    shape = problems.SHAPES["A"]
    work = problems.gflop(shape, "inference", 55 * 1024, pooled=True)
    assert work == pytest.approx(2e-9 * 1024 * (55 * 592 + 264))
    both = problems.gflop(shape, "train", 55 * 1024, pooled=True)
    backward = 256 + 32 + 64 + 32
    assert both == pytest.approx(2e-9 * 1024 * 55 * 2 * (296 + backward))


def test_ragged_and_uniform_shapes_have_the_same_pairs() -> None:
    ragged, uniform = problems.SHAPES["R"], problems.ONE_SIZE["R"]
    pairs = problems.count_pairs(ragged.sizes())
    assert problems.count_pairs(uniform.sizes()) == pytest.approx(pairs, rel=0.01)


class TestRounds:
    def test_contestants_take_turns(self) -> None:
        calls: list[str] = []
        budget = rounds.Budget(seconds=60, min_rounds=3, max_rounds=3, sample=0, warmup=0)
        times = rounds.interleave({name: lambda name=name: calls.append(name) for name in "abc"}, budget)
        assert "".join(calls) == "abcbcacab"
        assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}

    def test_a_contestant_leaves_when_its_time_is_spent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seconds = {"slow": 1.0, "fast": 0.25}
        monkeypatch.setattr(rounds, "_time", lambda call, repeats: call() * repeats)
        budget = rounds.Budget(seconds=3.5, min_rounds=2, max_rounds=8, sample=0, warmup=1)
        times = rounds.interleave({name: lambda name=name: seconds[name] for name in seconds}, budget)
        assert {name: len(values) for name, values in times.items()} == {"slow": 4, "fast": 8}

    def test_quick_calls_are_repeated_in_a_sample(self, monkeypatch: pytest.MonkeyPatch) -> None:
        repeats_seen = []

        def time(call: Any, repeats: int) -> float:
            repeats_seen.append(repeats)
            return 0.001 * repeats

        monkeypatch.setattr(rounds, "_time", time)
        budget = rounds.Budget(min_rounds=1, max_rounds=1, sample=0.01, warmup=1)
        assert rounds.interleave({"a": lambda: None}, budget) == {"a": [pytest.approx(0.001)]}
        assert repeats_seen == [1, 10]

    def test_summary_has_the_median_of_the_rounds_ratios(self) -> None:
        found = rounds.summary({"fused": [1.0, 2.0, 4.0], "eager": [10.0, 10.0]})
        assert found["fused"]["median"] == 2000 and found["fused"]["ratio"] == 1
        assert found["eager"]["ratio"] == 7.5  # of 10 and 5
        assert found["eager"]["ms"] == [10000, 10000]

    def test_quantiles(self) -> None:
        assert [rounds.quantile([3, 1, 2], at) for at in (0, 0.25, 0.5, 1)] == [1, 1.5, 2, 3]


def timing(ms: float, ratio: float | None) -> dict[str, Any]:
    return {"ms": [ms, ms], "median": ms, "p10": ms, "p90": ms, "ratio": ratio}


def layer_run(fused: float, *, tuned: bool = False, instruction_set: str = "avx512") -> dict[str, Any]:
    case = {"shape": "A", "mode": "train", "gflop": 0.1, "pairs": 56320}
    measurements = [
        {"case": case, "threads": n, "contestants": {"fused": timing(fused / n, 1.0)}} for n in (1, 2)
    ]
    measurements[0]["contestants"]["eager"] = timing(fused * 8, 8.0)
    variables = environment.TUNED_ALLOCATOR if tuned else {}
    return {
        "allocator": environment.allocator(variables),
        "instruction_set": instruction_set,
        "variables": {"OMP_NUM_THREADS": "2"},
        "peak": {"method": "fma loop", "gflops": {"1": 100.0, "2": 200.0}},
        "load_average": {"before": [0.0, 0.0, 0.0], "after": [1.0, 0.5, 0.1]},
        "measurements": measurements,
    }


def layer_result() -> results.Document:
    runs = [layer_run(4.0), layer_run(2.0, tuned=True), layer_run(8.0, instruction_set="avx2")]
    return results.document("layer", False, {"seconds": 2.0, "out": Path("here")}, runs)


def step_result() -> results.Document:
    run = {key: value for key, value in layer_run(4.0).items() if key != "peak"}
    case = {"part": "epoch", "optimizer": "adam", "features": 5382, "data": "Frappe", "samples": 202_026}
    contestants = {"fused": timing(4.0, 1.0), "official": timing(70.0, 17.5)}
    run["measurements"] = [
        {"case": case | {"steps": 197.3}, "threads": 1, "contestants": contestants},
        *(
            {
                "case": {"part": "vocabulary", "optimizer": "adam", "ids": "skewed", "features": features},
                "threads": 1,
                "contestants": {"fused": timing(ms[0], 1.0) | {"ms": ms}},
            }
            for features, ms in ((5000, [4.0, 8.0, 4.0]), (5_000_000, [5.0, 10.0, 6.0]))
        ),
    ]
    memory = [
        {"contestant": "fused, row-wise", "features": n, "program_bytes": 400 << 20, "peak_bytes": mib << 20}
        for n, mib in ((5000, 500), (5_000_000, 600))
    ]
    return results.document("step", True, {}, [run]) | {"memory": memory}


def model_result() -> results.Document:
    run = layer_run(4.0)
    [train, _] = run["measurements"]
    train["case"]["graphs"] = 1000
    latency = copy.deepcopy(train)
    latency["case"]["mode"] = "latency"
    run["measurements"] = [train, latency]
    return results.document("model", False, {}, [run])


class TestResults:
    def test_written_and_read_back(self, tmp_path: Path) -> None:
        result = layer_result()
        path, table = results.write(result, tmp_path / "new")
        assert path.name.endswith("-layer.json") and results.read(path) == result
        assert table.read_text() == results.table(result)
        assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted([path.name, table.name])
        assert "out" not in result["settings"], "no path of a machine is kept"

    def test_a_table_shows_both_allocators_threads_and_instruction_sets(self) -> None:
        table = results.table(layer_result())
        assert "| A | 4.00 → 2.00 | 25% → 50% | 8.00 → 8.00 / 32.0 → 16.0 |" in table
        assert "| A | train | 2.00 |" in table
        assert "| A | train | 1 | 0.5 |" in table
        assert "one size" not in table
        assert "load average 0.0 before and 1.0 after" in table

    def test_ratios_of_threads_and_of_sizes_are_those_of_rounds(self) -> None:
        run = layer_run(4.0)
        one, two = run["measurements"]
        one["contestants"]["fused"]["ms"] = [4.0, 8.0, 8.0]
        two["contestants"]["fused"]["ms"] = [2.0, 5.0, 5.0]
        one["contestants"][results.ONE_SIZE] = timing(4.0, 1.0) | {"ms": [4.0, 6.4, 6.4]}
        table = results.table(results.document("layer", False, {}, [run]))
        assert "| A | train | 1.60 |" in table
        assert "| A | train | 1 | 1.25 |" in table
        assert "| shape | fused ms | peak | eager |" in table, "one size is no rival"

    def test_tables_of_steps(self) -> None:
        result = step_result()
        results.check(result)
        table = results.table(result)
        assert "| Frappe | 202,026 | adam | 0.79 (17.5) | 13.8 |" in table
        # Of the rounds' ratios 1.25, 1.25 and 1.5.
        assert "| fused | adam | skewed | 4.00 | 5.00 | 1.25 (1.25 to 1.45) |" in table
        assert "| fused, row-wise | 500 (400) | 600 (400) |" in table

    def test_a_table_of_models(self) -> None:
        result = model_result()
        results.check(result)
        table = results.table(result)
        assert "| A | 4.00 | 25% | 8.00 |" in table
        assert "| 1,000 | 4.00 | 25% | 8.00 |" in table

    def test_what_lacks_a_field_is_refused(self, tmp_path: Path) -> None:
        def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
            children = value.items() if isinstance(value, dict) else []
            found = [(*path, key) for key, _ in children]
            items = value[:1] if isinstance(value, list) else []
            for key, child in [*children, *enumerate(items)]:
                found += paths(child, (*path, key))
            return found

        # What a reader can do without: labels, and what names itself by being there.
        optional = {"preload", "numpy", "architecture", "eager", "1", "2", "seconds", "OMP_NUM_THREADS"}
        whole = layer_result()
        checked = 0
        for path in paths(whole):
            if path[-1] in optional:
                continue
            damaged = copy.deepcopy(whole)
            owner = damaged
            for key in path[:-1]:
                owner = owner[key]
            del owner[path[-1]]
            with pytest.raises(ValueError, match=str(path[-1])):
                results.write(damaged, tmp_path)
            checked += 1
        assert checked > 30 and not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("key", "value"), [("runs", []), ("format", "1"), ("quick", 1), ("kind", "other"), ("versions", None)]
    )
    def test_what_has_a_field_of_another_kind_is_refused(self, key: str, value: Any) -> None:
        with pytest.raises(ValueError, match=key):
            results.check({**layer_result(), key: value})

    def test_an_interrupted_writer_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "result.json"
        path.write_text("old")

        def interrupt(descriptor: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(results.os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            results.write_aside(path, "new")
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]

    def test_the_table_of_a_file_is_printed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path, table = results.write(layer_result(), tmp_path)
        results.main([str(path)])
        assert capsys.readouterr().out == table.read_text()


def test_allocators_are_told_apart() -> None:
    tuned = environment.TUNED_ALLOCATOR
    assert environment.allocator({})["name"] == "default"
    assert environment.allocator(tuned)["name"] == "tuned"
    assert environment.allocator({"MALLOC_MMAP_MAX_": "0"})["name"] == "other"
    other = environment.allocator({**tuned, "LD_PRELOAD": "/usr/lib/libjemalloc.so.2"})
    assert other["name"] == "other" and other["preload"] == ["libjemalloc.so.2"]


def test_threads_are_bound_where_there_is_a_core_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(environment, "CORES", [0, 3])
    assert set(environment.bound([1, 2])) == {"OMP_PROC_BIND", "OMP_PLACES"}
    assert not environment.bound([1]) and not environment.bound([1, 4])
    monkeypatch.setenv("GOMP_CPU_AFFINITY", "3 0")
    assert not environment.bound([1, 2])


def test_the_peak_is_that_of_a_processor() -> None:
    peak = environment.peak_gflops([1], quick=True)
    assert 1 < peak["gflops"]["1"] < 10_000


def test_the_layer_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The whole script, its second processes included, on tiny shapes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names = ["fused", "eager"]
    where = ["--allocators", "tuned", "--name", "here", "--out", str(tmp_path)]
    shapes = ["--shapes", "A", "R", "--detail", "A"]
    layer.main(["--quick", *shapes, "--threads", "1", "2", "--contestants", *names, *where])
    result = json.loads((tmp_path / "here.json").read_text())
    results.check(result)
    run, lesser = result["runs"]
    assert run["allocator"]["name"] == "tuned" and lesser["instruction_set"] == "avx2"
    found = {
        (m["case"]["shape"], m["case"]["mode"], m["threads"]): list(m["contestants"])
        for m in run["measurements"]
    }
    expected = {}
    for mode in problems.MODES:
        expected |= {("A", mode, 1): names, ("A", mode, 2): ["fused"]}
        expected["R", mode, 1] = [*names, results.ONE_SIZE]
    assert found == expected
    assert (tmp_path / "here.md").exists()


@pytest.mark.slow
def test_steps_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    step.main(
        ["--quick", "--contestants", "fused", "fused, row-wise", "--name", "here", "--out", str(tmp_path)]
    )
    result = results.read(tmp_path / "here.json")
    parts = [m["case"]["part"] for m in result["runs"][0]["measurements"]]
    assert parts.count("epoch") == 2 and parts.count("vocabulary") == 8
    sizes = [
        m["case"]["features"] for m in result["runs"][0]["measurements"] if m["case"]["part"] == "vocabulary"
    ]
    assert sizes == [samples.FRAPPE_FEATURES, 20_000] * 4
    assert len(result["memory"]) == 4 and all(m["peak_bytes"] > m["program_bytes"] for m in result["memory"])


@pytest.mark.slow
def test_models_are_measured(tmp_path: Path) -> None:
    part = tmp_path / "part.json"
    model.main(["--quick", "--shapes", "B", "--contestants", "fused", "eager", "--part", str(part)])
    found = json.loads(part.read_text())
    assert [m["case"]["mode"] for m in found["measurements"]] == ["train", "inference", "latency", "latency"]


class TestReport:
    @pytest.mark.parametrize("path", report.PAGES, ids=lambda path: path.name)
    def test_the_page_has_the_figures_of_the_kept_results(self, path: Path) -> None:
        page = path.read_text(encoding="utf-8")
        assert page == report.filled(page), "run python -m benchmarks.report"

    def test_marked_places_are_filled_with_the_newest_result(self, tmp_path: Path) -> None:
        page = "before\n<!-- results: model -->\nold\n<!-- end -->\nafter\n"
        assert "not been measured" in report.filled(page, tmp_path)
        results.write(model_result() | {"written": "2026-01-01T00:00:00+00:00"}, tmp_path, "z")
        newest = model_result() | {"written": "2026-01-02T00:00:00+00:00"}
        results.write(newest, tmp_path, "a")
        filled = report.filled(page, tmp_path)
        assert filled.startswith("before\n") and filled.endswith("<!-- end -->\nafter\n")
        assert "old" not in filled and "| A | 4.00 | 25% | 8.00 |" in filled and "a.json" in filled
        assert report.filled(filled, tmp_path) == filled

    def test_a_mark_of_no_kind_is_refused(self) -> None:
        with pytest.raises(ValueError, match="other"):
            report.filled("<!-- results: other -->\n<!-- end -->")


def test_a_contestant_that_fails_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(CONTESTANTS["eager"], "layer", broken)
    with pytest.raises(RuntimeError, match="broken"):
        layer.main(
            ["--quick", "--shapes", "B", "--threads", "1", "--contestants", "fused", "eager", "--part", "x"]
        )
