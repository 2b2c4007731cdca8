"""Which of the probed operators a training step calls: names only, seen where torch dispatches to its kernels.

Nothing is computed otherwise for being seen, so no bit changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode  # its place in every release since 1.13

from runner.inside.lane import tensors_in

if TYPE_CHECKING:
    from collections.abc import Collection

_PRODUCTS = ("mm", "mm large", "mm odd", "mm transposed")
_CONVOLUTIONS = ("conv 1x1", "conv 3x3", "conv 7x7", "conv channels_last", "conv grouped", "conv strided")
_ATTENTION = ("attention", "attention causal")

# torch's name of a kernel, without `_foreach` before and `_` behind -> the leaves that speak of it.
_LEAVES = {
    "add": ("add scaled", "sgd"),
    "addbmm": ("bmm",),
    "addcdiv": ("adamw", "addcdiv"),
    "addcmul": ("addcmul",),
    "addmm": ("addmm", "linear", *_PRODUCTS),
    "addmv": ("mv",),
    "avg_pool2d": ("avg_pool",),
    "avg_pool2d_backward": ("avg_pool",),
    "baddbmm": ("bmm",),
    "bernoulli": ("dropout",),
    "bmm": ("bmm",),
    "convolution": _CONVOLUTIONS,
    "convolution_backward": tuple(f"{name} backward" for name in _CONVOLUTIONS),
    "convolution_overrideable": _CONVOLUTIONS,
    "cos": ("sin",),
    "cudnn_batch_norm": ("batch_norm",),
    "cudnn_batch_norm_backward": ("batch_norm",),
    "cumsum": ("cumsum",),
    "div": ("div",),
    "dot": ("dot",),
    "embedding_dense_backward": ("embedding",),
    "erf": ("erf",),
    "exp": ("exp",),
    "_fused_adam": ("adam fused",),
    "_fused_adamw": ("adamw fused",),
    "gelu": ("gelu", "gelu tanh"),
    "gelu_backward": ("gelu", "gelu tanh"),
    "linalg_vector_norm": ("norm",),
    "linear": ("linear",),
    "log": ("log",),
    "_log_softmax": ("cross_entropy", "log_softmax"),
    "_log_softmax_backward_data": ("cross_entropy", "log_softmax"),
    "logsumexp": ("logsumexp",),
    "max_pool2d_with_indices": ("max_pool",),
    "max_pool2d_with_indices_backward": ("max_pool",),
    "mean": ("mean",),
    "mkldnn_linear": ("linear",),
    "mm": ("linear", *_PRODUCTS),
    "mul": ("sgd",),
    "mv": ("mv",),
    "native_batch_norm": ("batch_norm",),
    "native_batch_norm_backward": ("batch_norm",),
    "_native_batch_norm_legit": ("batch_norm",),
    "native_dropout": ("dropout",),
    "native_group_norm": ("group_norm",),
    "native_group_norm_backward": ("group_norm",),
    "native_layer_norm": ("layer_norm",),
    "native_layer_norm_backward": ("layer_norm",),
    "nll_loss_forward": ("cross_entropy",),
    "nll_loss_backward": ("cross_entropy",),
    "norm": ("norm",),
    "normal": ("randn",),
    "pow": ("pow",),
    "rand": ("rand",),
    "randn": ("randn",),
    "rsqrt": ("rsqrt",),
    "_scaled_dot_product_cudnn_attention": _ATTENTION,
    "_scaled_dot_product_cudnn_attention_backward": _ATTENTION,
    "_scaled_dot_product_efficient_attention": _ATTENTION,
    "_scaled_dot_product_efficient_attention_backward": _ATTENTION,
    "_scaled_dot_product_flash_attention": _ATTENTION,
    "_scaled_dot_product_flash_attention_backward": _ATTENTION,
    "_scaled_dot_product_flash_attention_for_cpu": _ATTENTION,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _ATTENTION,
    "sigmoid": ("sigmoid",),
    "sigmoid_backward": ("sigmoid",),
    "silu": ("silu",),
    "silu_backward": ("silu",),
    "sin": ("sin",),
    "_softmax": ("softmax",),
    "_softmax_backward_data": ("softmax",),
    "softplus": ("softplus",),
    "softplus_backward": ("softplus",),
    "sqrt": ("adamw", "sqrt"),
    "sum": ("sum",),
    "tanh": ("tanh",),
    "tanh_backward": ("tanh",),
    "uniform": ("rand",),
    "upsample_bilinear2d": ("interpolate",),
    "upsample_bilinear2d_backward": ("interpolate",),
    "var": ("var",),
    "var_mean": ("var",),
}
_HALF = {torch.bfloat16: " bf16", torch.float16: " fp16"}


class OperatorsUsed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operator that is called until the block ends, in backward passes too."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: set[tuple[str, str]] = set()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let compiled models run compiled, unseen: an eager step would compute other bits."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a call, and make it."""
        halves = [_HALF[tensor.dtype] for tensor in tensors_in(args) if tensor.dtype in _HALF]
        self._seen.add((_name(func), halves[0] if halves else ""))
        return func(*args, **(kwargs or {}))

    def names(self, leaves: Collection[str]) -> list[str]:
        """Return which of the leaves speak of what was called. A call in half precision has leaves of its own."""
        found = [(leaf, leaf + half) for name, half in self._seen for leaf in _LEAVES.get(name, ())]
        return sorted({half if half in leaves else leaf for leaf, half in found}.intersection(leaves))


def _name(function: Any) -> str:
    schema = getattr(function, "_schema", None)
    if schema is None:
        return str(function)
    name = str(schema.name).partition("::")[2]
    name = name[len("_foreach_") :] if name.startswith("_foreach_") else name
    return name.rstrip("_")
