"""Erase a concept from a diffusion pipeline.

The concept's prompts give latent sets; the noise loss on the forget set ranks the weights; the most salient ones are
fine-tuned until the prompts mean something harmless, and nothing else moves. The run folder holds a pipeline that
`from_pretrained` loads, the mask, and a report that shows before and after.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.request import Request, accept, prompts
from salun_diffusers.errors import ReceiptError, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from salun_diffusers.diffusion.families import Family
    from salun_diffusers.diffusion.latent_sets import LatentSet
    from salun_diffusers.evaluation.detectors import Detector
    from salun_diffusers.files.run_folder import RunFolder
    from salun_diffusers.masks.mask import SaliencyMask
    from salun_diffusers.progress import Clock
    from salun_diffusers.reports.report import EvaluationReport


@dataclass(frozen=True)
class EraseResult:
    """What an erasure leaves.

    Args:
        pipeline: The erased pipeline, loaded as `from_pretrained` loads it.
        mask: Which weights were allowed to move.
        report: Measurements, receipt and verdict.
        folder: The run folder, or None if the run was not asked to leave one.
    """

    pipeline: Any
    mask: SaliencyMask
    report: EvaluationReport
    folder: Path | None


def erase(config: EraseConfig) -> EraseResult:
    """Erase a concept and return the erased pipeline, the mask and the report.

    Args:
        config: What to forget and how. Without `output_dir` nothing is left on disk.

    Raises:
        UserError: If the request cannot be carried out; known before any heavy work where that is possible.

    Example:
        >>> from salun_diffusers import EraseConfig, erase
        >>> result = erase(EraseConfig(concept="circle", pretrained_model_name_or_path="demo"))  # doctest: +SKIP
        >>> result.report.verdict  # doctest: +SKIP
        'erased'
    """
    from salun_diffusers.diffusion.families import load_pipeline
    from salun_diffusers.masks.mask import SaliencyMask

    if config.dry_run:
        raise UserError("dry_run is for the program, which prints its plan; erase() always erases. Leave it False.")
    with tempfile.TemporaryDirectory(prefix="salun-") as scratch:
        folder = config.output_dir or str(Path(scratch) / "run")
        run, report = run_erasure(dataclasses.replace(config, output_dir=folder))
        pipeline = load_pipeline(run.pipeline, config.variant)
        return EraseResult(pipeline, SaliencyMask.load(run.mask), report, run.root if config.output_dir else None)


def run_erasure(config: EraseConfig, command: str = "") -> tuple[RunFolder, EvaluationReport]:
    """The whole run, top to bottom: what `erase` and the program share.

    Args:
        config: What to forget and how.
        command: The command line, for the record.

    Returns:
        The run folder and the report.

    Raises:
        UserError: As for `erase`.
    """
    request = accept(config)
    config = request.config

    # Heavy imports wait until everything that is quickly known is known.
    import torch
    from accelerate.utils import set_seed

    from salun_diffusers.accelerator import decided_by_main, engine, start_tracker
    from salun_diffusers.diffusion.stages import check_fits, given_mask, real_sets, warn_of_cut_words, what_counts
    from salun_diffusers.files.run_folder import RunFolder, check_output, fingerprint, identity_of, open_run, under_way
    from salun_diffusers.progress import Clock

    make_family, detector = _parts(request)
    given = given_mask(config)
    clock = Clock({})
    with engine(
        mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.gradient_accumulation_steps,
        report_to=config.report_to,
    ) as accelerator:  # fmt: skip
        if config.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        base_identity = identity_of(request.base)
        identity = fingerprint(
            base=base_identity, processes=accelerator.num_processes, precision=accelerator.mixed_precision,
            prompts=prompts(request.concept), given_mask=given.sha256 if given else None, **what_counts(config),
        )  # fmt: skip

        def choose() -> str:
            check_output(config.output_dir, config.resume_from_checkpoint, identity)
            return ""

        decided_by_main(accelerator, choose)
        set_seed(config.seed)
        precision = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
        load_family = partial(
            make_family, device=accelerator.device, variant=config.variant,
            dtype=precision if accelerator.device.type != "cpu" else torch.float32,
        )  # fmt: skip
        # The base is loaded before the run folder is made: a model that cannot be used leaves nothing behind.
        with clock.stage("load"):
            family = load_family(request.base)
            if given:
                check_fits(given, config.mask, family)
            real = real_sets(family, request.concept, config)
            if accelerator.is_main_process:
                warn_of_cut_words(family, request.concept)

        def prepare() -> str:
            details = f"{config.recipe}-{'given' if given else config.mask}-{config.mask_ratio:g}"
            run = open_run(
                config.output_dir, request.concept.name, details,
                resume=config.resume_from_checkpoint, identity=identity,
            )  # fmt: skip
            run.write_json("config.json", {**dataclasses.asdict(config), "concept_prompts": prompts(request.concept)})
            return str(run.root)

        run = RunFolder(Path(decided_by_main(accelerator, prepare)))
        with under_way(run):
            start_tracker(accelerator, run.root)
            report = _carry_out(
                accelerator, run, request, family, load_family, real,
                detector=detector, base_identity=base_identity, clock=clock, command=command,
            )  # fmt: skip
    return run, report


def _parts(request: Request) -> tuple[Callable[..., Family], Detector]:
    """What the model and the concept ask for beyond torch: a family that knows the pipeline, and the detector."""
    from salun_diffusers.diffusion.families import family_of
    from salun_diffusers.evaluation.detectors import make_detector

    wanted = "none" if request.config.detector == "none" else request.concept.detector
    return family_of(request.class_name), make_detector(wanted)


def _carry_out(
    accelerator: Accelerator,
    run: RunFolder,
    request: Request,
    family: Family,
    load_family: Callable[..., Family],
    real: Mapping[str, LatentSet],
    *,
    detector: Detector,
    base_identity: str,
    clock: Clock,
    command: str,
) -> EvaluationReport:
    """The stages of a run in its folder."""
    import torch

    from salun_diffusers.diffusion.baselines import make_objective
    from salun_diffusers.diffusion.latent_cache import kept_in
    from salun_diffusers.diffusion.run_report import write_report
    from salun_diffusers.diffusion.stages import latent_sets, make_mask, save_dtype
    from salun_diffusers.diffusion.trainer import fine_tune
    from salun_diffusers.diffusion.validation import draw_samples
    from salun_diffusers.files.checkpoint import latest_checkpoint
    from salun_diffusers.files.run_folder import identity_of, named_checkpoint, write_pipeline
    from salun_diffusers.files.whole_files import full_disk_is_told
    from salun_diffusers.masks.patch import patch_between
    from salun_diffusers.masks.selected_weights import SelectedWeights

    config, concept, base, main = request.config, request.concept, request.base, accelerator.is_main_process

    # Let the base draw.
    precision = str(accelerator.mixed_precision)
    kept = Path(config.generated_data_dir) if config.generated_data_dir else run.work / "drawn"
    generate = kept_in(kept, family.generate, pipeline=base_identity, precision=precision)
    shared: Mapping[str, Any] = {
        "process": (accelerator.process_index, accelerator.num_processes), "wait": accelerator.wait_for_everyone,
    }  # fmt: skip
    with clock.stage("latent sets"):
        data = latent_sets(accelerator, family, concept, config, run, base_identity, real, generate)
    with clock.stage("pictures before"):
        before = tuple(
            draw_samples(family, generate, prompts, config, f"before, {name}", main, **shared)
            for name, prompts in (("forget", concept.forget_evaluation), ("retain", concept.retain_evaluation))
        )
    family.release_encoders()

    # Find the weights that carry the concept.
    with clock.stage("saliency and mask"):
        mask = make_mask(accelerator, family, data, config, run, base_identity)
        selected = SelectedWeights(dict(family.denoiser.named_parameters()), mask)

    # Let only those move.
    objective = make_objective(config)
    checkpoint = latest_checkpoint(run.root) if config.resume_from_checkpoint == "latest" else None
    if config.resume_from_checkpoint not in (None, "latest"):
        checkpoint = named_checkpoint(run.root, str(config.resume_from_checkpoint))
    with clock.stage("fine-tuning"):
        history = fine_tune(
            accelerator, family, selected, data, objective, config, folder=run.root, resume_from=checkpoint
        )

    # Write, check what was written, look at it.
    with clock.stage("save and verify"):
        if main:
            dtype = save_dtype(config, base, family.denoiser_folder)
            save: Mapping[str, Any] = {"variant": config.variant, "safe_serialization": True}
            torch.nn.Module.to(family.denoiser, dtype)  # diffusers' own `to` warns of a list that is empty here.
            write_pipeline(base, run.pipeline, family.denoiser, name=family.denoiser_folder, save=save)
            if config.save_patch:
                with full_disk_is_told("the patch"):
                    patch_between(base, run.pipeline, config.variant).save(run.patch)
        accelerator.wait_for_everyone()
        receipt = _receipt(base, run, mask, config)
    with clock.stage("pictures after"):
        family = load_family(run.pipeline)
        generate = kept_in(run.work / "drawn", family.generate, pipeline=identity_of(run.pipeline), precision=precision)
        after = tuple(
            draw_samples(family, generate, samples.prompts, config, f"after, {name}", main, **shared)
            for name, samples in zip(("forget", "retain"), before, strict=True)
        )
    report = write_report(
        run, concept=concept, config=config, detector=detector, before=before, after=after, mask=mask,
        receipt=receipt, history=history, clock=clock.seconds, command=command, write=main,
    )  # fmt: skip
    accelerator.end_training()
    return report


def _receipt(base: Path, run: RunFolder, mask: SaliencyMask, config: EraseConfig) -> Any:
    from salun_diffusers.masks.receipt import compare

    receipt = compare(base, run.pipeline, mask, config.variant)
    if not receipt.holds:
        raise ReceiptError(f"The mask receipt failed, do not use {run.pipeline}: {receipt.sentence()}")
    return receipt
