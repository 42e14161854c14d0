"""The objective of L0-SIGN: empirical risk with both penalties (Eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks

if TYPE_CHECKING:
    from .model import L0SIGNOutput

Loss = Callable[[Tensor, Tensor], Tensor]


def empirical_risk(
    output: L0SIGNOutput,
    target: Tensor,
    l0_weight: float | Tensor = 0.0,
    l2_weight: float | Tensor = 0.0,
    loss: str | Loss = "bce",
) -> Tensor:
    """The mean over the batch of loss(y, target) + l0_weight * l0_penalty + l2_weight * l2_penalty (Eq. 6).

    Args:
        output: what :class:`~l0sign_cuda.L0SIGN` returned.
        target: of the shape of output.logits for "bce" (values in 0..1) and "mse"; int64 [B] for
            "cross_entropy" (classes 0..K-1). With K > 1 outputs "bce" and "mse" are means over the outputs
            too.
        l0_weight: lambda_1, for a graph's penalty summed over its unordered pairs.
        l2_weight: lambda_2, likewise.
        loss: "bce" (of logits), "mse", "cross_entropy", or a function (logits, target) -> losses [B] or
            their mean.

    Returns:
        A scalar; of an empty batch 0, unless ``loss`` is a function that says otherwise.

    Raises:
        TypeError: no model's output, or a target that is no tensor.
        ValueError: unfitting shapes or dtypes, an unknown loss, targets of "bce" outside 0..1, or a non-zero
            l2_weight with an output that has no l2_penalty.
    """
    if not hasattr(output, "logits"):
        raise TypeError(f"output: expected an L0SIGNOutput, got {type(output).__name__}")
    logits = output.logits
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if callable(loss):
        risk = loss(logits, target)
    elif isinstance(loss, str) and loss in _LOSSES:
        risk = _LOSSES[loss](logits, target)
    else:
        raise ValueError(f"loss: expected a function or one of {', '.join(map(repr, _LOSSES))}, got {loss!r}")
    if risk.shape != logits.shape[:1]:  # of several outputs, or already a mean
        risk = _mean(risk)
    if is_used("l0_weight", l0_weight, logits.shape[:1]):
        risk = _add(risk, output.l0_penalty, l0_weight)
    if is_used("l2_weight", l2_weight, logits.shape[:1]):
        if output.l2_penalty is None:
            raise ValueError(
                f"l2_weight: expected 0 for an output without l2_penalty, got {l2_weight};"
                " build the model with l2_penalty=True"
            )
        risk = _add(risk, output.l2_penalty, l2_weight)
    return _mean(risk) if risk.dim() else risk


def _bce(logits: Tensor, target: Tensor) -> Tensor:
    check_target("bce", target, logits.shape, logits.device)
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")


def _mse(logits: Tensor, target: Tensor) -> Tensor:
    check_target("mse", target, logits.shape, logits.device)
    return F.mse_loss(logits, target.to(logits.dtype), reduction="none")


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    _checks.tensor("target", target)
    if logits.dim() != 2:
        raise ValueError(
            f'output: expected logits [B, K] for loss="cross_entropy", got shape {list(logits.shape)};'
            " build the model with num_outputs=K"
        )
    if target.dtype != torch.int64 or target.shape != logits.shape[:1]:
        got = f"{_checks.dtype_name(target.dtype)} of shape {list(target.shape)}"
        raise ValueError(f"target: expected int64 classes of shape [{logits.shape[0]}], got {got}")
    if _checks.readable(target) and target.numel():
        _checks.in_range("target", target.numpy(), logits.shape[1], "num_outputs")
    return F.cross_entropy(logits, target, reduction="none")


_LOSSES: dict[str, Loss] = {"bce": _bce, "mse": _mse, "cross_entropy": _cross_entropy}


def check_target(
    loss: str, target: Tensor, shape: Sequence[int], device: torch.device, *, read: bool = True
) -> None:
    """Check targets for logits of a shape, on a device, by "bce" or "mse"; ``read``: their values, too."""
    _checks.tensor("target", target)
    if target.shape != shape:
        raise ValueError(f"target: expected shape {list(shape)}, got shape {list(target.shape)}")
    if target.is_complex() or target.is_quantized:
        raise ValueError(f"target: expected real numbers, got {_checks.dtype_name(target.dtype)}")
    _checks.on_device("target", target, device)
    if read and loss == "bce" and _checks.readable(target) and target.numel():
        low, high = map(float, target.detach().aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f'target: expected values in 0..1 for loss="bce", got values in {low:.9g}..{high:.9g}'
            )


def is_used(name: str, weight: float | Tensor, graphs: Sequence[int]) -> bool:
    """Whether a weight counts; a tensor, of one number or for each of the graphs [B], always does."""
    if isinstance(weight, Tensor):
        _checks.tensor(name, weight)
        if weight.is_complex():
            raise ValueError(f"{name}: expected real numbers, got {_checks.dtype_name(weight.dtype)}")
        if weight.numel() != 1 and weight.shape != graphs:
            raise ValueError(
                f"{name}: expected a number or shape {list(graphs)}, got shape {list(weight.shape)}"
            )
        return True
    number = float(weight) if isinstance(weight, bool) else _checks.as_number(weight)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name}: expected a number of at least 0, got {weight!r}")
    return number != 0


def _add(risk: Tensor, penalty: Tensor, weight: float | Tensor) -> Tensor:
    """The risk [B] with a penalty [B]: one mean is left to take; or their mean."""
    if risk.shape != penalty.shape:
        penalty = _mean(penalty)
    return risk + weight * penalty if isinstance(weight, Tensor) else risk.add(penalty, alpha=weight)


def _mean(values: Tensor) -> Tensor:
    """The mean, and of no values 0."""
    return values.mean() if values.numel() else values.sum()
