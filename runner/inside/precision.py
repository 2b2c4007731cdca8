"""Arithmetic of the forward and backward pass. Weights and optimizer stay in float32.

fp32, tf32, bf16 and fp16 take one path: autocast and scaler are always there, and do nothing where they are disabled.
"""

from __future__ import annotations

from typing import Any

import torch

from runner.inside.refusal import Refused

_AUTOCAST_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast and gradient scaler of one precision on one device type."""

    def __init__(self, name: str, device: str) -> None:
        if name == "tf32" and device != "cuda":
            raise Refused(f"precision tf32 is a GPU's arithmetic; this run's device is {device}", hint="precision=fp32")
        self.name = name
        self._device = device
        self._dtype = _AUTOCAST_DTYPE.get(name)
        self.scaler = _scaler(device, enabled=name == "fp16")
        _set_tf32(allowed=name == "tf32")

    def autocast(self) -> torch.autocast:
        """Return the context that the forward pass and the loss run in."""
        return torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None)


def tf32_settings() -> list[str]:
    """Return what matrix products, convolutions and recurrent layers use for float32 on a GPU, as read back."""
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        return [place.fp32_precision for place in _tf32_places()]
    return ["tf32" if backend.allow_tf32 else "ieee" for backend in backends]


def _set_tf32(*, allowed: bool) -> None:
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    # torch 2.9 gave these settings new names and refuses a mixture of old and new ones.
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        for place in _tf32_places():
            place.fp32_precision = "tf32" if allowed else "ieee"
    else:
        for backend in backends:
            backend.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def _tf32_places() -> list[Any]:
    cudnn: Any = torch.backends.cudnn
    return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]


def _scaler(device: str, *, enabled: bool) -> Any:
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device, enabled=enabled)
    if enabled and device != "cuda":
        raise Refused(f"torch {torch.__version__} has no gradient scaler for {device}", hint="precision=bf16")
    legacy: Any = torch.cuda.amp
    return legacy.GradScaler(enabled=enabled)
