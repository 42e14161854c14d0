"""Trains one step of a small model with the installed package and compares it with the plain reference."""

import os

import torch

import l0sign_cuda

torch.manual_seed(0)
model = l0sign_cuda.L0SIGN(num_embeddings=50)
ids = torch.randint(50, (8, 5))


def gradients(backend: str) -> list[torch.Tensor]:
    """Return the logits and every gradient of one step."""
    os.environ["L0SIGN_BACKEND"] = backend
    model.zero_grad()
    output = model(ids, seed=7)
    l0sign_cuda.empirical_risk(output, torch.ones(8), l0_weight=1e-3, l2_weight=1e-3).backward()
    return [output.logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


for fused, plain in zip(gradients("auto"), gradients("reference"), strict=True):
    torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-5)
print(f"{l0sign_cuda.__file__}: fused kernels and reference agree")
