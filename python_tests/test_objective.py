"""The empirical risk (Eq. 6) and its refusals."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from l0sign_cuda import L0SIGNOutput, empirical_risk

B = 6


def make_output(outputs=1, l2=True, batch=B, dtype=torch.float32):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn((batch,) if outputs == 1 else (batch, outputs), generator=random)
    penalties = torch.rand(2, batch, generator=random)
    edges = torch.ones(batch, dtype=torch.int64)
    return L0SIGNOutput(logits.to(dtype), penalties[0], penalties[1] if l2 else None, edges)


def test_equation_6():
    output, target = make_output(), torch.tensor([0.0, 1.0, 1.0, 0.0, 0.3, 1.0])
    risk = empirical_risk(output, target, 0.5, 0.25)
    each = [
        -t * torch.log(torch.sigmoid(y)) - (1 - t) * torch.log(1 - torch.sigmoid(y)) + 0.5 * p0 + 0.25 * p2
        for y, t, p0, p2 in zip(output.logits, target, output.l0_penalty, output.l2_penalty, strict=True)
    ]
    torch.testing.assert_close(risk, torch.stack(each).mean())
    assert risk.shape == ()


@pytest.mark.parametrize(
    ("loss", "outputs", "target", "expected"),
    [
        ("bce", 1, torch.ones(B), F.binary_cross_entropy_with_logits),
        (
            "bce",
            1,
            torch.ones(B, dtype=torch.int64),
            lambda y, t: F.binary_cross_entropy_with_logits(y, t.float()),
        ),
        ("bce", 3, torch.ones(B, 3), F.binary_cross_entropy_with_logits),
        ("mse", 1, torch.arange(B).float(), F.mse_loss),
        ("mse", 2, torch.ones(B, 2), F.mse_loss),
        ("cross_entropy", 4, torch.tensor([0, 1, 2, 3, 0, 1]), F.cross_entropy),
        (F.l1_loss, 1, torch.ones(B), F.l1_loss),
        (lambda y, t: (y - t).abs(), 1, torch.ones(B), F.l1_loss),
    ],
)
def test_losses(loss, outputs, target, expected):
    output = make_output(outputs)
    risk = empirical_risk(output, target, 0.5, loss=loss)
    torch.testing.assert_close(risk, expected(output.logits, target) + 0.5 * output.l0_penalty.mean())


def test_weights_may_be_tensors():
    output, target = make_output(), torch.ones(B)
    weight = torch.tensor(0.5, requires_grad=True)
    risk = empirical_risk(output, target, weight, weight)
    torch.testing.assert_close(risk, empirical_risk(output, target, 0.5, 0.5))
    risk.backward()
    torch.testing.assert_close(weight.grad, (output.l0_penalty + output.l2_penalty).mean())


def test_a_weight_of_0_is_no_work():
    output = make_output(l2=False)._replace(l0_penalty=torch.full((B,), torch.nan))
    assert empirical_risk(output, torch.ones(B)).isfinite()
    assert empirical_risk(output, torch.ones(B), 0, 0.0).isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits(dtype):
    output = make_output(dtype=dtype)
    risk = empirical_risk(output, torch.ones(B), 0.5)
    assert risk.dtype == torch.float32
    exact = empirical_risk(output._replace(logits=output.logits.float()), torch.ones(B), 0.5)
    assert torch.equal(risk, exact)


@pytest.mark.parametrize(
    ("loss", "outputs", "target"),
    [
        ("bce", 1, torch.ones(0)),
        ("mse", 2, torch.ones(0, 2)),
        ("cross_entropy", 2, torch.ones(0, dtype=torch.int64)),
    ],
)
def test_an_empty_batch_has_no_risk(loss, outputs, target):
    assert empirical_risk(make_output(outputs, batch=0), target, 0.1, 0.1, loss).item() == 0


ones = torch.ones
BINARY, CLASSES, WITHOUT_L2 = make_output(), make_output(2), make_output(l2=False)


@pytest.mark.parametrize("shape", [(0,), (1,), (2 * B,)])
def test_a_custom_loss_of_another_shape_keeps_the_penalties(shape):
    """Say one that leaves out samples: its mean counts, and the penalties of all samples."""
    output = make_output()
    risk = empirical_risk(
        output, torch.zeros(B), 0.5, 0.25, loss=lambda logits, target: logits.new_full(shape, 2)
    )
    expected = (2 if shape[0] else 0) + 0.5 * output.l0_penalty.mean() + 0.25 * output.l2_penalty.mean()
    torch.testing.assert_close(risk, expected)
    assert risk.shape == ()


REFUSALS = [
    (ValueError, (BINARY, ones(6), -1), "l0_weight: expected a number of at least 0, got -1"),
    (ValueError, (BINARY, ones(6), 0, float("nan")), "l2_weight: expected a number of at least 0, got nan"),
    (TypeError, (ones(6), ones(6)), "output: expected an L0SIGNOutput, got Tensor"),
    (TypeError, (BINARY, [1.0] * 6), "target: expected a tensor, got list"),
    (ValueError, (BINARY, ones(5)), "target: expected shape [6], got shape [5]"),
    (ValueError, (BINARY, ones(6, 1)), "target: expected shape [6], got shape [6, 1]"),
    (ValueError, (BINARY, -ones(6)), 'target: expected values in 0..1 for loss="bce", got values in -1..-1'),
    (ValueError, (BINARY, 2 * ones(6)), 'target: expected values in 0..1 for loss="bce", got values in 2..2'),
    (ValueError, (CLASSES, ones(6), 0, 0, "mse"), "target: expected shape [6, 2], got shape [6]"),
    (
        ValueError,
        (BINARY, ones(6), 0, 0, "hinge"),
        "loss: expected a function or one of 'bce', 'mse', 'cross_",
    ),
    (
        ValueError,
        (WITHOUT_L2, ones(6), 0, 0.1),
        "l2_weight: expected 0 for an output without l2_penalty, got 0.1",
    ),
    (
        ValueError,
        (WITHOUT_L2, ones(6), 0, ones(())),
        "l2_weight: expected 0 for an output without l2_penalty",
    ),
    (ValueError, (BINARY, ones(6).long(), 0, 0, "cross_entropy"), "output: expected logits [B, K] for loss="),
    (
        ValueError,
        (CLASSES, ones(6), 0, 0, "cross_entropy"),
        "target: expected int64 classes of shape [6], got",
    ),
    (
        IndexError,
        (CLASSES, 2 * ones(6).long(), 0, 0, "cross_entropy"),
        "target: expected values in 0..1 (num",
    ),
]


@pytest.mark.parametrize(("error", "arguments", "expected"), REFUSALS)
def test_refusals(error, arguments, expected):
    with pytest.raises(error, match="^" + re.escape(expected)):
        empirical_risk(*arguments)
