"""What another eraser wrote, fitted to a base: ready to be put into its pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from salun_diffusers.adapters.eraser_lora import Pairs, fit_lora, read_pairs
from salun_diffusers.adapters.fused import Fused
from salun_diffusers.adapters.loadable import require_lora
from salun_diffusers.adapters.lora_folder import write_lora
from salun_diffusers.diffusion.adapted_model import load_lora
from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.eraser_files import EraserFile, read_eraser_file
from salun_diffusers.files.eraser_fit import TEXT, Placed, fit_weights
from salun_diffusers.files.eraser_folder import read_tensor, require_numbers
from salun_diffusers.files.pipeline_folder import denoiser_folder, model_index
from salun_diffusers.files.run_folder import fingerprint, identity_of
from salun_diffusers.files.stored_weights import stored_weights
from salun_diffusers.files.whole_files import sha256_of
from salun_diffusers.masks.patch import WeightPatch

NAME = "eraser"
"""What a LoRA is called in the pipeline that it is loaded into."""


@dataclass(frozen=True)
class EraserEdit:
    """A base and what stands in for some of its weights, or beside them.

    Args:
        found: The eraser's file.
        base: The pipeline folder.
        variant: Variant of the base's weight files.
        placed: The tensors that stand in for the base's own.
        pairs: A and B of a LoRA.
    """

    found: EraserFile
    base: Path
    variant: str | None = None
    placed: Placed = field(default_factory=dict)
    pairs: Pairs = field(default_factory=dict)

    @classmethod
    def of(cls, file: Path, base: Path, variant: str | None = None) -> EraserEdit:
        """Recognise a file and compare it with a base; nothing but headers is read.

        Args:
            file: The file or folder.
            base: The pipeline folder.
            variant: Variant of the base's weight files.

        Raises:
            UserError: If it is none of another eraser, or not of this base.
        """
        found = read_eraser_file(file)
        if found.kind == "lora":
            require_lora(base, f"{file}, a LoRA,")
            return cls(found, base, variant, pairs=fit_lora(found, base, variant))
        if found.kind == "patch":
            return cls(found, base, variant)
        return cls(found, base, variant, placed=fit_weights(found, base, variant))

    @property
    def denoiser(self) -> str:
        """The component that erasers change most."""
        return denoiser_folder(model_index(self.base), self.base)

    def identity(self) -> str:
        """SHA-256 of the base and the files."""
        return fingerprint(base=identity_of(self.base), eraser=[sha256_of(file) for file in self.found.files])

    @property
    def parts(self) -> tuple[str, ...]:
        """The components of the base that it changes."""
        found = {self.denoiser} if self.found.kind == "patch" else {*self.placed, *self.pairs}
        return tuple(sorted(found))

    def put_into(self, pipe: Any) -> None:
        """Put everything into the base's pipeline, in the data type of each of its weights.

        A LoRA of the denoiser is loaded by diffusers' own loader; that of a text encoder is added to its weights.

        Args:
            pipe: The base, loaded.

        Raises:
            UserError: If a file is damaged, a patch is of another base, or a value is no number in its weight's type.
        """
        for component in self.parts:
            own = {
                name if component == self.denoiser else name.removeprefix(TEXT): tensor
                for name, tensor in getattr(pipe, component).state_dict().items()
            }
            if self.found.kind == "lora" and component == self.denoiser:
                self._load_lora(pipe)
            elif self.found.kind == "lora":
                fused = Fused(own, read_pairs(self.pairs[component]))
                self._copy(own, ((f"{layer}.weight", fused[f"{layer}.weight"]) for layer in self.pairs[component]))
            else:
                self._copy(own, self._values(component))

    def tensors(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The denoiser's weights with the change, on the CPU.

        Args:
            base: The base's, as they are stored.

        Returns:
            Those of the files in the data types of the base; with a LoRA W + B·A in float32.

        Raises:
            UserError: As for `put_into`.
        """
        if self.found.kind == "lora":
            return Fused(base, read_pairs(self.pairs.get(self.denoiser, {})))
        made = {name: tensor.clone() for name, tensor in base.items()}
        self._copy(made, self._values(self.denoiser))
        return made

    def _values(self, component: str) -> Iterator[tuple[str, Tensor]]:
        """The tensors that stand in for a component's own, one after the other."""
        if self.found.kind == "patch":
            patch = WeightPatch.load(self.found.files[0])
            made = patch.apply(dict(stored_weights(self.base / self.denoiser, self.variant)))
            yield from ((name, made[name]) for name in patch.places)
            return
        for name, tensor in self.placed.get(component, {}).items():
            yield name, read_tensor(tensor)

    def _copy(self, own: Mapping[str, Tensor], values: Iterable[tuple[str, Tensor]]) -> None:
        """Write values over weights."""
        for name, value in values:
            if name not in own or own[name].shape != value.shape:
                raise UserError(
                    f"{self.found.path} has {one_line(name, 120)}, for which the loaded base has no place of its shape."
                )
            with torch.no_grad():
                own[name].copy_(value)
            require_numbers(own[name], name, self.found.path)

    def _load_lora(self, pipe: Any) -> None:
        with TemporaryDirectory(prefix="salun-") as folder:
            write_lora(Path(folder) / "lora", read_pairs(self.pairs[self.denoiser]), {})
            load_lora(pipe, Path(folder) / "lora", NAME)
