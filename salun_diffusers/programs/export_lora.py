"""What an erasure changed, as a LoRA: small, taken on and off by diffusers, WebUI and ComfyUI.

    salun export lora RUN FOLDER --rank 16
    salun export lora ERASED FOLDER --base BASE --rank 16
    salun export lora RUN FOLDER --format kohya

Of each linear layer and convolution that moved the closest change of --rank is kept (singular values). Norms, biases
and whatever is of higher rank are lost: `lora.json` in the folder says how much of ‖Δθ‖² per layer and in all, and of a
run how often its detector finds the concept without the change, with it, and with the LoRA. The exact change is that of
`salun patch`. Of a run with --adapter lora its own LoRA is written, without loss.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from salun_diffusers.arguments import setting
from salun_diffusers.errors import UserError, tell
from salun_diffusers.files.run_source import RunSource
from salun_diffusers.programs.erased_source import ErasedSource, Variants, base_and_erased, new_output
from salun_diffusers.programs.program import Program

if TYPE_CHECKING:
    from salun_diffusers.adapters.low_rank import LowRank

RANK = 16


@dataclass(frozen=True)
class ExportLoraConfig(ErasedSource):
    """What is written, and of what."""

    rank: int | None = setting(None, "Rank of each layer's change; 16 by default.", minimum=1, maximum=4096)
    format: Literal["peft", "kohya"] = setting(
        "peft", "peft: for diffusers; kohya: by the names of WebUI and ComfyUI, which diffusers reads, too."
    )
    save_dtype: Literal["float32", "float16", "bfloat16"] = setting("float32", "Data type of the LoRA.")
    rates: Literal["auto", "off"] = setting(
        "auto", "auto: of a run, draw its report's pictures with the LoRA and let its detector look."
    )


def work(config: ExportLoraConfig, command: str) -> str:
    """Write the LoRA and its record; say what it lacks."""
    output, run = new_output(config), RunSource.found(config.erased)
    if run is not None and run.adapter is not None:
        if config.rank is not None:
            raise UserError(f"{config.erased} has a LoRA of its own, with ranks by saliency: leave --rank out.")
        return _written_anew(config, run.adapter, output)
    folders, variants = base_and_erased(config, run, output, "A LoRA")
    return _from_difference(config, output, folders, variants, run, command)


def _from_difference(
    config: ExportLoraConfig,
    output: Path,
    folders: tuple[Path, Path],
    variants: Variants,
    run: RunSource | None,
    command: str,
) -> str:
    """Write the closest LoRA to what differs between two pipelines."""
    import torch

    from salun_diffusers.adapters.difference import lora_between
    from salun_diffusers.adapters.lora_folder import write_lora
    from salun_diffusers.files.run_folder import identity_of

    rank = RANK if config.rank is None else config.rank
    lora, lacks = lora_between(*folders, rank, variants)
    lora = lora.to(getattr(torch, config.save_dtype))
    record: dict[str, Any] = {
        "made": "singular values",
        "rank": rank,
        "dtype": config.save_dtype,
        "base_sha256": identity_of(folders[0]),
        "erased_sha256": identity_of(folders[1]),
        "parameters": lora.number_of_parameters,
        **dataclasses.asdict(lacks),
    }
    if run is not None and config.rates == "auto":
        record |= _rates(run, lora, command)
    file = write_lora(output, lora, record, config.format)
    left = f", {lacks.left_out_share:.2%} of it in {len(lacks.left_out)} norms and biases" if lacks.left_out else ""
    return (
        f"{len(lora)} layers, {file.stat().st_size / 1e6:.3g} MB: {file}\n"
        f"lacks {lacks.error:.2%} of the squared change{left}\n{_told(record)}"
    )


def _rates(run: RunSource, lora: LowRank, command: str) -> dict[str, Any]:
    """What the run's detector finds, where there is one and its request can still be carried out."""
    from salun_diffusers.adapters.lora_folder import write_lora
    from salun_diffusers.diffusion.lora_rates import lora_rates

    with TemporaryDirectory(prefix="salun-") as scratch:
        write_lora(Path(scratch) / "lora", lora, {})
        try:
            return lora_rates(run, Path(scratch) / "lora", command)
        except UserError as error:
            tell("note", f"rates were not measured, as the run can no longer be taken up: {error}")
            return {}


def _told(record: dict[str, Any]) -> str:
    """Rates and drift, a line each."""
    lines = []
    for kind, shown in (("rates", ".1%"), ("drift", ".4g")):
        for row in record.get(kind, ()):
            sides = ", ".join(f"{side} {row[side]:{shown}}" for side in ("base", "erased", "lora") if side in row)
            lines.append(f"{row['name']}: {sides} (n = {row['n']})\n")
    return "".join(lines)


def _written_anew(config: ExportLoraConfig, adapter: Path, output: Path) -> str:
    """Write a run's own LoRA by the names and in the data type that are wanted."""
    import torch

    from salun_diffusers.adapters.lora_folder import RECORD, read_lora, write_lora
    from salun_diffusers.files.json_files import read_object

    lora = read_lora(adapter).to(getattr(torch, config.save_dtype))
    known = read_object(adapter / RECORD) if (adapter / RECORD).is_file() else {}
    beside = ("format", "version", "layout", "file", "bytes")
    record = {name: value for name, value in known.items() if name not in beside} | {"dtype": config.save_dtype}
    file = write_lora(output, lora, record, config.format)
    return f"{len(lora)} layers, {file.stat().st_size / 1e6:.3g} MB: {file}\n"


main = Program("export lora", ExportLoraConfig, work, __doc__ or "")
