"""The mask receipt: does an erased pipeline differ from its base only where the mask allows it?

    salun verify BASE ERASED --mask FILE

ERASED may be a folder with the LoRA that a run trained: it must change layers of the mask only, on the base of the run.
Exit code 0 if every weight outside the mask is bit-identical and every other file is the base's, 1 if not, 2 if the
question cannot be answered (a folder or file is missing or foreign). Whoever has no mask compares everything beside the
denoiser, and sees how much of it moved, by `--mask full`, which lets all of its weights move.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from salun_diffusers.arguments import setting, word
from salun_diffusers.errors import UserError
from salun_diffusers.files.pipeline_folder import denoiser_folder, locate, model_index
from salun_diffusers.files.single_file import find_model
from salun_diffusers.programs.program import Program

if TYPE_CHECKING:
    from salun_diffusers.masks.mask import SaliencyMask

FULL = "full"


@dataclass(frozen=True)
class VerifyConfig:
    """What is compared with what."""

    base: str = word("The base pipeline: a folder, a single file, a hub id, `demo` or `digits`.")
    erased: str = word("The erased pipeline: a folder or a hub id.")
    mask: str = setting("", "Mask file of the run; full: any weight of the denoiser may differ, all else may not.")
    revision: str | None = setting(None, "Revision of the erased pipeline on the hub.")
    base_revision: str | None = setting(None, "Revision of the base on the hub.")
    variant: str | None = setting(None, "Variant of the erased pipeline's weight files, such as fp16.")
    base_variant: str | None = setting(None, "Variant of the base's weight files, if it is not that of --variant.")
    cache_dir: str | None = setting(None, "Where downloaded pipelines are kept.")
    single_file_config: str | None = setting(None, "For a single file: folder or hub id with its configurations.")


def work(config: VerifyConfig, command: str) -> tuple[str, int]:
    """Compare; a line per block, then whether the receipt holds."""
    if not config.mask:
        raise UserError("--mask is required: the mask file of the run (see --help).")
    from salun_diffusers.adapters.lora_folder import WEIGHTS as LORA
    from salun_diffusers.diffusion.adapted_model import AdaptedModel
    from salun_diffusers.diffusion.base_model import FolderModel
    from salun_diffusers.masks.mask import SaliencyMask
    from salun_diffusers.masks.receipt import compare

    if config.mask != FULL:
        mask = SaliencyMask.load(Path(config.mask).expanduser())
    variants = (config.variant if config.base_variant is None else config.base_variant, config.variant)
    base = find_model(
        config.base,
        revision=config.base_revision,
        variant=variants[0],
        cache_dir=config.cache_dir,
        single_file_config=config.single_file_config,
    )
    erased = locate(config.erased, revision=config.revision, variant=variants[1], cache_dir=config.cache_dir)
    lora = (erased / LORA).is_file()
    if config.mask == FULL:
        mask = _all_of(base, variants[0], _base_of(erased) if lora else "")
    if lora:
        receipt = AdaptedModel(FolderModel(base, variants[0])).receipt(erased, mask)
    else:
        receipt = compare(base, erased, mask, variants)
    lines = [
        f"{block.block:<24} {block.moved / block.weights:7.2%} of {block.weights:>12,} weights moved\n"
        for block in receipt.blocks
    ]
    verdict = "ok" if receipt.holds else "FAILED"
    return "".join(lines) + f"{verdict}: {receipt.sentence()}\n", 0 if receipt.holds else 1


def _base_of(folder: Path) -> str:
    """Which base the record beside a LoRA says it was trained on; empty where it says nothing."""
    from salun_diffusers.adapters.lora_folder import RECORD
    from salun_diffusers.files.json_files import read_object

    record = folder / RECORD
    return str(read_object(record).get("base_sha256", "")) if record.is_file() else ""


def _all_of(folder: Path, variant: str | None, base_sha256: str) -> SaliencyMask:
    """The mask that lets all weights of a pipeline's denoiser move."""
    from salun_diffusers.files.stored_weights import stored_weights
    from salun_diffusers.masks.mask import SaliencyMask

    denoiser = folder / denoiser_folder(model_index(folder), folder)
    shapes = {name: tensor.shape for name, tensor in stored_weights(denoiser, variant)}
    return SaliencyMask.full(shapes, {"base_sha256": base_sha256})


main = Program("verify", VerifyConfig, work, __doc__ or "")
