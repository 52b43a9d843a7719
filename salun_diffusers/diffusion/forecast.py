"""What a run would cost, for `--dry_run`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import astuple
from typing import cast

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion.collateral_prompts import collateral_count
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.fitting import DRIVER, fitting
from salun_diffusers.diffusion.foreseen import at_most
from salun_diffusers.diffusion.model_shape import ModelShape
from salun_diffusers.diffusion.probe import Probed, probe
from salun_diffusers.diffusion.quick_peaks import QuickPeaks
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.row_forwards import row_forwards
from salun_diffusers.diffusion.stage_peaks import Precision, StagePeaks
from salun_diffusers.diffusion.start import load_family
from salun_diffusers.errors import UserError
from salun_diffusers.files.hub_size import download_size, fetch_configurations
from salun_diffusers.files.pipeline_folder import is_local
from salun_diffusers.files.single_file import is_single_file


def precision_of(config: EraseConfig) -> Precision:
    """The precision of a run: the user's, or what `accelerate launch` was told."""
    told = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return cast(Precision, told) if told in ("fp16", "bf16") else "no"


def forecast(request: Request, probed: Probed | None) -> str:
    """What a run would cost, in lines.

    Args:
        request: The run.
        probed: Rates measured on this machine, if they were.
    """
    return "".join(f"{line}\n" for line in _lines(request, probed))


def measured(request: Request) -> Probed | None:
    """The rates of this machine, where the model is at hand and a probe is asked for.

    Raises:
        UserError: If the stages do not fit.
    """
    config = request.config
    if config.probe != "on" or not is_local(config.pretrained_model_name_or_path):
        return None
    accumulation = request.settings.gradient_accumulation_steps
    with engine(
        mixed_precision=config.mixed_precision, gradient_accumulation_steps=accumulation, report_to=None
    ) as accelerator:
        return probe(accelerator, load_family(accelerator, request, request.base), request)


def _lines(request: Request, probed: Probed | None) -> Iterator[str]:
    config, settings = request.config, request.settings
    precision, name = precision_of(config), config.pretrained_model_name_or_path
    at_hand = is_local(name) or is_single_file(name)
    if not at_hand:
        fetch_configurations(name, request.base, config.revision, config.cache_dir)
    try:
        model = QuickPeaks(ModelShape.of(request.base, settings.resolution))
        yield _memory(model.peaks(at_most(settings, request.concept.groups), precision))
        if config.vram is not None:
            fit = fitting(model, settings, precision, config.vram)
            flags = " ".join(fit.flags) or "no further flag"
            answer = f"fits with {flags}" if fit.fits else f"does not fit, not even with {flags}"
            yield f"vram      {config.vram:g} GB: {answer} ({fit.peaks.most / 1e9 + DRIVER:.1f} GB)"
    except UserError as error:
        yield f"memory    not known: {error}"
    yield f"time      {_time(request, probed)}"
    if not at_hand:
        size = download_size(
            name, request.base, revision=config.revision, variant=config.variant, cache_dir=config.cache_dir
        )
        here = size is None and request.disk is not None  # A hub that does not answer need not.
        yield f"download  {_gigabytes(0 if here else size)}"


def _memory(peaks: StagePeaks) -> str:
    drawing, decoding, saliency, training, static = (value / 1e9 for value in astuple(peaks))
    stages = f"drawing {drawing:.1f}, decoding {decoding:.1f}, " + (f"saliency {saliency:.1f}, " if saliency else "")
    return (
        f"memory    {peaks.most / 1e9 + DRIVER:.1f} GB of a GPU: {stages}fine-tuning {training:.1f} (of which "
        f"{static:.1f} throughout), and {DRIVER:g} for its driver"
    )


def _time(request: Request, probed: Probed | None) -> str:
    """Seconds of each stage of one process from the rates that a probe measured."""
    if probed is None:
        return "not known; --probe on loads the model and measures its rate on this machine"
    stages = row_forwards(
        request.concept,
        request.settings,
        probed.scheduler,
        real_pictures=bool(request.config.train_data),
        own_pictures=request.own.count,
        collateral=collateral_count(request.concept, request.config),
    )
    seconds = {
        stage.stage: stage.rows * (probed.gradient_row_seconds if stage.gradient else probed.row_seconds)
        for stage in stages
    }
    parts = ", ".join(f"{name} {_duration(value)}" for name, value in seconds.items() if value)
    return f"about {_duration(sum(seconds.values()))} on this machine: {parts}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _gigabytes(size: int | None) -> str:
    if size is None:
        return "of a size that the hub does not tell"
    return (
        "nothing, all is in the cache"
        if size == 0
        else f"{size / 1e9:.1f} GB"
        if size > 5e7
        else f"{size / 1e6:.0f} MB"
    )
