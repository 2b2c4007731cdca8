"""The operators of the numerics probe, each a small computation of which every bit is looked at.

The inputs are made of exact integers, so they are the same bits on every CPU and GPU. Sizes are odd where vector
kernels have a tail, and large enough that threads share the work. No convolution's stride is larger than its kernel
or its input: oneDNN's weight gradient in bfloat16 holds memory that it never wrote there.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Union

import torch
from torch.nn import functional

from runner.inside.seeding import key, philox

if TYPE_CHECKING:
    from torch import Tensor

Operators = Dict[str, Callable[[], Union["Tensor", List["Tensor"]]]]
"""Name -> what computes its outputs."""

_POOL = 1 << 17
_ELEMENTS = 50_001


class Inputs:
    """Tensors on a device, each a function of its name."""

    def __init__(self, device: torch.device) -> None:
        counter = torch.arange(_POOL // 4)
        zero = torch.zeros_like(counter)
        words = torch.cat(philox((counter, zero, zero, zero), key(0, "numerics")))
        self.device = device
        self._words = words.to(device)
        # 24 bits become a float32 exactly, and so does their product with a power of two.
        self._reals = (((words >> 8) - (1 << 23)).float() * 2.0**-24).to(device)

    def reals(self, name: str, *shape: int) -> Tensor:
        """Return float32 numbers of -0.5 to 0.5."""
        return self._part(self._reals, name, shape)

    def integers(self, name: str, high: int, *shape: int) -> Tensor:
        """Return int64 numbers of 0 to high - 1."""
        return (self._part(self._words, name, shape) * high) >> 32

    def _part(self, pool: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
        size = 1
        for extent in shape:
            size *= extent
        first = zlib.crc32(name.encode()) % (_POOL - size)
        # A copy: where a tensor begins in memory decides bits too.
        return pool[first : first + size].clone().view(shape)

    def gradients(self, function: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
        """Return what a function computes, and its gradients with respect to the tensors."""
        with torch.enable_grad():
            own = [tensor.detach().requires_grad_() for tensor in tensors]
            output = function(*own)
            above = self.reals("gradient", *output.shape).to(output.dtype)
            return [output, *torch.autograd.grad(output, own, above)]


def operators(inputs: Inputs) -> Operators:
    """Return the operators in float32, and those without a precision."""
    parts = (_elementwise, _reductions, products, convolutions, attention, _layers, _optimizers, _random)
    return {name: compute for part in parts for name, compute in part(inputs).items()}


def half_operators(inputs: Inputs) -> Operators:
    """Return the operators that autocast computes in half precision."""
    parts = (products, convolutions, attention)
    return {name: compute for part in parts for name, compute in part(inputs).items()}


def _elementwise(inputs: Inputs) -> Operators:
    x = inputs.reals("x", _ELEMENTS) * 8
    y = inputs.reals("y", _ELEMENTS)
    positive = (inputs.reals("positive", _ELEMENTS) + 0.5) * 4 + 2.0**-10
    return {
        "add scaled": lambda: torch.add(x, y, alpha=0.3),
        "addcdiv": lambda: torch.addcdiv(x, y, positive, value=0.3),
        "addcmul": lambda: torch.addcmul(x, y, y, value=0.3),
        "div": lambda: x / positive,
        "erf": x.erf,
        "exp": x.exp,
        "gelu": lambda: inputs.gradients(functional.gelu, x),
        "gelu tanh": lambda: inputs.gradients(lambda own: functional.gelu(own, approximate="tanh"), x),
        "log": positive.log,
        "pow": lambda: positive.pow(1.7),
        "rsqrt": positive.rsqrt,
        "sigmoid": lambda: inputs.gradients(torch.sigmoid, x),
        "silu": lambda: inputs.gradients(functional.silu, x),
        "sin": lambda: [x.sin(), x.cos()],
        "softplus": lambda: inputs.gradients(functional.softplus, x),
        "sqrt": positive.sqrt,
        "tanh": lambda: inputs.gradients(torch.tanh, x),
    }


def _reductions(inputs: Inputs) -> Operators:
    x, table = inputs.reals("x", _ELEMENTS), inputs.reals("table", 219, 301)
    return {
        "cumsum": lambda: table.cumsum(1),
        "log_softmax": lambda: inputs.gradients(lambda own: own.log_softmax(1), table),
        "logsumexp": lambda: table.logsumexp(1),
        "mean": lambda: [x.mean(), table.mean(0), table.mean(1)],
        "norm": lambda: [x.norm(), table.norm(dim=1)],
        "softmax": lambda: inputs.gradients(lambda own: own.softmax(1), table),
        "sum": lambda: [x.sum(), table.sum(0), table.sum(1)],
        "var": lambda: [x.var(), table.var(0), table.var(1)],
    }


def products(inputs: Inputs) -> Operators:
    """Return the matrix products."""
    a, b, bias = inputs.reals("a", 96, 200), inputs.reals("b", 200, 72), inputs.reals("bias", 72)
    odd = inputs.reals("odd", 33, 65), inputs.reals("odd", 65, 17)
    large = inputs.reals("large a", 160, 512), inputs.reals("large b", 512, 192)
    x, y = inputs.reals("x", _ELEMENTS), inputs.reals("y", _ELEMENTS)
    batches = inputs.reals("batch a", 6, 33, 40), inputs.reals("batch b", 6, 40, 27)
    sequence, weight = inputs.reals("sequence", 4, 31, 96), inputs.reals("weight", 80, 96)
    return {
        "addmm": lambda: torch.addmm(bias, a, b),
        "bmm": lambda: torch.bmm(*batches),
        "dot": lambda: torch.dot(x, y),
        "linear": lambda: inputs.gradients(functional.linear, sequence, weight, inputs.reals("bias", 80)),
        "mm": lambda: a @ b,
        "mm large": lambda: torch.mm(*large),
        "mm odd": lambda: torch.mm(*odd),
        "mm transposed": lambda: [inputs.reals("a", 200, 96).t() @ b, a @ inputs.reals("b", 72, 200).t()],
        "mv": lambda: torch.mv(a, inputs.reals("vector", 200)),
    }


def convolutions(inputs: Inputs) -> Operators:
    """Return the convolutions, forward, and the gradients of their inputs and weights."""
    image, colours = inputs.reals("image", 4, 32, 14, 14), inputs.reals("colours", 4, 3, 32, 32)
    channels_last = image.contiguous(memory_format=torch.channels_last)
    # Shape of the weights, stride, padding, groups.
    kinds = {
        "conv 1x1": (image, (48, 32, 1, 1), 1, 0, 1),
        "conv 3x3": (image, (32, 32, 3, 3), 1, 1, 1),
        "conv 7x7": (colours, (32, 3, 7, 7), 2, 3, 1),
        "conv channels_last": (channels_last, (32, 32, 3, 3), 1, 1, 1),
        "conv grouped": (image, (32, 4, 3, 3), 1, 1, 8),
        "conv strided": (image, (48, 32, 3, 3), 2, 1, 1),
    }
    found: Operators = {}
    for name, (tensor, shape, stride, padding, groups) in kinds.items():
        weight = inputs.reals(name, *shape)
        if tensor is channels_last:
            weight = weight.contiguous(memory_format=torch.channels_last)
        found.update(_convolution(inputs, name, (tensor, weight), (stride, padding, groups)))
    return found


def _convolution(inputs: Inputs, name: str, tensors: tuple[Tensor, Tensor], how: tuple[int, int, int]) -> Operators:
    stride, padding, groups = how

    def convolved(image: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(image, weight, None, stride, padding, 1, groups)

    return {
        name: lambda: convolved(*tensors),
        f"{name} backward": lambda: inputs.gradients(convolved, *tensors)[1:],
    }


def attention(inputs: Inputs) -> Operators:
    """Return attention, plain and causal, with its gradients."""
    q, k, v = (inputs.reals(name, 2, 4, 48, 32) for name in ("query", "key", "value"))

    def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    return {
        "attention": lambda: inputs.gradients(functional.scaled_dot_product_attention, q, k, v),
        "attention causal": lambda: inputs.gradients(causal, q, k, v),
    }


def _layers(inputs: Inputs) -> Operators:
    image, table = inputs.reals("image", 4, 32, 15, 15), inputs.reals("table", 97, 192)
    scale, shift = inputs.reals("scale", 32), inputs.reals("shift", 32)
    wide = inputs.reals("scale", 192), inputs.reals("shift", 192)
    ids, labels = inputs.integers("ids", 61, 400), inputs.integers("labels", 192, 97)

    def batch_norm(own: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.batch_norm(own, None, None, weight, bias, training=True)

    def interpolated(own: Tensor) -> Tensor:
        return functional.interpolate(own, scale_factor=1.5, mode="bilinear", align_corners=False)

    return {
        "avg_pool": lambda: inputs.gradients(lambda own: functional.avg_pool2d(own, 3, 2, 1), image),
        "batch_norm": lambda: inputs.gradients(batch_norm, image, scale, shift),
        "cross_entropy": lambda: inputs.gradients(lambda own: functional.cross_entropy(own, labels), table),
        "embedding": lambda: inputs.gradients(lambda own: functional.embedding(ids, own), inputs.reals("rows", 61, 64)),
        "group_norm": lambda: inputs.gradients(
            lambda *own: functional.group_norm(own[0], 4, *own[1:]), image, scale, shift
        ),
        "interpolate": lambda: inputs.gradients(interpolated, image),
        "layer_norm": lambda: inputs.gradients(
            lambda own, *rest: functional.layer_norm(own, (192,), *rest), table, *wide
        ),
        "max_pool": lambda: inputs.gradients(lambda own: functional.max_pool2d(own, 3, 2, 1), image),
    }


def _optimizers(inputs: Inputs) -> Operators:
    def stepped(kind: str, **options: Any) -> Callable[[], Tensor]:
        def compute() -> Tensor:
            parameter = torch.nn.Parameter(inputs.reals("parameter", 20_001))
            optimizer = getattr(torch.optim, kind)([parameter], lr=0.01, **options)
            for step in range(2):
                parameter.grad = inputs.reals(f"step {step}", 20_001)
                optimizer.step()
            return parameter.detach()

        return compute

    return {
        "adam fused": stepped("Adam", fused=True),
        "adamw": stepped("AdamW", fused=False),
        "adamw fused": stepped("AdamW", fused=True),
        "sgd": stepped("SGD", momentum=0.9, weight_decay=0.01),
    }


def _random(inputs: Inputs) -> Operators:
    def drawn(draw: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return lambda: draw(
            _ELEMENTS,
            dtype=torch.float32,
            device=inputs.device,
            generator=torch.Generator(inputs.device).manual_seed(0),
        )

    x = inputs.reals("x", _ELEMENTS)
    return {"dropout": lambda: functional.dropout(x, 0.3), "rand": drawn(torch.rand), "randn": drawn(torch.randn)}
