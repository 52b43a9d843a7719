"""An erasure from top to bottom, in the reader's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from salun_diffusers.accelerator import decided_by_main
from salun_diffusers.diffusion.collateral import draw_collateral
from salun_diffusers.diffusion.latent_set import LatentSet
from salun_diffusers.diffusion.latent_sets import latent_sets
from salun_diffusers.diffusion.moved_weights import weights_to_move
from salun_diffusers.diffusion.publishing import publish, write_card
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.run_report import Outcome, write_report
from salun_diffusers.diffusion.sampler import Sampler, sampler_of_base, sampler_of_erased
from salun_diffusers.diffusion.saving import remove_explicit_latents, verify_erased, write_erased
from salun_diffusers.diffusion.start import load_family, started
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.diffusion.strength import reported_curve, restored, settle_strength
from salun_diffusers.diffusion.trainer import fine_tune, read_metrics, training_steps
from salun_diffusers.diffusion.training_checkpoints import checkpoint_to_resume
from salun_diffusers.diffusion.validation import draw_pictures
from salun_diffusers.diffusion.validation_pictures import watcher
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.reports.measurement import Measurement
from salun_diffusers.reports.report import EvaluationReport

Examined = Callable[[RunFolder], Sequence[Measurement]]
"""Looks once more at the erased pipeline that a run has written, and says what it measured."""


def not_examined(_folder: RunFolder) -> Sequence[Measurement]:
    """Nobody looks."""
    return ()


def run_erasure(
    request: Request, command: str, examined: Examined = not_examined
) -> tuple[RunFolder, EvaluationReport]:
    """Carry out a request; returns the run's folder and its report.

    Args:
        request: What is to be done.
        command: As it was typed.
        examined: Called on the main process when the erased pipeline is there; the report has what it measured.

    Raises:
        UserError: If it cannot be carried out.
        ReceiptError: If a written weight differs from the base's where the mask forbids it.
    """
    concept = request.concept
    with started(request, command) as (run, family, real, detector):
        # Let the base draw.
        sampler = sampler_of_base(family, request, run)
        with run.stage("pictures before"):
            before = draw_pictures(sampler, concept, "before")
            beside = draw_collateral(sampler, request, "before")
        if not run.has_erased:
            _erase(run, request, sampler, real)
        # Nothing of the base and of the training stays beside the erased model.
        del family, sampler
        run.accelerator.free_memory()

        # As strong as needed and no stronger; check what was written, look at it.
        curve = settle_strength(run, request, detector)
        mask, history = SaliencyMask.load(run.folder.mask), read_metrics(run.folder.root / "metrics.jsonl")
        with run.stage("save and verify"):
            receipt = verify_erased(run, request, mask)
        with run.stage("pictures after"):
            erased = load_family(run.accelerator, request, run.folder.pipeline)
            sampler = sampler_of_erased(erased, request, run)
            after = draw_pictures(sampler, concept, "after")
            collateral = beside, draw_collateral(sampler, request, "after")
        curve = curve or reported_curve(run, request, detector, erased)
        del erased, sampler
        run.accelerator.free_memory()
        attacked: tuple[Measurement, ...] = ()
        if examined is not not_examined:  # Else it is no stage of the run.
            with run.stage("red team"):
                attacked = decided_by_main(run.accelerator, lambda: tuple(examined(run.folder)))
        outcome = Outcome(before, after, mask, receipt, history, curve, collateral, attacked)
        report = write_report(run, request, detector, outcome)
        write_card(run, request, report)
        remove_explicit_latents(run, request)
        publish(run, request, report)
    return run.folder, report


def _erase(run: Run, request: Request, sampler: Sampler, real: Mapping[str, LatentSet]) -> None:
    """Make the erased pipeline. What the training holds in memory ends with this function.

    Raises:
        UserError: If a stage cannot be carried out.
    """
    if restored(run, request):
        return
    family, settings = sampler.family, request.settings
    with run.stage("latent sets"):
        data = latent_sets(sampler, request.concept, real, request.own)
        watch = watcher(sampler, request)
    family.release_encoders()

    # Find the weights that carry the concept.
    with run.stage("saliency and mask"):
        selected = weights_to_move(run, request, family, data)

    # Let only those move.
    checkpoint = checkpoint_to_resume(run, request, training_steps(settings, data, run.processes.count))
    with run.stage("fine-tuning"):
        fine_tune(run, family, selected, data, settings, checkpoint, watch)
    with run.stage("save and verify"):
        write_erased(run, request, family)
