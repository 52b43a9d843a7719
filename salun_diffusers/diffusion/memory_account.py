"""An account of memory without the memory: code runs on tensors that have shapes only, and the bytes they would take
are counted as they come and go.

`imagined()` makes such tensors: those on the device ``meta`` stand for a GPU's, those on ``cpu`` for the host's.
`LiveBytes` counts, of imagined tensors and of real ones alike. What neither sees: a GPU's context and the workspaces of
its libraries (half a gigabyte or so), and what its allocator loses between blocks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("meta")
"""The device of imagined tensors that would lie on a GPU."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors on one kind of device while they live; use it as a context.

    A storage counts once, however many tensors look into it, from the operation that made it until the last of them is
    gone. What was there before counts from `watch` on.

    Attributes:
        live: Bytes of now.
        peak: Most bytes since `restart`.

    Example:
        >>> with LiveBytes("cpu") as bytes_:
        ...     total = torch.ones(1000).mul(2).sum()  # At its peak: ones and twos.
        >>> bytes_.peak, bytes_.live
        (8000, 4)
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._device_type, self._looking = device_type, True
        self._sizes: dict[int, int] = {}  # By storage; 0 for those of the host.

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """What is made within the block takes no bytes, neither now nor later, nor what is made of it alone."""
        before, self._looking = self._looking, False
        try:
            yield
        finally:
            self._looking = before

    def restart(self) -> None:
        """Begin a new peak."""
        self.peak = self.live

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made outside."""
        for tensor in tensors:
            if tensor.device.type != self._device_type:
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes() if self._looking else 0
                self.live += self._sizes[key]
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._gone, key).atexit = False

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Carry out an operation, and count what it made."""
        made = operation(*args, **(kwargs or {}))
        away = ExitStack()
        if self._of_the_host(args):
            away.enter_context(self.looking_away())
        with away:
            self.watch(leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
        return made

    def _of_the_host(self, args: Any) -> bool:
        """Whether all imagined tensors among some arguments are."""
        mine = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.device.type == GPU.type]
        return bool(mine) and all(self._sizes.get(leaf.untyped_storage()._cdata) == 0 and leaf.numel() for leaf in mine)


class _WithoutValues(TorchDispatchMode):
    """What imagined tensors cannot do: who asks for a value is told 1, and what is brought to the host stays imagined.

    A loss is finite then, and a condition true. Small tensors that come to the host are real ones there, since lists
    are made of them.
    """

    SMALL = 1024

    def __init__(self, count: LiveBytes) -> None:
        super().__init__()
        self._count = count

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is None or first.device != GPU:
            return operation(*args, **kwargs)
        if operation is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if first.is_floating_point() else 1
        if operation is torch.ops.aten._to_copy.default and torch.device(kwargs.get("device") or GPU).type == "cpu":
            dtype = kwargs.get("dtype") or first.dtype
            with self._count.looking_away():
                return torch.ones(first.shape, dtype=dtype, device="cpu" if first.numel() <= self.SMALL else GPU)
        return operation(*args, **kwargs)


@contextmanager
def imagined() -> Iterator[LiveBytes]:
    """Within the block what is computed on the device `GPU` is imagined and counted, and what comes from it to the host
    is not counted; tensors made on the host are real.

    Arithmetic follows CUDA's rules, not the CPU's, where these differ in what is kept for backward: attention never
    makes the matrix of all pairs, and autocast normalises in fp32.
    """
    with LiveBytes(GPU.type) as count, _WithoutValues(count), _as_on_a_gpu():
        yield count


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """PyTorch's functions as CUDA's autocast has them.

    There is no autocast for imagined tensors; whether one is meant is read from that of the CPU, which does not touch
    them. The lists are those of torch/amp's documentation, as far as denoisers and decoders use them.
    """

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, scale: float | None = None, **__: Any) -> Tensor:
        # This kernel is known to imagined tensors; it keeps what CUDA's flash attention keeps.
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        answer: Tensor = kernel(query, key, value, scale=scale)[0]
        return answer

    lower = {"scaled_dot_product_attention": attention, "linear": F.linear}
    lower |= {f"conv{n}d": getattr(F, f"conv{n}d") for n in (1, 2, 3)}
    upper = {"group_norm": F.group_norm, "layer_norm": F.layer_norm, "softmax": F.softmax, "mse_loss": F.mse_loss}
    with ExitStack() as replaced:
        for name, function in lower.items():
            replaced.enter_context(mock.patch.object(F, name, _cast(function, None)))
        for name, function in upper.items():
            replaced.enter_context(mock.patch.object(F, name, _cast(function, torch.float32)))
        yield


def _cast(function: Any, dtype: torch.dtype | None) -> Callable[..., Tensor]:
    """A function whose floating point arguments autocast turns to a type; None is that of autocast itself."""

    def called(*args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return function(*args, **kwargs)  # type: ignore[no-any-return]
        wanted = dtype or torch.get_autocast_dtype("cpu")

        def cast(value: Any) -> Any:
            fits = isinstance(value, Tensor) and value.device == GPU and value.is_floating_point()
            return value.to(wanted) if fits else value

        made: Tensor = function(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})
        return made

    return called
