"""What a model's files say of a request: mistakes that would else be found after hours, told before it is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.errors import UserError
from salun_diffusers.files.component_files import weight_files
from salun_diffusers.files.json_files import parse_json, read_object
from salun_diffusers.files.whole_files import check_whole

MADE_MASKS = ("saliency", "random", "full", "magnitude")


def check_foreseen(denoiser: Path, scheduler: Path, settings: Settings, variant: str | None) -> None:
    """Check settings against the headers of the denoiser's weights and the scheduler's configuration.

    Args:
        denoiser: The denoiser's folder.
        scheduler: The scheduler's folder.
        settings: Of the run.
        variant: Variant of the weight files.

    Raises:
        UserError: If no weight can be selected, the user's mask has none in common with the model, or sampling takes
            more steps than there are timesteps.
    """
    shapes = {
        name: math.prod(entry["shape"])
        for file in weight_files(denoiser, variant)
        for name, entry in check_whole(file).items()
        if name != "__metadata__"
    }
    names = trained_names(shapes, settings.train_method)
    sizes = [shapes[name] for name in names]
    if settings.mask in MADE_MASKS and settings.mask != "full":
        parts = sizes if settings.mask_scope == "per_tensor" else [sum(sizes)]
        if not any(int(settings.mask_ratio * part) for part in parts):
            raise UserError(
                f"--mask_ratio {settings.mask_ratio:g} selects no weight of the {sum(sizes):,} in question "
                f"(--train_method {settings.train_method}, --mask_scope {settings.mask_scope})."
            )
    elif settings.mask not in MADE_MASKS:
        try:
            told = set(parse_json(check_whole(Path(settings.mask))["__metadata__"]["shapes"].encode()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise UserError(f"--mask: {error}") from error
            raise UserError(f"--mask {settings.mask} is no mask file: its header has no shapes.") from error
        if not told & set(names):
            raise UserError(f"--mask {settings.mask} has no tensor in common with {denoiser}: it is of another model.")
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


def trained_names(names: Iterable[str], method: str) -> list[str]:
    """The tensors that a train method lets into the mask.

        xattn      cross-attention: names with attn2
        selfattn   self-attention: names with attn1, or any attention of a network that has no text to attend to
        noxattn    all but cross-attention, the time embedding and the last convolution
                   (rohitgandikota/erasing, train-esd.py, arXiv 2303.07345)

    Args:
        names: Of all tensors of the denoiser.
        method: ``full``, one of the words above, or a regular expression that is searched in the names.

    Raises:
        UserError: If no tensor is left, or the expression is none.
    """
    known = list(names)
    unconditional = not any("attn2" in name for name in known)
    patterns: Mapping[str, str] = {
        "full": "",
        "xattn": r"attn2",
        "selfattn": r"attentions?\." if unconditional else r"attn1",
        "noxattn": r"^(?!.*(attn2|time_embed|conv_out))",
    }
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
