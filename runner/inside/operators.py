"""Every operator of one training step, digested: which of them computes other bits than in another run of the step.

It looks on below autograd, where each operator is what torch's dispatcher is about to run, and changes no bits.
"""

from __future__ import annotations

import hashlib
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from runner.inside.digests import plain, raw_bytes
from runner.inside.operator_log import UNKNOWN, Operator, file_name

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from torch import nn

# Marks of the profiler compute nothing.
_SILENT = ("profiler",)
# A collective returns before it has written.
_COLLECTIVE = ("c10d", "_c10d_functional")
# What stood in the tensors that these write to decides nothing.
_OVERWRITING = frozenset({"aten.copy_", "aten.fill_", "aten.zero_", "aten.resize_"})
_MARKS = (type(None), bool, int, float, complex, str, torch.dtype, torch.layout, torch.memory_format)


class OperatorLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes a line for each operator that is called until it is left; views move no bits and are left out."""

    def __init__(self, out: Path, process: int, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rank: int | None = None
        """The virtual rank that is computed."""
        self._file = (out / file_name(process)).open("wb")
        self._number = 0
        # A GPU's backward pass has a thread of its own.
        self._lock = threading.Lock()
        self._within: list[str] = []
        # The forward pass numbers the nodes of the backward pass.
        self._modules: dict[int, str] = {}
        self._parameters = {id(parameter): name for name, parameter in module.named_parameters()}
        self._hooks = ExitStack()
        for name, part in module.named_modules():
            self._watch(part, name or type(module).__name__)

    def _watch(self, part: nn.Module, name: str) -> None:
        before = part.register_forward_pre_hook(lambda _part, _inputs: self._within.append(name))
        after = part.register_forward_hook(lambda _part, _inputs, _output: self._leave_module())
        self._hooks.callback(before.remove)
        self._hooks.callback(after.remove)

    def _leave_module(self) -> None:
        self._within.pop()

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hooks.close()
        self._file.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema  # noqa: SLF001, there is no other way to learn what an operator writes to
        if func.namespace in _SILENT or _is_view(schema):
            return func(*args, **kwargs)
        given = dict(zip((argument.name for argument in schema.arguments), args))
        given.update(kwargs)
        written = [argument.name for argument in schema.arguments if _is_written(argument)]
        name = str(func)
        unread = written if name.rpartition(".")[0] in _OVERWRITING else [a.name for a in schema.arguments if a.is_out]
        inputs = _digest([value for key, value in sorted(given.items()) if key not in unread])
        result = func(*args, **kwargs)
        if _is_unwritten(schema.name):
            return result
        outputs = UNKNOWN
        if func.namespace not in _COLLECTIVE:
            outputs = _digest([result, [given.get(key) for key in written]])
        self._write(name, inputs, outputs)
        return result

    def _write(self, name: str, inputs: str, outputs: str) -> None:
        node = _current_node()
        kind = "" if node is None else node.name().rpartition("::")[2]
        with self._lock:
            self._number += 1
            if node is None:
                module = self._within[-1] if self._within else ""
                # The first operator after a node is made is what the node is made for.
                self._modules.setdefault(torch._C._autograd._get_sequence_nr() - 1, module)  # noqa: SLF001
            elif kind == "AccumulateGrad":
                module = self._parameters.get(id(node.variable), "")
            else:
                module = self._modules.get(node._sequence_nr(), "")  # noqa: SLF001
            self._file.write(Operator(self._number, name, self.rank, module, kind, inputs, outputs).line())


def _current_node() -> Any:
    """Return the node of the backward pass that is computed in this thread; None in the forward pass."""
    return torch._C._current_autograd_node()  # noqa: SLF001, as above


def _is_view(schema: Any) -> bool:
    """Say whether an operator only returns what it is given, seen otherwise."""
    returned = [part.alias_info for part in schema.returns]
    return bool(returned) and all(alias is not None and not alias.is_write for alias in returned)


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _is_unwritten(name: str) -> bool:
    """Say whether an operator returns memory that nothing was written to yet."""
    return name.partition("::")[2].startswith(("empty", "new_empty"))


def _digest(value: object) -> str:
    """Return the digest of tensors, with dtype and shape, and of plain values, in nested lists, tuples and mappings."""
    content = hashlib.sha256()
    _take_in(content, value)
    return content.hexdigest()[:16]


def _take_in(content: hashlib._Hash, value: object) -> None:
    if isinstance(value, torch.Tensor):
        content.update(f"{value.dtype}{tuple(value.shape)}".encode())
        if value.layout is torch.strided and value.device.type != "meta":
            content.update(raw_bytes(plain(value)))
    elif isinstance(value, (list, tuple)):
        content.update(b"[%d" % len(value))
        for item in value:
            _take_in(content, item)
    elif isinstance(value, _MARKS):
        content.update(repr(value).encode() + b",")
