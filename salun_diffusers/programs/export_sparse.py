"""What an erasure changed, entry by entry, as an adapter of PEFT: for erasures that moved linear layers alone.

    salun export sparse RUN FOLDER
    salun export sparse ERASED FOLDER --base BASE

`PeftModel.from_pretrained(pipe.unet, FOLDER)` of peft loads it, and `merge_and_unload()` of that is the erased network.
PEFT has sparse changes of linear layers only (Supertuning): where convolutions, norms or biases moved, as they do
unless --train_method keeps to such weights, this is refused; `salun patch` holds every change, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from salun_diffusers.errors import UserError
from salun_diffusers.files.run_source import RunSource
from salun_diffusers.programs.erased_source import ErasedSource, base_and_erased, new_output
from salun_diffusers.programs.program import Program


@dataclass(frozen=True)
class ExportSparseConfig(ErasedSource):
    """What is written, and of what."""


def work(config: ExportSparseConfig, command: str) -> str:
    """Write the adapter and its record."""
    output, run = new_output(config), RunSource.found(config.erased)
    if run is not None and run.adapter is not None:
        raise UserError(f"{config.erased} made a LoRA, which is not sparse; salun export lora writes it.")
    folders, variants = base_and_erased(config, run, output, "A sparse adapter")
    from salun_diffusers.adapters.sparse import export_sparse, require_supertuning

    require_supertuning()
    change = export_sparse(*folders, output, variants)
    size = (output / "adapter_model.safetensors").stat().st_size
    rounded = f", {change.not_exact:,} of them off by a rounding" if change.not_exact else ", exactly"
    return f"{change.number_moved:,} weights of {len(change.places)} layers{rounded}, {size / 1e6:.3g} MB: {output}\n"


main = Program("export sparse", ExportSparseConfig, work, __doc__ or "")
