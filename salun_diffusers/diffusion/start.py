"""How a run starts: its engine, its base model and its folder, and all that can be refused before a stage begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from salun_diffusers.accelerator import decided_by_main, engine, made_by_main, sampling_dtype, start_trackers
from salun_diffusers.diffusion.base_model import Loading
from salun_diffusers.diffusion.earlier import EARLIER, earlier_records
from salun_diffusers.diffusion.encoding import require_room
from salun_diffusers.diffusion.families.erasable import few_steps, predicted
from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.latent_set import LatentSet
from salun_diffusers.diffusion.latent_sets import real_sets
from salun_diffusers.diffusion.masks import given_masks
from salun_diffusers.diffusion.out_of_memory import out_of_memory_is_told
from salun_diffusers.diffusion.presets.everyday import captions
from salun_diffusers.diffusion.probe import probe, probe_is_wanted, told
from salun_diffusers.diffusion.request import Request, prompts
from salun_diffusers.diffusion.settings import OWN_SCHEDULER, Settings, recorded
from salun_diffusers.diffusion.sharding import refuse_unshardable
from salun_diffusers.diffusion.stage_marks import Sources, run_mark, stage_marks
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.errors import UserError, tell
from salun_diffusers.evaluation.detectors import Detector, make_detector
from salun_diffusers.evaluation.drawing_pipeline import replace_scheduler, require_steps
from salun_diffusers.files.run_folder import RunFolder, check_output, open_run, under_way
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.progress import Clock

_MOST_WARNINGS = 10  # Captions of pictures may be thousands.


def load_family(accelerator: Accelerator, request: Request, folder: Path) -> Family:
    """Load the request's model, or the one erased from it, for a run's device and precision and with its scheduler.

    Args:
        accelerator: Of the run.
        request: Its model and settings.
        folder: Of the base, or where the erased pipeline was written; a model in memory knows it by that name.
    """
    settings = request.settings
    loading = Loading(
        accelerator.device, sampling_dtype(accelerator), settings.prediction_type, settings.resolution
    )  # fmt: skip
    family = request.model.at(folder).family(request.class_name, loading)
    if request.settings.scheduler != OWN_SCHEDULER:
        replace_scheduler(family.pipe, request.settings.scheduler)
        require_steps(family.pipe, request.settings.num_inference_steps)
    return family


@contextmanager
def started(request: Request, command: str) -> Iterator[tuple[Run, Family, Mapping[str, LatentSet], Detector | None]]:
    """Start a run: its engine, its detector, its base model, its folder.

    Both models are loaded before the folder is made: one that cannot be used leaves nothing behind.

    Args:
        request: What is to be done.
        command: The command as typed.

    Yields:
        The run, the base model, latent sets of the user's own pictures where there are any, and on the main process,
        which alone measures, the detector.

    Raises:
        UserError: If the request cannot be carried out.
    """
    config, settings, concept = request.config, request.settings, request.concept
    given = given_masks(settings)
    clock = Clock({})
    with engine(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        report_to=config.report_to,
        device=request.model.device,
    ) as accelerator:
        if config.enable_xformers_memory_efficient_attention and accelerator.is_main_process:
            tell("note", "--enable_xformers_memory_efficient_attention changes nothing: attention is torch's (SDPA).")
        if config.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        refuse_unshardable(accelerator, settings)
        detector = made_by_main(accelerator, lambda: make_detector(request.detector))
        base = decided_by_main(accelerator, request.model.identity)
        about = run_mark(base, concept, settings)
        decided_by_main(accelerator, lambda: check_output(config.output_dir, config.resume_from_checkpoint, about))
        set_seed(settings.seed)
        with clock.stage("load"), out_of_memory_is_told(config):
            family = load_family(accelerator, request, request.base)
            for mask in given:
                _require_fit(mask, settings.mask, family)
            require_empty_prompt(family, settings)
            real = real_sets(family, concept, settings, config.train_data)
            require_room(family, request.own)
            if accelerator.is_main_process:
                _warn_of_cut_words(family, request)
                _note_kind(request)
            if probe_is_wanted(request, accelerator, sum(map(torch.numel, family.denoiser.parameters()))):
                probed = probe(accelerator, family, request)
                if accelerator.is_main_process:
                    tell("note", told(probed, accelerator.device))
        sources = decided_by_main(
            accelerator,
            lambda: Sources(
                base,
                config.variant,
                tuple(mask.sha256 for mask in given),
                {name: pictures.sha256 for name, pictures in real.items()} | request.own.marks,
                accelerator.num_processes,
                detector.protocol if detector else "",
            ),
        )
        marks = stage_marks(concept, settings, sources)
        root = Path(decided_by_main(accelerator, lambda: _open(request, about, bool(given))))
        folder = RunFolder(root, request.model.result)
        with under_way(folder), out_of_memory_is_told(config, folder.root), ExitStack() as held:
            decided_by_main(accelerator, lambda: held.enter_context(folder.held()))
            logs = folder.root / config.logging_dir
            start_trackers(accelerator, logs, config.tracker_project_name, recorded(config, settings))
            run = Run(accelerator, folder, clock, base, marks, command, not request.model.is_held)
            handed_over = [family]
            del family  # Whoever takes it decides when it is freed.
            yield run, handed_over.pop(), real, detector
            accelerator.end_training()


def _open(request: Request, mark: str, given: bool) -> str:
    """Make or take up the run's folder, and write down the settings."""
    config, settings, concept = request.config, request.settings, request.concept
    details = f"{settings.recipe}-{'given' if given else settings.mask}-{settings.mask_ratio:g}"
    folder = open_run(
        config.output_dir, concept.name, details, resume=config.resume_from_checkpoint, identity=mark
    )  # fmt: skip
    if concept.explicit:
        folder.work.mkdir(exist_ok=True)
        folder.work.chmod(0o700)
    before = earlier_records(request.base)
    told = {"concept_prompts": prompts(concept), **request.own.recorded(), **({EARLIER: before} if before else {})}
    folder.write_json("config.json", {**recorded(config, settings), **told, "explicit_concept": concept.explicit})
    return str(folder.root)


def _require_fit(mask: SaliencyMask, file: str, family: Family) -> None:
    """Refuse a mask of another model, naming the file."""
    try:
        mask.matched_to(dict(family.denoiser.named_parameters()))
    except UserError as error:
        raise UserError(f"--mask {file}: {error}") from error


def require_empty_prompt(family: Family, settings: Settings) -> None:
    """Refuse settings that ask the unconditional branch of a family that has none.

    Raises:
        UserError: Naming the first.
    """
    if family.has_empty_prompt:
        return
    if settings.objective == "esd":
        raise UserError(f"--objective esd needs the prediction without a prompt, which {family.folder} does not have.")
    for name in ("saliency_guidance", "empty_prompt_share"):
        if getattr(settings, name):
            raise UserError(
                f"{family.folder} has no prediction without a prompt (its guidance is distilled): --{name} 0 is "
                f"required, got {getattr(settings, name):g}."
            )


def _note_kind(request: Request) -> None:
    """Say what is unusual about the model, and which concepts the words are taken for, if several."""
    if parts := request.concept.parts:
        tell("note", f"{len(parts)} concepts: {', '.join(repr(part.name) for part in parts)}.")
    if few := few_steps(request.base):
        tell("note", few)
    if request.settings.prediction_type != "scheduler":
        tell("note", f"the network predicts {predicted(request.base, request.settings.prediction_type)}.")


def _warn_of_cut_words(family: Family, request: Request) -> None:
    """Say which words of the user's prompts lie beyond the tokenizer's limit."""
    cuts = 0
    drawn = (prompt for _, prompts, count in request.concept.sets(request.settings) for prompt in prompts[:count])
    for prompt in dict.fromkeys((*drawn, *request.concept.anchor_prompts[: request.settings.num_forget_images])):
        cut = "" if prompt in captions() else family.cut_words(prompt)
        cuts += bool(cut)
        if cut and cuts <= _MOST_WARNINGS:
            tell("warning", f"the text encoder cannot take the end of {prompt!r}; it will not see: {cut!r}")
    if cuts > _MOST_WARNINGS:
        tell("warning", f"nor can it take the end of {cuts - _MOST_WARNINGS} other prompts.")
