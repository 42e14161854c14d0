"""The rows a batch touches: their gradients, updates of them, and the lookup that makes sparse gradients."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck

from l0sign_cuda import _extension, rows

OPS = torch.ops.l0sign_cuda
SHAPES = [(0, 5), (1, 1), (7, 3), (1000, 5382), (1000, 4), (3000, 2**40)]  # (N, J)


def make(count, num_rows, dtype=torch.float64, device="cpu", d=4, b=3):
    """ids [N], and gradients [N, d] and [N, b]."""
    random = torch.Generator().manual_seed(count)
    ids = torch.randint(num_rows, (count,), generator=random)
    ids[::2] %= 3  # some rows many times
    ids %= num_rows
    grads = [torch.randn(count, width, generator=random, dtype=torch.float64) for width in (d, b)]
    return ids.to(device), *(grad.to(device, dtype) for grad in grads)


def make_tables(num_rows, number, dtype=torch.float64, device="cpu", width=4):
    random = torch.Generator().manual_seed(number)
    tables = [torch.rand(num_rows, width, generator=random, dtype=torch.float64) for _ in range(number)]
    return [table.to(device, dtype) for table in tables]


ADAGRAD = {"lr": 0.1, "lr_decay": 0.0, "weight_decay": 0.01, "eps": 1e-10}
ADAM = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.01, "eps": 1e-8}
# Some rows never touched before, some a step ago, some longer.
ROW_STEP = torch.tensor([0, 11, 4, 1, 9, 0, 10, 2] * 5, dtype=torch.int32)
UPDATES = [(rows.row_adagrad_, 2, ADAGRAD), (rows.row_adam_, 3, ADAM)]


def apply(update, tables, row_step, touched, grad, **options):
    """The twelfth step of one parameter: its tables and row_step change."""
    lists = [[table] for table in tables]
    touched = [] if touched is None else [touched]
    update(*lists, [torch.tensor(11)], [row_step], touched, [grad], **options)


def without_binary(monkeypatch):
    monkeypatch.setattr(_extension, "is_available", lambda: False)


@pytest.mark.parametrize(("count", "num_rows"), SHAPES)
def test_embedding_rows(count, num_rows, device):
    ids, node, edge = make(count, num_rows, device=device)
    found, node_rows, edge_rows = rows.embedding_rows(ids, node, edge, num_rows)
    expected, place = torch.unique(ids, return_inverse=True)
    assert torch.equal(found, expected)
    for sums, grad in ((node_rows, node), (edge_rows, edge)):
        torch.testing.assert_close(
            sums, grad.new_zeros(len(expected), grad.shape[1]).index_add(0, place, grad)
        )
    assert rows.embedding_rows(ids, node, None, num_rows)[2].shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("count", "num_rows"), SHAPES)
def test_the_operator_is_its_definition(count, num_rows, dtype, device, monkeypatch):
    """Both add one gradient after another: bit for bit, but for CUDA kernels, which do so in parts."""
    args = make(count, num_rows, dtype, device)
    found = rows.embedding_rows(*args, num_rows)
    without_binary(monkeypatch)
    expected = rows.embedding_rows(*args, num_rows)
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == wanted.dtype
        if actual.is_cpu or not actual.is_floating_point():
            assert torch.equal(actual, wanted)
        else:
            rtol = max(torch.finfo(dtype).eps, 1e-5 if dtype != torch.float64 else 1e-13)
            torch.testing.assert_close(actual, wanted, rtol=rtol, atol=100 * rtol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize(("update", "number", "options"), UPDATES)
def test_updates(update, number, options, counted, dtype, device, monkeypatch):
    num_rows = len(ROW_STEP)
    steps = [ROW_STEP.clone().to(device) if counted else None for _ in range(2)]
    tables = make_tables(num_rows, number, dtype, device)
    before = [table.clone() for table in tables]
    again = [table.clone() for table in tables]
    ids, grad, _ = make(30, num_rows, dtype, device)
    touched, sums, _ = rows.embedding_rows(ids, grad, None, num_rows)
    apply(update, tables, steps[0], touched, sums, **options)
    without_binary(monkeypatch)
    apply(update, again, steps[1], touched, sums, **options)
    rest = torch.ones(num_rows, dtype=torch.bool, device=device)
    rest[touched] = False
    assert 0 < rest.sum() < num_rows
    for table, other, old in zip(tables, again, before, strict=True):
        tolerance = 1e-6 if dtype == torch.float32 else 1e-14
        # CUDA kernels fuse multiply-adds: what nearly cancels keeps other digits.
        torch.testing.assert_close(
            table, other, rtol=tolerance, atol=tolerance if device.type == "cuda" else 0
        )
        assert torch.equal(table[rest], old[rest])
        assert not (table[~rest] == old[~rest]).any()
    if counted:
        expected = ROW_STEP.to(device).clone()
        expected[touched] = 12
        assert torch.equal(steps[0], expected) and torch.equal(steps[1], expected)


@pytest.mark.parametrize(("update", "number", "options"), UPDATES)
def test_missed_weight_decay(update, number, options, device):
    """Without a gradient, with the sums of squares as they are: the numbers of the formula."""
    tables = make_tables(8, number, device=device)
    param, square, row_step = tables[0].clone(), tables[-1].clone(), ROW_STEP[:8].clone().to(device)
    touched, lr = torch.arange(8, device=device), options["lr"]
    missed = torch.tensor([0, 0, 7, 10, 2, 0, 1, 9], device=device).unsqueeze(1)
    spread = square.sqrt() / (1 if number == 2 else (1 - 0.99**12) ** 0.5) + options["eps"]
    decayed = param / (1 + missed.double() * lr * options["weight_decay"] / spread)
    apply(update, tables, row_step, touched, torch.zeros_like(param), **options)
    # What was missed, and then an ordinary step from there.
    again = [decayed, *make_tables(8, number, device=device)[1:]]
    apply(update, again, None, touched, torch.zeros_like(param), **options)
    for table, other in zip(tables, again, strict=True):
        torch.testing.assert_close(table, other, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("update", "number", "options"), UPDATES)
def test_updates_in_other_memory_formats_and_types(update, number, options):
    """Tables that the operator does not take: of half precision, and with other strides."""
    touched, grad = torch.tensor([1, 5]), torch.randn(2, 4, dtype=torch.float64)
    expected = make_tables(8, number)
    turned = [table.t().contiguous().t() for table in expected]
    half = [table.to(torch.bfloat16) for table in expected]
    for tables in (expected, turned, half):
        apply(update, tables, ROW_STEP[:8].clone(), touched, grad.to(tables[0].dtype), **options)
    for table, other, low in zip(expected, turned, half, strict=True):
        torch.testing.assert_close(other, table, rtol=1e-14, atol=0)
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.double(), table, rtol=0.03, atol=0.03)


def test_results_do_not_depend_on_threads():
    ids, node, edge = make(5000, 3000, torch.float32, d=32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found = rows.embedding_rows(ids, node, edge, 3000)
            tables = make_tables(3000, 3, torch.float32, width=32)
            apply(rows.row_adam_, tables, torch.ones(3000, dtype=torch.int32), *found[:2], **ADAM)
            results.append([*found, *tables])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
def test_ids_out_of_range(wrong):
    with pytest.raises(RuntimeError, match=rf"ids: expected values in 0\.\.4, got {wrong}"):
        rows.embedding_rows(torch.tensor([0, wrong, 4]), torch.ones(3, 2), None, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.tensor([3, 3])}, "rows: expected ascending values in 0..7, each once"),
        ({"rows": torch.tensor([3, 2])}, "rows: expected ascending values"),
        ({"rows": torch.tensor([-1, 2])}, "rows: expected ascending values"),
        ({"rows": torch.tensor([3, 8])}, "rows: expected ascending values"),
        ({"rows": torch.tensor([3])}, r"grad: expected shape \[1, 4\], got \[2, 4\]"),
        ({"grad": torch.ones(2, 3)}, r"grad: expected shape \[2, 4\], got \[2, 3\]"),
        ({"grad": torch.ones(2, 4).double()}, "grad: unexpected dtype"),
        ({"state_sum": torch.ones(7, 4)}, r"state: expected shape \[8, 4\], got \[7, 4\]"),
        ({"state_sum": torch.ones(8, 4).double()}, "state: unexpected dtype"),
        ({"state_sum": torch.ones(4, 8).t()}, "state: expected a contiguous tensor"),
        ({"rows": None}, r"grad: expected shape \[8, 4\], got \[2, 4\]"),
        ({"rows": torch.tensor([1, 2], dtype=torch.int32)}, "rows: unexpected dtype"),
        ({"row_step": torch.zeros(7, dtype=torch.int32)}, r"row_step: expected shape \[8\], got \[7\]"),
        ({"row_step": torch.zeros(8)}, "row_step: unexpected dtype"),
    ],
)
def test_updates_refuse_what_does_not_fit(change, message):
    args = {"param": torch.ones(8, 4), "state_sum": torch.ones(8, 4), "row_step": None}
    args |= {"rows": torch.tensor([1, 2]), "grad": torch.ones(2, 4), **change}
    param, state_sum, row_step, touched, grad = args.values()
    first, dense = torch.ones(8, 4), touched is None
    lists = [[first, param], [torch.ones(8, 4), state_sum], [torch.tensor(0), torch.tensor(3)]]
    lists += [[None, row_step], [torch.tensor([1]), *([] if dense else [touched])]]
    with pytest.raises(RuntimeError, match=message):
        rows.row_adagrad_(*lists, [torch.ones(1, 4), grad], **ADAGRAD)
    for table in (first, param):
        assert torch.equal(table, torch.ones(8, 4))
    assert [int(step) for step in lists[2]] == [0, 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
def test_operators_refuse_tensors_on_other_devices():
    ids, grads = torch.tensor([2, 2], device="cuda"), torch.ones(2, 4, device="cuda")
    with pytest.raises(
        RuntimeError, match="grad_edge: expected a tensor on the device of ids, cuda:0, got one on cpu"
    ):
        rows.embedding_rows(ids, grads, grads.cpu(), 8)
    lists = [[torch.ones(8, 4, device="cuda")], [torch.ones(8, 4)], [torch.tensor(0)], [None]]
    with pytest.raises(RuntimeError, match="state: expected a tensor on the device of its parameter, cuda:0"):
        rows.row_adagrad_(*lists, [ids[:1]], [grads[:1]], **ADAGRAD)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("update", "number", "options"), UPDATES)
def test_counters_of_many_rows_after_a_dense_step(update, number, options, decay, monkeypatch):
    """Threads share them."""
    found = []
    for binary in (True, False):
        tables, row_step = [torch.ones(200_000, 1) for _ in range(number)], ROW_STEP.repeat(5_000)
        if not binary:
            without_binary(monkeypatch)
        apply(update, tables, row_step, None, torch.ones(200_000, 1), **{**options, "weight_decay": decay})
        found.append(row_step)
    assert torch.equal(*found)
    assert found[0][:3].tolist() == [12 if decay else 0, 12, 12]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("update", "number", "options"), UPDATES)
def test_a_group_is_its_parameters(update, number, options, dtype, decay, device, monkeypatch):
    """Tables and dense parameters of any shape in one call; kernel, definition and one after another."""
    options = options | {"weight_decay": decay, "lr": 0.3}
    shapes = [(40, 4), (12, 2, 3), (7,), (), (0, 3), (5, 1)]
    ids, grad, _ = make(30, 40, dtype, device)
    touched, sums, _ = rows.embedding_rows(ids, grad, None, 40)
    second = torch.tensor([0, 5, 11], device=device)
    grads = [sums, torch.rand(3, 6, dtype=dtype, device=device)]
    grads += [torch.rand(shape, dtype=dtype, device=device) for shape in shapes[2:]]
    row_steps = [ROW_STEP.clone().to(device), None]
    row_steps += [torch.tensor([0, 3, 9, 1, 0, 2, 4], dtype=torch.int32, device=device)]
    row_steps += [torch.tensor(2, dtype=torch.int32), None, torch.tensor(0, dtype=torch.int32)]
    tables = [[torch.rand(shape, dtype=dtype, device=device) for shape in shapes] for _ in range(number)]

    def finish(*parts):
        found = [[None if t is None else t.clone() for t in group] for group in (*tables, row_steps)]
        steps = [torch.tensor(11 + k) for k in range(len(shapes))]
        for part in parts:
            lists = [[group[k] for k in part] for group in (*found[:-1], steps, found[-1])]
            touched_rows = [[touched, second][k] for k in part if k < 2]
            update(*lists, touched_rows, [grads[k] for k in part], **options)
        return [*(t for group in found for t in group if t is not None), *steps]

    together, apart = finish(range(6)), finish(*([k] for k in range(6)))
    assert all(map(torch.equal, together, apart))
    assert [int(step) for step in together[-6:]] == list(range(12, 18))
    without_binary(monkeypatch)
    for table, other in zip(together, finish(range(6)), strict=True):
        torch.testing.assert_close(table, other, rtol=1e-5 if dtype == torch.float32 else 1e-13, atol=0)


def test_opcheck():
    ids, node, edge = make(20, 30, torch.float32)
    tables, grad = make_tables(30, 3, torch.float32), torch.ones(2, 4)
    touched, lists = torch.tensor([1, 5]), [[table] for table in tables]
    count, row_step = torch.tensor(11), ROW_STEP[:30].clone()
    uncounted = torch.empty(0, dtype=torch.int32)
    for name, args in (
        ("embedding_rows", (ids, node, edge, 30)),
        ("embedding_rows", (ids, node.bfloat16(), None, 30)),
        ("row_adagrad_", (*lists[:2], [count], [uncounted], [touched], [grad], 0.1, 0.0, 0.0, 1e-8)),
        ("row_adam_", (*lists, [count], [uncounted], [touched], [grad], 0.1, 0.9, 0.99, 0.0, 1e-8)),
        ("row_adam_", (*lists, [count], [row_step], [touched], [grad], 0.1, 0.9, 0.99, 0.1, 1e-8)),
        ("row_adam_", (*lists, [count], [row_step], [], [tables[0]], 0.1, 0.9, 0.99, 0.1, 1e-8)),
    ):
        torch.library.opcheck(getattr(OPS, name).default, args)


def test_updates_are_seen_by_autograd():
    """What autograd saved before an update in place cannot be used after it."""
    table = torch.ones(4, 2, requires_grad=True)
    loss = (table * table).sum()
    with torch.no_grad():
        state, gradient = torch.zeros(4, 2), torch.ones(1, 2)
        tables = [table.detach(), state]
        apply(rows.row_adagrad_, tables, None, torch.tensor([1]), gradient, **ADAGRAD)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# -------------------- the lookup


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("shape", [(6, 5), (30,), (0, 5)])
def test_lookup_is_an_embedding(shape, needed, device):
    ids = make(30, 12)[0].to(device)[: torch.Size(shape).numel()].reshape(shape)
    sparse, dense = (
        [t.requires_grad_(n) for t, n in zip(make_tables(12, 2, device=device), needed, strict=True)]
        for _ in range(2)
    )
    found = rows.lookup(ids, *sparse, sparse=True)
    expected = [torch.nn.functional.embedding(ids, table) for table in dense]
    weights = [torch.randn_like(value) for value in expected]
    for values, tables in ((found, sparse), (expected, dense)):
        sum((value * weight).sum() for value, weight in zip(values, weights, strict=True)).backward()
        assert [table.grad is not None for table in tables] == list(needed)
    for value, wanted, table, other in zip(found, expected, sparse, dense, strict=True):
        assert torch.equal(value, wanted)
        if table.grad is not None:
            assert table.grad.is_sparse and table.grad.is_coalesced()
            assert torch.equal(table.grad._indices()[0], ids.unique())
            torch.testing.assert_close(table.grad.to_dense(), other.grad)


def test_lookup_of_one_table_and_accumulation():
    table, ids = torch.randn(9, 2, dtype=torch.float64, requires_grad=True), torch.tensor([[1, 7], [7, 3]])
    for _ in range(2):
        (found,) = rows.lookup(ids, table, sparse=True)
        (found * found).sum().backward()
    expected = torch.zeros(9, 2, dtype=torch.float64)
    expected[[1, 3, 7]] = 4 * table.detach()[[1, 3, 7]] * torch.tensor([[1], [1], [2]])
    torch.testing.assert_close(table.grad.to_dense(), expected)


class _DenseGradient(torch.autograd.Function):
    """Leaves a tensor as it is, and makes its gradient dense, as gradcheck wants it."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.to_dense()


def test_lookup_gradcheck():
    ids = torch.tensor([[1, 4], [4, 0]])
    tables = [table.requires_grad_() for table in make_tables(5, 2, width=2)]

    def product(*tables):
        node, edge = rows.lookup(ids, *map(_DenseGradient.apply, tables), sparse=True)
        return (node * edge).sin()

    assert gradcheck(product, tables)


def test_lookup_has_no_second_derivative():
    table = torch.ones(3, 2, requires_grad=True)
    (found,) = rows.lookup(torch.tensor([1]), table, sparse=True)
    (gradient,) = torch.autograd.grad(found.square().sum(), table, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.to_dense().sum().backward()


@pytest.mark.parametrize("eps", [0.0, 1e-10])
@pytest.mark.parametrize(("update", "number", "options"), UPDATES)
def test_rows_without_state_and_eps(update, number, options, eps, monkeypatch):
    """Nothing was missed, so nothing is divided by the root of sums that are 0; the first row begins here."""
    options = options | {"eps": eps}
    touched, grad = torch.tensor([0, 1, 2]), torch.randn(3, 4)
    param, row_step = torch.rand(8, 4), ROW_STEP[:8].clone()
    results = []
    for _ in range(2):
        tables = [param.clone(), *(torch.zeros(8, 4) for _ in range(number - 1))]
        tables[-1][2] = 0.5  # has missed steps
        apply(update, tables, row_step.clone(), touched, grad, **options)
        results.append(tables)
        without_binary(monkeypatch)
    for table, other in zip(*results, strict=True):
        assert table.isfinite().all()
        torch.testing.assert_close(table, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("update", "number", "options"), UPDATES)
def test_a_float16_table_is_updated_in_float32(update, number, options):
    """There an eps of 1e-10 is 0, and a gradient of 1e-3 has a square that is nearly none."""
    touched, grad = torch.tensor([0, 2, 5]), torch.randn(3, 4).half()
    low = [torch.rand(8, 4).half(), *(torch.zeros(8, 4).half() for _ in range(number - 1))]
    low[-1][2] = 0.5
    grad[0] = 1e-3
    full = [table.float() for table in low]
    apply(update, low, ROW_STEP[:8].clone(), touched, grad, **options)
    apply(update, full, ROW_STEP[:8].clone(), touched, grad.float(), **options)
    for table, wanted in zip(low, full, strict=True):
        assert table.dtype == torch.float16
        torch.testing.assert_close(table.float(), wanted, rtol=1e-3, atol=1e-7)


def test_lookup_of_a_single_id():
    table, other = (torch.randn(8, width, dtype=torch.float64, requires_grad=True) for width in (4, 3))
    found = rows.lookup(torch.tensor(5), table, other, sparse=True)
    assert [rows.shape for rows in found] == [(4,), (3,)]
    (found[0].sum() + 2 * found[1].sum()).backward()
    for grad, value in ((table.grad, 1.0), (other.grad, 2.0)):
        expected = torch.zeros(8, grad.shape[1], dtype=torch.float64)
        expected[5] = value
        assert grad.is_sparse and torch.equal(grad.to_dense(), expected)


def huge_kilobytes(table):
    """How much of the mapping that the middle of a table lies in has large pages."""
    inside, middle = False, table.data_ptr() + table.numel() * table.element_size() // 2
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            begin, end = (int(bound, 16) for bound in bounds.groups())
            inside = begin <= middle < end
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1])
    return 0


def watch_large_pages(monkeypatch):
    """A list of all (begin, end, whether Linux gave them) from now on."""
    asked, ask = [], rows._ask_for_large_pages

    def watched(begin, end):
        asked.append((begin, end, ask(begin, end)))

    monkeypatch.setattr(rows, "_ask_for_large_pages", watched)
    return asked


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage/enabled").is_file(), reason="no such pages")
def test_a_copied_table_gets_large_pages(monkeypatch):
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("they are switched off")
    if tuple(map(int, platform.release().split(".")[:2])) < (6, 1):
        pytest.skip("memory in use gets them from Linux 6.1 on")
    table = torch.rand(1 << 20, 8).clone()
    values = table[::1000].clone()
    asked = watch_large_pages(monkeypatch)
    rows.large_pages(table)
    ((begin, end, given),) = asked
    assert begin % (2 << 20) == end % (2 << 20) == 0
    assert table.data_ptr() <= begin < end <= table.data_ptr() + 4 * table.numel()
    assert torch.equal(table[::1000], values)
    if not given:
        pytest.skip("this system refuses the advice")
    assert huge_kilobytes(table) > 0


def test_shared_memory_keeps_its_pages(monkeypatch):
    asked = watch_large_pages(monkeypatch)
    table = torch.zeros(1 << 20, 8).share_memory_()
    assert rows.large_pages(table) is table
    assert not asked


def test_a_large_fake_table():
    with FakeTensorMode():
        assert rows.large_pages(torch.empty(1 << 22, 8)).shape == (1 << 22, 8)
