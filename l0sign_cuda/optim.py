"""Optimizers for large embedding tables: a step costs what a batch touches, not what a table holds.

    >>> model = l0sign_cuda.L0SIGN(5_000_000, sparse=True)
    >>> optimizer = l0sign_cuda.optim.RowAdam(model.parameters(), lr=0.01)

One optimizer serves the whole model. A parameter with a sparse gradient (a COO tensor, coalesced or not) is
updated in the rows of that gradient, in place; one with a dense gradient as torch's optimizer of that name
does it. Both kinds of gradient may follow each other. Results are the same for any number of threads.

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

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam

from .rows import embedding_rows, empty_table, row_adagrad_, row_adam_

__all__ = ["RowAdagrad", "RowAdam"]


class _RowOptimizer(torch.optim.Optimizer):
    """What both have in common; a subclass says how state begins and how it updates."""

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
            dense: dict[bool, list[Tensor]] = {}
            for param in params:
                if not self.state[param]:
                    # On the CPU, where reading it costs nothing; float32 would not count beyond 2^24.
                    count = torch.zeros((), dtype=torch.int64)
                    self.state[param] = {"step": count, **self._new_state(param, group)}
                if param.grad.is_sparse:
                    self._step_rows(group, param, self.state[param])
                else:
                    dense.setdefault(param.is_cpu, []).append(param)
            for on_cpu, on_device in dense.items():
                self._step_dense(group, on_device, on_cpu)
        return loss

    def _step_rows(self, group: dict[str, Any], param: Tensor, state: dict[str, Tensor]) -> None:
        rows, grad = _rows_of(cast(Tensor, param.grad))
        step = int(state["step"]) + 1
        row_step = state.get("row_step")
        if group["weight_decay"] and (row_step is None or row_step.dim() == 0):
            last = 0 if row_step is None else int(row_step)
            row_step = torch.full((len(param),), last, dtype=torch.int32, device=param.device)
            state["row_step"] = row_step
        counted = row_step is not None and row_step.dim() == 1
        # A table of one column may be a vector.
        tables = [_as_matrix(tensor) for tensor in (param, *self._of_table(state))]
        self._update_rows(group, step, tables, row_step if counted else None, rows, grad)
        state["step"] += 1

    def _step_dense(self, group: dict[str, Any], params: list[Tensor], on_cpu: bool) -> None:
        grads = [cast(Tensor, param.grad) for param in params]
        states = [self.state[param] for param in params]
        # What torch's kernels count in, and count up; off the CPU fused ones want it there, rows do not.
        steps = [state["step"].float() for state in states]
        self._update_dense(group, params, grads, [*map(self._of_table, states)], steps, fused=on_cpu or None)
        for state in states:
            state["step"] += 1
            row_step = state.get("row_step")
            if row_step is None:
                if group["weight_decay"]:  # one number for all rows, until some are touched alone
                    state["row_step"] = state["step"].to(torch.int32, copy=True)
            elif group["weight_decay"]:  # every row has had its decay
                row_step.fill_(int(state["step"]))
            else:  # a row that never had any still has none to make up for
                row_step.masked_fill_(row_step > 0, int(state["step"]))

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

    def _of_table(self, state: dict[str, Tensor]) -> list[Tensor]:
        """The tensors of a state that have the parameter's shape."""
        return [tensor for name, tensor in state.items() if name not in ("step", "row_step")]

    def _update_rows(
        self,
        group: dict[str, Any],
        step: int,
        tables: list[Tensor],
        row_step: Tensor | None,
        rows: Tensor,
        grad: Tensor,
    ) -> None:
        raise NotImplementedError

    def _update_dense(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        states: list[list[Tensor]],
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
        return {"sum": empty_table(like=param).fill_(group["initial_accumulator_value"])}

    def _update_rows(
        self,
        group: dict[str, Any],
        step: int,
        tables: list[Tensor],
        row_step: Tensor | None,
        rows: Tensor,
        grad: Tensor,
    ) -> None:
        lr = float(group["lr"]) / (1 + (step - 1) * group["lr_decay"])
        param, total = tables
        row_adagrad_(
            param,
            total,
            row_step,
            rows,
            grad,
            step=step,
            lr=lr,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )

    def _update_dense(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        states: list[list[Tensor]],
        steps: list[Tensor],
        fused: bool | None,
    ) -> None:
        adagrad(
            params,
            grads,
            [total for (total,) in states],
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
        return {"exp_avg": empty_table(like=param).zero_(), "exp_avg_sq": empty_table(like=param).zero_()}

    def _update_rows(
        self,
        group: dict[str, Any],
        step: int,
        tables: list[Tensor],
        row_step: Tensor | None,
        rows: Tensor,
        grad: Tensor,
    ) -> None:
        param, mean, square = tables
        row_adam_(
            param,
            mean,
            square,
            row_step,
            rows,
            grad,
            step=step,
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
        states: list[list[Tensor]],
        steps: list[Tensor],
        fused: bool | None,
    ) -> None:
        beta1, beta2 = group["betas"]
        adam(
            params,
            grads,
            [mean for mean, _ in states],
            [square for _, square in states],
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


def _rows_of(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a sparse gradient, ascending and each once, and their gradients [U, w]."""
    rows, values = grad._indices()[0], _as_matrix(grad._values())
    if not grad.is_coalesced():
        rows, values, _ = embedding_rows(rows, values, None, grad.shape[0])
    return rows, values


def _as_matrix(tensor: Tensor) -> Tensor:
    """A view [J, w] of a tensor [J, ...]."""
    return tensor if tensor.dim() == 2 else tensor.view(len(tensor), math.prod(tensor.shape[1:]))


def _check_not_negative(**options: float) -> None:
    for name, value in options.items():
        try:
            fits = bool(value >= 0)
        except (TypeError, ValueError, RuntimeError):  # no number
            fits = False
        if not fits:
            raise ValueError(f"{name}: expected a number of at least 0, got {value!r}")
