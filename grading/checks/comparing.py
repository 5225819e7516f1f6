"""What counts as equal where the judges compare with what must come out."""

from __future__ import annotations

from typing import Any, Sequence

import torch


def same(value: Any, expected: torch.Tensor | None) -> bool:
    """Up to the rounding of float32, which depends on the order of operations."""
    if expected is None or not torch.is_tensor(value):
        return value is None and expected is None
    if value.shape != expected.shape:
        return False
    if value.dtype == expected.dtype and torch.equal(value, expected):  # a twentieth of what follows, and mostly so
        return True
    # Of sums in which large numbers cancel, the rounding is that of the large ones: a convolution's gradients are.
    largest = max(1.0, expected.detach().abs().max().item()) if expected.numel() else 1.0
    return torch.allclose(value, expected.detach(), rtol=1e-4, atol=1e-5 * largest)


def all_same(values: Any, expected: Sequence[torch.Tensor | None]) -> bool:
    return (
        isinstance(values, list)
        and len(values) == len(expected)
        and all(same(value, one) for value, one in zip(values, expected))
    )


def is_whole_list(values: Any) -> bool:
    """A list or a tuple of tensors and of nothing else."""
    return isinstance(values, list) and all(torch.is_tensor(value) for value in values)
