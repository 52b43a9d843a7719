"""What a model's files say of a request: mistakes that would else be found after hours, told before it is loaded."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from salun_diffusers.diffusion.config import SALIENCY_MASKS
from salun_diffusers.diffusion.families.attention import ATTENTION
from salun_diffusers.diffusion.global_batch import GlobalBatch
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.errors import UserError
from salun_diffusers.files.component_files import weight_files
from salun_diffusers.files.json_files import parse_json, read_object
from salun_diffusers.files.whole_files import check_whole

MADE_MASKS = (*SALIENCY_MASKS, "random", "full", "magnitude")
_SCORED = tuple(mask for mask in MADE_MASKS if mask != "full")
_BYTES_OF_A_WEIGHT = 12  # of a checkpoint: itself and Adam's two moments, in fp32
_BYTES_BESIDE = 4  # of an average, or of the way of a simulated attacker


@dataclass(frozen=True)
class DiskSpace:
    """Bytes that a run will have written at most.

    Args:
        result: The erased pipeline and the work files.
        checkpoint: One checkpoint.
        checkpoints: How many lie there at once.
    """

    result: int
    checkpoint: int
    checkpoints: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.result + self.checkpoint * self.checkpoints

    def __str__(self) -> str:
        kept = f"{self.checkpoints} checkpoint{'' if self.checkpoints == 1 else 's'} of {self.checkpoint / 1e9:.3g} GB"
        return f"about {self.total / 1e9:.3g} GB, in it {kept}"


def at_most(settings: Settings, concepts: int) -> Settings:
    """The settings with the ratio that a mask may have at most: of a union of k masks k times that of each.

    Args:
        settings: Of the run.
        concepts: How many it forgets.
    """
    if settings.scales_updates:
        return replace(settings, mask_ratio=1.0)  # Every weight with a score may move in some step.
    if not settings.scored or settings.concept_masks != "union" or concepts == 1:
        return settings
    return replace(settings, mask_ratio=min(1.0, concepts * settings.mask_ratio))


def disk_space(copy: int, selected: int, settings: Settings) -> DiskSpace:
    """What a run needs.

    Args:
        copy: Bytes of the erased pipeline.
        selected: Weights that may move.
        settings: Of the run.
    """
    batch = GlobalBatch.of(settings, int(os.environ.get("WORLD_SIZE", "1")))
    steps = settings.length.steps(settings.num_forget_images + settings.num_anchor_images, batch.size)
    written = max(1, steps // settings.checkpointing_steps)  # A short run writes one at its end.
    beside = settings.use_ema + (settings.robust in ("relearning", "both"))
    checkpoint = selected * (_BYTES_OF_A_WEIGHT + _BYTES_BESIDE * beside)
    # An old one goes when the new one is safe.
    whole = 4 * selected if settings.searched else 0  # Of the whole change, beside a weaker one.
    return DiskSpace(2 * copy + whole, checkpoint, int(min(written, settings.checkpoints_total_limit + 1)))


def check_foreseen(
    denoiser: Path,
    scheduler: Path,
    settings: Settings,
    variant: str | None,
    concepts: int = 1,
    counts: Mapping[str, int] | None = None,
) -> int:
    """Check settings against the headers of the denoiser's weights and the scheduler's configuration.

    Args:
        denoiser: The denoiser's folder.
        scheduler: The scheduler's folder.
        settings: Of the run.
        variant: Variant of the weight files.
        concepts: How many the run forgets.
        counts: Weights of each tensor, of a denoiser that has no files.

    Returns:
        How many weights may move at most.

    Raises:
        UserError: If no weight can be selected, the user's mask has none in common with the model, or sampling takes
            more steps than there are timesteps.
    """
    if settings.by_probability and settings.mask not in _SCORED:
        raise UserError(
            f"--soft_threshold {settings.soft_threshold} makes the mask from scores, got --mask {settings.mask}, which "
            f"has none: use one of {', '.join(_SCORED)}, or --soft_threshold proximal."
        )
    shapes = counts if counts is not None else _stored_counts(denoiser, variant)
    kind = read_object(denoiser / "config.json", constants=float).get("_class_name")
    names = trained_names(shapes, settings.train_method, ATTENTION.get(str(kind), {}))
    sizes = [shapes[name] for name in names]
    if settings.mask not in MADE_MASKS:
        selected = _selected_in_file(settings.mask, names, denoiser)
    elif settings.mask == "full":
        selected = sum(sizes)
    else:
        parts = sizes if settings.mask_scope == "per_tensor" else [sum(sizes)]
        selected = sum(int(settings.mask_ratio * part) for part in parts)
        if not selected:
            raise UserError(
                f"--mask_ratio {settings.mask_ratio:g} selects no weight of the {sum(sizes):,} in question "
                f"(--train_method {settings.train_method}, --mask_scope {settings.mask_scope})."
            )
        selected = sum(int(at_most(settings, concepts).mask_ratio * part) for part in parts)
    file = scheduler / "scheduler_config.json"
    timesteps = (
        read_object(file, constants=float).get("num_train_timesteps", 1000)
        if file.is_file()
        else settings.num_inference_steps
    )
    if not isinstance(timesteps, int) or isinstance(timesteps, bool) or not 1 <= timesteps <= 1_000_000:
        raise UserError(f"{file} must say a number of timesteps up to 1,000,000, found {str(timesteps)[:40]!r}.")
    if settings.num_inference_steps > timesteps:
        raise UserError(
            f"--num_inference_steps must be at most {timesteps}, as many timesteps as the model has; got "
            f"{settings.num_inference_steps}."
        )
    return selected


def parameters_of_rank(denoiser: Path, variant: str | None, rank: int) -> int:
    """Parameters of a LoRA of one rank on every matrix and convolution in a denoiser's weight files.

    Args:
        denoiser: The denoiser's folder.
        variant: Variant of its weight files.
        rank: r; a layer has r · (out + in · height · width) of them.
    """
    shapes = (
        entry["shape"]
        for file in weight_files(denoiser, variant)
        for name, entry in check_whole(file).items()
        if name.endswith(".weight") and name != "__metadata__"
    )
    return sum(rank * (shape[0] + math.prod(shape[1:])) for shape in shapes if len(shape) in (2, 4))


def _stored_counts(denoiser: Path, variant: str | None) -> dict[str, int]:
    return {
        name: math.prod(entry["shape"])
        for file in weight_files(denoiser, variant)
        for name, entry in check_whole(file).items()
        if name != "__metadata__"
    }


def _selected_in_file(mask: str, names: Iterable[str], denoiser: Path) -> int:
    """Weights that a mask file selects in some tensors: the ones among its bits."""
    try:
        header = check_whole(Path(mask))
        told = set(parse_json(header["__metadata__"]["shapes"].encode()))
        common = told & set(names)
        selected = 0
        with Path(mask).open("rb") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")
            for name in common & header.keys():
                first, end = header[name]["data_offsets"]
                stream.seek(start + first)
                selected += int.from_bytes(stream.read(end - first), "little").bit_count()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise UserError(f"--mask: {error}") from error
        raise UserError(f"--mask {mask} is no mask file: its header has no shapes.") from error
    if not common:
        raise UserError(f"--mask {mask} has no tensor in common with {denoiser}: it is of another model.")
    return selected


def trained_names(names: Iterable[str], method: str, attention: Mapping[str, str]) -> list[str]:
    """The tensors that a train method lets into the mask.

    Args:
        names: Of all tensors of the denoiser.
        method: ``full``, a word that the denoiser knows (`Denoiser.attention`), or a regular expression that is
            searched in the names.
        attention: Those words, with their expressions.

    Raises:
        UserError: If no tensor is left, or the expression is none.
    """
    known = list(names)
    patterns: Mapping[str, str] = {"full": "", **attention}
    try:
        pattern = re.compile(patterns.get(method, method))
    except re.error as error:
        raise UserError(
            f"--train_method must be one of {', '.join(patterns)}, or a regular expression; {method!r}: {error}."
        ) from error
    kept = [name for name in known if pattern.search(name)]
    if not kept:
        raise UserError(
            f"--train_method {method} leaves no tensor to train; the denoiser's names are such as "
            f"{next(iter(known), 'none')}."
        )
    return kept
