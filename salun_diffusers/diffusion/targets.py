"""What the base answers to the draws to come: in memory while that is little, else on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from salun_diffusers.files.stored_weights import write_tensors
from salun_diffusers.files.whole_files import full_disk_is_told

IN_MEMORY = 2**30
"""Bytes of targets that are kept in memory; where there are more, all go to disk.

1,000 steps of 16 rows are 0.5 GB for Stable Diffusion 1.x and 2.1 GB for XL in bf16, twice that in fp32."""

_A_FILE = 2**27  # bytes


class Targets:
    """The base's answers by the position of their draw, in the precision of the run.

    That loses nothing where they are the network's own: under autocast it answers in bf16 or fp16.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        """Begin with none.

        Args:
            folder: Where they go if they are too many for memory; what is there is removed.
            dtype: What they are kept in.
        """
        self._folder, self._dtype = folder, dtype
        self._held: dict[int, Tensor] = {}
        self._files: dict[int, Path] = {}
        shutil.rmtree(folder, ignore_errors=True)

    def fill(self, positions: Sequence[int], answer: Callable[[int], Tensor]) -> None:
        """Ask for all answers, in order.

        Args:
            positions: Of the draws.
            answer: The base's answer at a position.

        Raises:
            UserError: If the disk is full.
        """
        for position in positions:
            target = answer(position).to("cpu", self._dtype)
            size = target.numel() * target.element_size()
            self._held[position] = target
            if size * len(positions) > IN_MEMORY and size * len(self._held) >= min(_A_FILE, IN_MEMORY):
                self._write()
        if self._files and self._held:
            self._write()

    def pop(self, position: int) -> Tensor:
        """Take one answer, which is forgotten; the last one of a file takes the file with it."""
        if position in self._held:
            return self._held.pop(position)
        path = self._files.pop(position)
        with safe_open(path, framework="pt") as file:
            target: Tensor = file.get_tensor(str(position))
        if path not in self._files.values():
            path.unlink()
        if not self._files:
            self._folder.rmdir()
        return target

    def _write(self) -> None:
        path = self._folder / f"{next(iter(self._held))}.safetensors"
        with full_disk_is_told("the base's predictions"):
            write_tensors(path, {str(position): target for position, target in self._held.items()})
        self._files |= dict.fromkeys(self._held, path)
        self._held.clear()
