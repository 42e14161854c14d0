"""Optimizers for large embedding tables: a step costs what a batch touches, not what a table holds.

    >>> model = l0sign_cuda.L0SIGN(5_000_000, sparse=True)
    >>> optimizer = l0sign_cuda.optim.RowAdam(model.parameters(), lr=0.01)

One optimizer serves the whole model. A parameter with a sparse gradient (a COO tensor, coalesced or not) is
updated in the rows of that gradient, in place; one with a dense gradient as torch's optimizer of that name
does it, within rounding. Both kinds may follow each other. Results are the same for any number of threads.

Where sparse gradients make a difference, it is to rows that a batch does not touch:

- Adagrad leaves a row with a zero gradient as it is, so `RowAdagrad` is `torch.optim.Adagrad`, but for weight
  decay. (`torch.optim.Adagrad` refuses sparse gradients with weight decay.)
- Adam moves every row in every step, as long as its first moment lasts. `RowAdam` is lazy: moments change in
  the touched rows only. The bias correction is that of the global step, as in `torch.optim.SparseAdam`, whose
  updates these are but for eps: there it is added before the bias correction of the second moment, here after
  it as in `torch.optim.Adam`, so that a table whose rows are all touched in every step gets Adam's updates.
- Weight decay is coupled to the gradient (L2), as in torch's optimizers of these names. A row that was not
  touched for a while makes up for it when it is touched again: each of its numbers is divided by
  1 + missed lr weight_decay / (root of its squared gradients + eps). For Adagrad that is what the dense
  optimizer does, to first order in the decay of the missed steps. Before its first step a row does not decay.
  With this comes an int32 for each row, the last step that touched it. (Otherwise a row that one batch in ten
  touches would decay a tenth as fast as others, which costs accuracy.)

With `torch.amp.GradScaler` they work as any optimizer: it unscales sparse gradients too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam

from .layers import PairNetwork
from .rows import as_matrix, embedding_rows, has_kernel, large_pages, mark_every_row, row_adagrad_, row_adam_

__all__ = ["RowAdagrad", "RowAdam", "parameter_groups"]


def parameter_groups(
    model: torch.nn.Module, lr: float, edge_lr_factor: float = 0.1, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """The parameters of a model as groups for an optimizer: edge networks learn slower, and do not decay.

        >>> optimizer = torch.optim.Adam(l0sign_cuda.parameter_groups(model, lr=0.01))

    An edge network moves the gates of all pairs together, and Adam's step does not get smaller with a small
    penalty. At the full rate it closes all edges, or opens them for good, before the messages have learned
    which of them are worth keeping: which of the two is up to the initial weights. The edge embeddings, which
    tell pairs apart, keep the full rate.

    Args:
        model: an `L0SIGN`, or a module with an `L0SIGNLayer` or `L0EdgePredictor` in it.
        lr: learning rate of everything but edge networks.
        edge_lr_factor: the learning rate of edge networks, as a multiple of `lr`.
        weight_decay: of everything but edge networks, whose logits it would pull to zero, against what the L0
            penalty decides.

    Returns:
        Groups with "params", "lr" and "weight_decay"; one of them where there is no edge network.

    Raises:
        TypeError: `model` is no module.
        ValueError: an `lr`, `edge_lr_factor` or `weight_decay` below 0.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    _check_not_negative(lr=lr, edge_lr_factor=edge_lr_factor, weight_decay=weight_decay)
    of_edges = {
        param: None
        for name, module in model.named_modules()
        if isinstance(module, PairNetwork) and name.split(".")[-1] == "edge"
        for param in module.parameters()
    }
    # Decay on the edge embeddings, which an edge network reads, is worth having: on Frappe the gates then
    # close later, and better.
    others = [param for param in model.parameters() if param not in of_edges]
    groups = [
        {"params": others, "lr": lr, "weight_decay": weight_decay},
        {"params": [*of_edges], "lr": lr * edge_lr_factor, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class _RowOptimizer(torch.optim.Optimizer):
    """What both have in common; a subclass says how state begins and how it updates."""

    _tables: tuple[str, ...]
    """The states of a parameter's shape, in the order that updates take them."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients, or set them to zero: as torch's, which takes longer than a small update."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Args:
            closure: computes the loss, with its gradients; called first, and its result is returned.

        Raises:
            ValueError: a gradient does not fit its parameter; nothing was changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [
            (group, [param for param in group["params"] if param.grad is not None])
            for group in self.param_groups
        ]
        for _, params in groups:
            for param in params:
                _check_gradient(param, param.grad)
        for group, params in groups:
            for param in params:
                state = self.state[param]
                if not state:
                    large_pages(param.detach())  # a copy of a model lies in others
                    # On the CPU, where reading it costs nothing; float32 would not count beyond 2^24.
                    state |= {"step": torch.zeros((), dtype=torch.int64), **self._new_state(param, group)}
            # All that operators can update, in one call; first those with gradients of rows.
            together: list[Tensor] = []
            others: list[Tensor] = []
            for param in sorted(params, key=_is_dense):
                (together if has_kernel(param, _is_dense(param)) else others).append(param)
            self._step_rows(group, together)
            self._step_rows(group, [param for param in others if not _is_dense(param)])
            self._step_dense(group, [param for param in others if _is_dense(param)])
        return loss

    def _step_rows(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Of parameters of which first come those with gradients of rows."""
        if not params:
            return
        states = [self.state[param] for param in params]
        rows, grads, row_steps = [], [], []
        for param, state in zip(params, states, strict=True):
            grad = cast(Tensor, param.grad)
            if grad.is_sparse:
                touched, grad = _rows_of(grad)
                rows.append(touched)
            grads.append(grad.contiguous())
            row_steps.append(_row_step(group, param, state))
        steps, *tables = ([state[name] for state in states] for name in ("step", *self._tables))
        self._update_rows(group, params, tables, steps, row_steps, rows, grads)

    def _step_dense(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """As torch does it: on a GPU, for half types, and where there is no binary."""
        if not params:
            return
        grads = [cast(Tensor, param.grad) for param in params]
        states = [self.state[param] for param in params]
        tables = [[state[name] for state in states] for name in self._tables]
        # What torch's kernels count in, and count up; off the CPU fused ones want it there, rows do not.
        steps = [state["step"].float() for state in states]
        fused = all(param.is_cpu for param in params) or None
        self._update_dense(group, params, grads, tables, steps, fused)
        for state in states:
            state["step"] += 1
            row_step = state.get("row_step")
            if row_step is None:
                if group["weight_decay"]:  # one number for all rows, until some are touched alone
                    state["row_step"] = state["step"].to(torch.int32, copy=True)
            else:
                mark_every_row(row_step, int(state["step"]), group["weight_decay"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        super().load_state_dict(state_dict)
        # It gives all state the type of the parameter, which may be too narrow to count steps.
        numbers = (number for group in state_dict["param_groups"] for number in group["params"])
        params = (param for group in self.param_groups for param in group["params"])
        for number, param in zip(numbers, params, strict=True):
            stored = state_dict["state"].get(number, {})
            if "step" in stored:  # a float in what torch's optimizers and earlier versions stored
                self.state[param]["step"] = torch.as_tensor(stored["step"]).to("cpu", torch.int64, copy=True)
            if "row_step" in stored:
                row_step = stored["row_step"]
                device = param.device if row_step.dim() else "cpu"
                self.state[param]["row_step"] = row_step.to(device, copy=True)

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        raise NotImplementedError

    def _update_rows(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        tables: list[list[Tensor]],
        steps: list[Tensor],
        row_steps: list[Tensor | None],
        rows: list[Tensor],
        grads: list[Tensor],
    ) -> None:
        raise NotImplementedError

    def _update_dense(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        tables: list[list[Tensor]],
        steps: list[Tensor],
        fused: bool | None,
    ) -> None:
        raise NotImplementedError


class RowAdagrad(_RowOptimizer):
    """Adagrad (Duchi et al., 2011) that updates the rows of sparse gradients.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        lr_decay: the learning rate of step t is lr / (1 + (t - 1) lr_decay).
        weight_decay: L2 penalty; with sparse gradients made up for when a row is touched.
        initial_accumulator_value: what the sums of squared gradients begin with.
        eps: added to the root of the sums.
    """

    _tables = ("sum",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        _check_not_negative(
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
        )
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "eps": eps,
            },
        )

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"sum": large_pages(torch.empty_like(param)).fill_(group["initial_accumulator_value"])}

    def _update_rows(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        tables: list[list[Tensor]],
        steps: list[Tensor],
        row_steps: list[Tensor | None],
        rows: list[Tensor],
        grads: list[Tensor],
    ) -> None:
        (sums,) = tables
        row_adagrad_(
            params,
            sums,
            steps,
            row_steps,
            rows,
            grads,
            lr=float(group["lr"]),
            lr_decay=group["lr_decay"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )

    def _update_dense(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        tables: list[list[Tensor]],
        steps: list[Tensor],
        fused: bool | None,
    ) -> None:
        (sums,) = tables
        adagrad(
            params,
            grads,
            sums,
            steps,
            fused=fused,
            has_sparse_grad=False,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            lr_decay=group["lr_decay"],
            eps=group["eps"],
            maximize=False,
        )


class RowAdam(_RowOptimizer):
    """Adam (Kingma and Ba, 2015) that updates the rows of sparse gradients, lazily.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: how much of the first and of the second moment a step keeps.
        eps: added to the root of the second moment.
        weight_decay: L2 penalty; with sparse gradients made up for when a row is touched.
    """

    _tables = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        _check_not_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        try:
            fit = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        except (TypeError, ValueError, RuntimeError):  # no sequence, or not of numbers
            fit = False
        if not fit:
            raise ValueError(f"betas: expected two numbers of at least 0 and below 1, got {betas!r}")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {name: large_pages(torch.empty_like(param)).zero_() for name in self._tables}

    def _update_rows(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        tables: list[list[Tensor]],
        steps: list[Tensor],
        row_steps: list[Tensor | None],
        rows: list[Tensor],
        grads: list[Tensor],
    ) -> None:
        exp_avgs, exp_avg_sqs = tables
        row_adam_(
            params,
            exp_avgs,
            exp_avg_sqs,
            steps,
            row_steps,
            rows,
            grads,
            lr=float(group["lr"]),
            betas=group["betas"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )

    def _update_dense(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        tables: list[list[Tensor]],
        steps: list[Tensor],
        fused: bool | None,
    ) -> None:
        exp_avgs, exp_avg_sqs = tables
        beta1, beta2 = group["betas"]
        adam(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            [],
            steps,
            fused=fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _check_gradient(param: Tensor, grad: Tensor) -> None:
    if (grad.dtype, grad.device, grad.shape) != (param.dtype, param.device, param.shape):
        raise ValueError(
            f"grad: expected {param.dtype} {list(param.shape)} on {param.device} as its parameter, got"
            f" {grad.dtype} {list(grad.shape)} on {grad.device}"
        )
    if grad.is_sparse and grad.sparse_dim() != 1:
        raise ValueError(
            f"grad: expected a sparse gradient of whole rows (one sparse dimension), got {grad.sparse_dim()}"
            f" sparse dimensions of {grad.dim()}"
        )


def _is_dense(param: Tensor) -> bool:
    return not cast(Tensor, param.grad).is_sparse


def _rows_of(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a sparse gradient, ascending and each once, and their gradients [U, w]."""
    # Whoever made the gradient may have given it indices with strides.
    rows, values = grad._indices()[0].contiguous(), as_matrix(grad._values())
    if not grad.is_coalesced():
        rows, values, _ = embedding_rows(rows, values, None, grad.shape[0])
    return rows, values


def _row_step(group: dict[str, Any], param: Tensor, state: dict[str, Tensor]) -> Tensor | None:
    """When its rows had their last step: [J], one number for all rows, or None where it is not counted."""
    row_step, decays = state.get("row_step"), group["weight_decay"]
    if cast(Tensor, param.grad).is_sparse:
        if decays and (row_step is None or row_step.dim() == 0):
            row_step = large_pages(torch.empty(len(param), dtype=torch.int32, device=param.device))
            state["row_step"] = row_step.fill_(state.get("row_step", 0))
        return None if row_step is None or row_step.dim() == 0 else row_step
    if row_step is None and decays:  # one number, until some rows are touched alone
        row_step = state["row_step"] = torch.zeros((), dtype=torch.int32)
    return row_step


def _check_not_negative(**options: float) -> None:
    for name, value in options.items():
        try:
            fits = bool(value >= 0)
        except (TypeError, ValueError, RuntimeError):  # no number
            fits = False
        if not fits:
            raise ValueError(f"{name}: expected a number of at least 0, got {value!r}")
