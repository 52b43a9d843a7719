"""The exact entries that moved, as an adapter of PEFT, where PEFT can carry them: in linear layers alone.

Supertuning (arXiv 2607.09287) keeps, of each linear layer, positions in a buffer that is saved and values that are
added there. Its own choice of positions, by magnitude, gives way to the ones on file; every layer has the same share of
them, so layers of which fewer moved are filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from salun_diffusers.adapters.difference import blank_denoiser, require_same
from salun_diffusers.errors import UserError
from salun_diffusers.files.pipeline_folder import denoiser_folder, model_index
from salun_diffusers.files.run_folder import identity_of
from salun_diffusers.files.stored_weights import StoredTensors, write_tensors
from salun_diffusers.files.whole_files import full_disk_is_told, whole_folder, write_json
from salun_diffusers.progress import Progress

RECORD = "sparse.json"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class SparseChange:
    """What moved in linear layers.

    Args:
        places: Flat positions in the weight, int32, by the layer's name.
        values: What is added there, float32.
        sizes: Weights of each layer.
        not_exact: Weights that w + value misses, by the rounding of a sum.
    """

    places: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    sizes: Mapping[str, int]
    not_exact: int

    @property
    def number_moved(self) -> int:
        """Weights that moved."""
        return sum(len(places) for places in self.places.values())

    @property
    def share(self) -> float:
        """The share of a layer's weights that each keeps: as many as the one of which most moved."""
        share = max(len(places) / self.sizes[layer] for layer, places in self.places.items())
        # PEFT keeps int(n (1 - sparsity)) of n.
        while any(int(self.sizes[name] * (1 - (1 - share))) < len(self.places[name]) for name in self.places):
            share = min(1.0, share * (1 + 1e-9) + 1e-9)
        return share


def sparse_between(
    base: Path, erased: Path, variants: tuple[str | None, str | None] = (None, None), show: bool = True
) -> SparseChange:
    """The entries that differ between two pipelines' denoisers.

    Args:
        base: The base.
        erased: What was made of it.
        variants: Variant of the base's weight files, and of the erased one's.
        show: Whether a progress bar is.

    Raises:
        UserError: If a tensor moved that is no weight of a linear layer, if nothing moved, or if they are not of one
            model.
    """
    places = tuple(folder / denoiser_folder(model_index(folder), folder) for folder in (base, erased))
    before, after = (StoredTensors(place, variant) for place, variant in zip(places, variants, strict=True))
    require_same(before, after, *places)
    linear = {name for name, module in blank_denoiser(base).named_modules() if isinstance(module, nn.Linear)}
    found: dict[str, Tensor] = {}
    values, sizes, others, missed = {}, {}, [], 0
    with Progress("sparse", len(before), show) as bar:
        for name in before:
            old, new = before[name].float().flatten(), after[name].float().flatten()
            moved = (old != new).nonzero().squeeze(1)
            layer = name.removesuffix(".weight")
            if len(moved) and (layer not in linear or name == layer):
                others.append(name)
            elif len(moved):
                found[layer] = moved.to(torch.int32)
                values[layer] = new[moved] - old[moved]
                sizes[layer] = len(old)
                missed += int((old[moved] + values[layer] != new[moved]).sum())
            bar.advance()
    if others:
        raise UserError(
            f"PEFT carries exact sparse changes of linear layers only, and {len(others)} tensors moved that are "
            f"convolutions, norms or biases, such as {others[0]}; salun patch make writes all of them, bit for bit."
        )
    if not found:
        raise UserError(f"No weight of {erased} differs from {base}: there is nothing to export.")
    return SparseChange(found, values, sizes, missed)


def write_sparse(folder: Path, change: SparseChange, record: Mapping[str, Any]) -> None:
    """Write a folder that ``PeftModel.from_pretrained(unet, folder)`` loads.

    Args:
        folder: A new folder.
        change: What is written.
        record: What is told of it in ``sparse.json``.

    Raises:
        UserError: If the installed PEFT knows no Supertuning.
    """
    supertuning = require_supertuning()
    share, tensors = change.share, {}
    for layer, places in change.places.items():
        more = int(change.sizes[layer] * (1 - (1 - share))) - len(places)
        filled = torch.cat([places, places[-1:].expand(more)]), torch.cat([change.values[layer], torch.zeros(more)])
        for kind, tensor in zip(("indices", "values"), filled, strict=True):
            tensors[f"{_PREFIX}{layer}.supertuning_{kind}"] = tensor
    with full_disk_is_told("the adapter"), whole_folder(folder) as partial:
        config = supertuning(sparsity=1 - share, target_modules=list(change.places), inference_mode=True)
        config.save_pretrained(str(partial))
        write_tensors(partial / "adapter_model.safetensors", tensors)
        write_json(partial / RECORD, {"format": "salun_diffusers.sparse", "version": 1, **record})


def export_sparse(base: Path, erased: Path, folder: Path, variants: tuple[str | None, str | None]) -> SparseChange:
    """Write what differs between two pipelines as a sparse adapter; returns it.

    Args:
        base: The base.
        erased: What was made of it.
        folder: The folder to write.
        variants: Variant of the base's weight files, and of the erased one's.

    Raises:
        UserError: If PEFT cannot carry it, or nothing differs.
    """
    change = sparse_between(base, erased, variants)
    record = {
        "moved": change.number_moved,
        "not_exact": change.not_exact,
        "base_sha256": identity_of(base),
        "erased_sha256": identity_of(erased),
    }
    write_sparse(folder, change, record)
    return change


def require_supertuning() -> Any:
    """PEFT's `SupertuningConfig`.

    Raises:
        UserError: If the installed PEFT has none.
    """
    import peft

    found = getattr(peft, "SupertuningConfig", None)
    if found is None:
        raise UserError(
            f"A sparse adapter is PEFT's Supertuning, which peft {peft.__version__} does not have: pip install -U "
            "peft, or let salun patch make write the change, bit for bit."
        )
    return found
