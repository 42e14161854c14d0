"""RowAdagrad and RowAdam: what they equal, what they touch, and that they are torch optimizers."""

from __future__ import annotations

import copy
import time

import pytest
import torch

from l0sign_cuda import L0SIGN, _extension, empirical_risk, rows
from l0sign_cuda.optim import RowAdagrad, RowAdam, parameter_groups

ROWS, WIDTH, STEPS = 30, 4, 12
KINDS = [RowAdagrad, RowAdam]


def make_table(width=WIDTH, num_rows=ROWS, dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    return torch.nn.Parameter(torch.randn(num_rows, width, generator=random, dtype=torch.float64).to(dtype))


def gradients(touched=6, steps=STEPS, width=WIDTH, dtype=torch.float64):
    """Sparse gradients [ROWS, width], some of whose rows come twice."""
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        ids = torch.randint(ROWS, (1, touched), generator=random)
        values = torch.randn(touched, width, generator=random, dtype=torch.float64).to(dtype)
        yield torch.sparse_coo_tensor(ids, values, (ROWS, width), check_invariants=True)


def by_rows(grad):
    """A dense gradient as a sparse one."""
    return grad.to_sparse(1)


def train(make, grads, prepare=lambda grad: grad, param=None):
    """The parameter after a step with each gradient."""
    param = make_table() if param is None else param
    optimizer = make([param])
    for grad in grads:
        param.grad = prepare(grad)
        optimizer.step()
    return param.detach()


def assert_equal_within_rounding(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


# -------------------- what they equal


@pytest.mark.parametrize("prepare", [lambda grad: grad, torch.Tensor.coalesce], ids=["as given", "coalesced"])
@pytest.mark.parametrize("options", [{}, {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3}])
def test_adagrad_is_torchs(options, prepare):
    options = {"lr": 0.3, **options}
    actual = train(lambda params: RowAdagrad(params, **options), gradients(), prepare)
    expected = train(
        lambda params: torch.optim.Adagrad(params, **options), gradients(), torch.Tensor.to_dense
    )
    assert_equal_within_rounding(actual, expected)


def test_adam_is_torchs_sparse_adam():
    """But for where eps is added: with a negligible one they are equal."""
    options = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-30}
    actual = train(lambda params: RowAdam(params, **options), gradients())
    expected = train(lambda params: torch.optim.SparseAdam(params, **options), gradients())
    assert_equal_within_rounding(actual, expected)


def test_adam_is_torchs_adam_where_all_rows_are_touched():
    options = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    every = [grad.to_dense() + torch.randn(ROWS, WIDTH, dtype=torch.float64) for grad in gradients()]
    actual = train(lambda params: RowAdam(params, **options), every, by_rows)
    expected = train(lambda params: torch.optim.Adam(params, **options), every)
    assert_equal_within_rounding(actual, expected)


@pytest.mark.parametrize(
    ("kind", "torchs", "options"),
    [
        (RowAdagrad, torch.optim.Adagrad, {"weight_decay": 0.1, "lr_decay": 0.1, "lr": 0.3}),
        (RowAdam, torch.optim.Adam, {"weight_decay": 0.1, "betas": (0.8, 0.95), "lr": 0.1}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dense_gradients_are_torchs(kind, torchs, options, dtype):
    dense = [grad.to_dense() for grad in gradients(dtype=dtype)]
    actual = train(lambda params: kind(params, **options), dense, param=make_table(dtype=dtype))
    expected = train(
        lambda params: torchs(params, fused=True, **options), dense, param=make_table(dtype=dtype)
    )
    # Seen at most: 3e-16 and 4e-7.
    rounding = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 0}[dtype]
    torch.testing.assert_close(actual, expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_and_dense_gradients_in_turn(kind):
    """With every row touched it does not matter which they are."""
    every = [torch.randn(ROWS, WIDTH, dtype=torch.float64) for _ in range(STEPS)]
    turn = iter(range(STEPS))
    actual = train(
        lambda params: kind(params, lr=0.1),
        every,
        lambda grad: grad if next(turn) % 3 else by_rows(grad),
    )
    assert_equal_within_rounding(actual, train(lambda params: kind(params, lr=0.1), every))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 2, 3)])
def test_tables_of_other_dimensions(kind, shape):
    grads = [torch.randn(shape, dtype=torch.float64) for _ in range(STEPS)]
    start = torch.randn(shape, dtype=torch.float64)
    sparse, dense = (
        train(lambda params: kind(params, lr=0.1), grads, form, torch.nn.Parameter(start.clone()))
        for form in (by_rows, torch.clone)
    )
    assert_equal_within_rounding(sparse, dense)


# -------------------- what they touch


@pytest.mark.parametrize("kind", KINDS)
def test_other_rows_stay_weight_decay_or_not(kind):
    param, before = make_table(), make_table().detach()
    optimizer = kind([param], lr=0.1, weight_decay=0.5)
    grads = list(gradients(touched=3, steps=4))
    train(lambda params: optimizer, grads, param=param)
    touched = torch.cat([grad._indices()[0] for grad in grads]).unique()
    rest = [row for row in range(ROWS) if row not in touched.tolist()]
    assert rest and torch.equal(param.detach()[rest], before[rest])
    assert not (param.detach()[touched] == before[touched]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_weight_decay_is_that_of_torch_for_touched_rows(kind):
    """A step on rows alone is torch's step on a table of these rows."""
    touched, grad = torch.tensor([2, 7, 11]), torch.randn(3, WIDTH, dtype=torch.float64)
    torchs = {RowAdagrad: torch.optim.Adagrad, RowAdam: torch.optim.Adam}[kind]
    sparse = torch.sparse_coo_tensor(touched[None], grad, (ROWS, WIDTH), check_invariants=True)
    options = {"lr": 0.1, "weight_decay": 0.3}
    actual = train(lambda params: kind(params, **options), [sparse] * 3)
    part = torch.nn.Parameter(make_table().detach()[touched])
    expected = train(lambda params: torchs(params, **options), [grad] * 3, param=part)
    assert_equal_within_rounding(actual[touched], expected)


def test_missed_weight_decay_is_that_of_dense_adagrad():
    """To first order in the decay, which is of 0.2 %; the last step touches every row, so that none lags."""
    options = {"lr": 0.1, "weight_decay": 1e-4, "initial_accumulator_value": 1.0}
    every = torch.randn(2, ROWS, WIDTH, dtype=torch.float64)
    grads = [every[0], *(grad.to_dense() for grad in gradients(touched=2, steps=200)), every[1]]

    def finish(kind, form):
        return train(lambda params: kind(params, **options), grads, form)

    dense = finish(torch.optim.Adagrad, torch.clone)
    lazy = finish(RowAdagrad, by_rows)
    options["weight_decay"] = 0.0
    without = finish(RowAdagrad, by_rows)
    assert (dense - without).abs().max() > 1e-3
    assert (dense - lazy).abs().max() < 0.005 * (dense - without).abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_counted_only_for_weight_decay(kind):
    for weight_decay in (0.0, 0.1):
        param = make_table(dtype=torch.bfloat16)
        optimizer = kind([param], weight_decay=weight_decay)
        optimizer.load_state_dict(optimizer.state_dict())
        train(lambda params, o=optimizer: o, gradients(dtype=torch.bfloat16), param=param)
        assert ("row_step" in optimizer.state[param]) == (weight_decay > 0)
    # Exact in a checkpoint, whatever the type of the parameter.
    optimizer.state[param]["row_step"][0] = 123_457
    again = kind([param])
    again.load_state_dict(optimizer.state_dict())
    assert again.state[param]["row_step"][0] == 123_457
    param.grad = torch.ones_like(param)
    again.step()  # dense: every row has its decay
    assert (again.state[param]["row_step"] == STEPS + 1).all()


def one_row(row):
    return torch.sparse_coo_tensor([[row]], torch.ones(1, 1), (2, 1), check_invariants=True)


@pytest.mark.parametrize("resumed", [False, True])
def test_rows_make_up_for_decay_that_they_missed_since_a_dense_step(resumed):
    """Whether the first step was dense or touched all rows by a sparse gradient is one."""
    results = []
    for first in (torch.ones(2, 1), by_rows(torch.ones(2, 1))):
        param = torch.nn.Parameter(torch.ones(2, 1))
        optimizer = RowAdagrad([param], lr=0.1, weight_decay=0.1)
        train(lambda params, o=optimizer: o, [first], param=param)
        if resumed:
            stored, optimizer = optimizer.state_dict(), RowAdagrad([param])
            optimizer.load_state_dict(stored)
        train(lambda params, o=optimizer: o, [*[one_row(0)] * 50, one_row(1)], param=param)
        results.append(param.detach())
    torch.testing.assert_close(*results)
    assert results[0][1] < 0.6  # 0.83 without


@pytest.mark.parametrize("kind", KINDS)
def test_dense_steps_without_decay_leave_rows_that_never_began(kind):
    param = torch.nn.Parameter(torch.ones(2, 1))
    optimizer = kind([param], lr=0.1, weight_decay=0.0)
    only_first = torch.tensor([[1.0], [0.0]])
    for weight_decay, grad in ((0.0, only_first), (0.1, one_row(0)), (0.0, only_first), (0.1, one_row(0))):
        optimizer.param_groups[0]["weight_decay"] = weight_decay
        param.grad = grad
        optimizer.step()
    assert optimizer.state[param]["row_step"].tolist() == [4, 0] and param[1] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_counted_beyond_float32(kind):
    param = make_table(dtype=torch.float32)
    optimizer = kind([param], lr=0.1)
    param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.state[param]["step"].fill_(2**24)
    again = kind([param])
    again.load_state_dict(optimizer.state_dict())
    for grad in (next(gradients(dtype=torch.float32)), torch.ones_like(param)):
        param.grad = grad
        again.step()
    assert again.state[param]["step"].item() == 2**24 + 2


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_torchs_optimizers_go_on(kind):
    """Their count of steps is a float."""
    torchs = {RowAdagrad: torch.optim.Adagrad, RowAdam: torch.optim.Adam}[kind]
    param, dense = make_table(), [torch.randn(ROWS, WIDTH, dtype=torch.float64) for _ in range(4)]
    optimizer = torchs([param], lr=0.1)
    train(lambda params: optimizer, dense, param=param)
    other = torch.nn.Parameter(param.detach().clone())
    again = kind([other], lr=0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert again.state[other]["step"].dtype == torch.int64 and again.state[other]["step"] == 4
    train(lambda params: optimizer, dense, param=param)
    train(lambda params: again, dense, by_rows, param=other)
    assert_equal_within_rounding(other.detach(), param.detach())


def touch(num_rows):
    """Milliseconds of this thread in a training step with 64 graphs of 4 features: the fastest of many."""
    torch.manual_seed(0)
    model = L0SIGN(num_rows, 4, 8, 4, 8, sparse=True, l2_penalty=False)
    optimizer = RowAdam(model.parameters(), lr=0.01, weight_decay=1e-4)
    ids, target = torch.randint(num_rows, (64, 4)), torch.ones(64)
    times = []
    for _ in range(60):
        began = time.process_time()
        optimizer.zero_grad()
        empirical_risk(model(ids), target, 0.01).backward()
        optimizer.step()
        times.append(time.process_time() - began)
    return 1e3 * min(times)


def test_a_step_does_not_grow_with_the_table():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        small, large = touch(5_000), touch(2_000_000)
    finally:
        torch.set_num_threads(threads)
    # Whatever passes over the tables once, or clears a gradient of their size, takes more than 5 ms.
    assert large < 3 * small + 1, f"{small:.2f} ms with 5,000 rows, {large:.2f} ms with 2,000,000"


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_allocated_once(kind):
    param = make_table()
    optimizer = kind([param])
    places = []
    for grad in gradients():
        param.grad = grad
        optimizer.step()
        places.append([value.data_ptr() for value in optimizer.state[param].values()])
    assert all(place == places[0] for place in places)
    assert optimizer.state[param]["step"].item() == STEPS


def test_a_parameter_without_a_gradient_stays_without_state():
    used, unused = make_table(), make_table()
    optimizer = RowAdam([used, unused])
    used.grad = next(gradients())
    optimizer.step()
    assert torch.equal(unused, make_table()) and unused not in optimizer.state


# -------------------- torch optimizers


def run_model(optimizer, model, steps):
    ids = torch.randint(50, (steps, 8, 4), generator=torch.Generator().manual_seed(2))
    for step in range(steps):
        optimizer.zero_grad()
        output = model(ids[step], seed=step)
        empirical_risk(output, (ids[step][:, 0] > 25).float(), 0.01).backward()
        optimizer.step()


def make_model():
    torch.manual_seed(0)
    return L0SIGN(50, 4, 8, 4, 8, sparse=True)


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_exact(kind, tmp_path):
    whole = make_model()
    optimizer = kind(whole.parameters(), lr=0.05, weight_decay=1e-3)
    run_model(optimizer, whole, 3)
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    run_model(optimizer, whole, 4)

    resumed = make_model()
    stored = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(stored["model"])
    optimizer = kind(resumed.parameters())
    optimizer.load_state_dict(stored["optimizer"])
    run_model(optimizer, resumed, 4)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_copies_go_on_by_themselves(kind):
    model = make_model()
    optimizer = kind(model.parameters(), lr=0.05)
    run_model(optimizer, model, 2)
    twin, twins = copy.deepcopy((model, optimizer))
    run_model(optimizer, model, 2)
    run_model(twins, twin, 2)
    for left, right in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("kind", KINDS)
def test_parameter_groups_and_schedulers(kind):
    still, moving = make_table(), make_table()
    optimizer = kind([{"params": [still], "lr": 0.0}, {"params": [moving]}], lr=0.4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.0 if epoch else 1.0)
    rounds = []
    for grad in gradients(steps=3):
        still.grad, moving.grad = grad, grad.clone()
        optimizer.step()
        scheduler.step()
        rounds.append(moving.detach().clone())
    assert torch.equal(still, make_table())
    assert not torch.equal(rounds[0], make_table())
    assert torch.equal(rounds[1], rounds[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_learning_rate_may_be_a_tensor(kind):
    number, tensor = (
        train(lambda params, lr=lr: kind(params, lr=lr), gradients()) for lr in (0.25, torch.tensor(0.25))
    )
    assert torch.equal(number, tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_dropped_or_set_to_zero_in_all_groups(kind):
    table, other = make_table(), make_table()
    optimizer = kind([{"params": [table]}, {"params": [other]}])
    table.grad, other.grad = next(gradients()), torch.ones_like(other)
    optimizer.zero_grad(set_to_none=False)
    assert table.grad.is_sparse and not table.grad.to_dense().any() and not other.grad.any()
    optimizer.zero_grad()
    assert table.grad is None and other.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_closure(kind):
    param = make_table()
    optimizer = kind([param], lr=0.1)

    def closure():
        optimizer.zero_grad()
        (found,) = rows.lookup(torch.tensor([1, 2]), param)
        loss = found.square().sum()
        loss.backward()
        return loss

    first, second = optimizer.step(closure), optimizer.step(closure)
    assert first.requires_grad and second < first


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_scaler(kind):
    """A power of two scales and unscales exactly; a gradient that is not finite is skipped."""
    grads = list(gradients())
    expected = train(lambda params: kind(params, lr=0.1), grads)
    param = make_table()
    optimizer = kind([param], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for k, grad in enumerate(grads):
        scaler.scale(torch.zeros(()))
        param.grad = grad * (torch.inf if k == 3 else 2.0**10)
        before = param.detach().clone()
        scaler.step(optimizer)
        if k == 3:
            assert torch.equal(param, before)
            param.grad = grad
            optimizer.step()
        scaler.update(2.0**10)
    assert_equal_within_rounding(param.detach(), expected)


# -------------------- errors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay"])
def test_options_below_zero(kind, name):
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"{name}: expected a number of at least 0, got {wrong}"):
            kind([make_table()], **{name: wrong})


def test_betas():
    for wrong in ((0.9, 1.0), (-0.1, 0.9), (0.9,)):
        with pytest.raises(ValueError, match="betas: expected two numbers of at least 0 and below 1, got"):
            RowAdam([make_table()], betas=wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_that_are_no_rows(kind):
    param = make_table()
    optimizer = kind([param])
    param.grad = torch.ones_like(param).to_sparse()
    with pytest.raises(
        ValueError, match=r"expected a sparse gradient of whole rows .* got 2 sparse dimensions"
    ):
        optimizer.step()
    assert torch.equal(param, make_table())


def test_nothing_is_changed_where_any_gradient_does_not_fit():
    first, second = make_table(), make_table()
    optimizer = RowAdam([{"params": [first]}, {"params": [second]}], lr=0.1)
    first.grad = next(gradients())
    second.grad = torch.ones_like(second).to_sparse()
    with pytest.raises(ValueError, match="got 2 sparse dimensions"):
        optimizer.step()
    assert torch.equal(first, make_table()) and not optimizer.state
    # torch refuses to hold a gradient of another type or shape, unless it is told not to look.
    second.grad = None
    second.grad_dtype = torch.float32
    second.grad = next(gradients(dtype=torch.float32))
    with pytest.raises(ValueError, match=r"grad: expected torch.float64 .* got torch.float32"):
        optimizer.step()
    assert torch.equal(first, make_table()) and not optimizer.state


def test_options_that_are_no_numbers():
    for options in ({"betas": None}, {"betas": ("a", "b")}, {"lr": "0.1"}, {"eps": None}):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name}: expected .* got"):
            RowAdam([make_table()], **options)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_table_without_rows(kind, weight_decay):
    param = torch.nn.Parameter(torch.zeros(0, 8))
    optimizer = kind([param], weight_decay=weight_decay)
    empty = torch.zeros(1, 0, dtype=torch.int64)
    for grad in (
        torch.sparse_coo_tensor(empty, torch.zeros(0, 8), (0, 8), check_invariants=True),
        torch.zeros(0, 8),
    ):
        param.grad = grad
        optimizer.step()
    assert optimizer.state[param]["step"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_coalesced_gradient_may_have_strided_indices(kind):
    ids = torch.tensor([[1, 9, 4, 9]])[:, ::2]
    grad = torch.sparse_coo_tensor(
        ids,
        torch.ones(2, WIDTH, dtype=torch.float64),
        (ROWS, WIDTH),
        is_coalesced=True,
        check_invariants=True,
    )
    assert not grad._indices()[0].is_contiguous()
    strided, plain = (train(kind, [g]) for g in (grad, grad.to_dense().to_sparse(1)))
    assert torch.equal(strided, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_binary_dense_parameters_take_torchs_step(kind, monkeypatch):
    param = make_table()
    expected = train(kind, [torch.ones(ROWS, WIDTH, dtype=torch.float64)] * 2)
    monkeypatch.setattr(_extension, "is_available", lambda: False)
    monkeypatch.setattr(kind, "_update_rows", None)
    actual = train(kind, [torch.ones(ROWS, WIDTH, dtype=torch.float64)] * 2, param=param)
    assert_equal_within_rounding(actual, expected)


# -------------------- groups of parameters


@pytest.mark.parametrize("make", [torch.optim.Adam, RowAdam, torch.optim.AdamW])
def test_edge_networks_are_a_group_of_their_own(make):
    models = torch.nn.ModuleDict({"first": L0SIGN(9), "plain": L0SIGN(9, gated=False)})
    optimizer = make(parameter_groups(models, lr=0.2, edge_lr_factor=0.5, weight_decay=0.3))
    others, edges = optimizer.param_groups
    assert (others["lr"], others["weight_decay"]) == (0.2, 0.3)
    assert (edges["lr"], edges["weight_decay"]) == (0.1, 0.0)
    of_edges = {name for name, param in models.named_parameters() if any(param is p for p in edges["params"])}
    assert of_edges == {
        f"first.interaction.edge.{layer}.{kind}" for layer in ("hidden", "out") for kind in ("weight", "bias")
    }
    assert len(others["params"]) + len(edges["params"]) == len([*models.parameters()])
    assert len(parameter_groups(models["plain"], lr=0.2)) == 1


def test_groups_refuse_what_is_no_model_and_no_rate():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got list"):
        parameter_groups([make_table()], lr=0.1)
    for name in ("lr", "edge_lr_factor", "weight_decay"):
        with pytest.raises(ValueError, match=f"^{name}: expected a number of at least 0, got -1"):
            parameter_groups(L0SIGN(9), **{"lr": 0.1, name: -1})
