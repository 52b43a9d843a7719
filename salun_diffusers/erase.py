"""Erase a concept from a diffusion pipeline.

    accelerate launch erase.py --concept nudity
    accelerate launch erase.py --concept circle --pretrained_model_name_or_path demo

The concept's prompts give latent sets; the noise loss on the forget set ranks the weights; the most salient ones are
fine-tuned until the prompts mean something harmless, and nothing else moves. The run folder holds a pipeline that
`from_pretrained` loads, the mask, and a report that shows before and after.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salun_diffusers.arguments import check, parse
from salun_diffusers.base_model import locate, model_index
from salun_diffusers.diffusion.concepts import Concept, resolve
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets import find_concept
from salun_diffusers.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from salun_diffusers.mask import SaliencyMask
    from salun_diffusers.report import EvaluationReport
    from salun_diffusers.run_folder import RunFolder


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


@dataclass
class _Clock:
    """Seconds per stage, for the report."""

    seconds: dict[str, float]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 2)


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
    from diffusers import DiffusionPipeline

    from salun_diffusers.mask import SaliencyMask

    with tempfile.TemporaryDirectory(prefix="salun-") as scratch:
        folder = config.output_dir or str(Path(scratch) / "run")
        run, report = run_erasure(dataclasses.replace(config, output_dir=folder))
        pipeline = DiffusionPipeline.from_pretrained(run.pipeline, variant=config.variant, local_files_only=True)
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
    check(config)
    concept = find_concept(config)
    config = resolve(config, concept)
    base = locate(
        config.pretrained_model_name_or_path,
        revision=config.revision, variant=config.variant, cache_dir=config.cache_dir,
    )  # fmt: skip
    index = model_index(base)

    # Heavy imports wait until everything that is quickly known is known.
    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    from salun_diffusers.diffusion.families import family_of
    from salun_diffusers.diffusion.objectives import PromptSwap
    from salun_diffusers.diffusion.stages import (
        latent_sets,
        make_mask,
        named_checkpoint,
        save_dtype,
        warn_of_cut_words,
        what_counts,
    )
    from salun_diffusers.diffusion.trainer import fine_tune, latest_checkpoint
    from salun_diffusers.diffusion.validation import draw_samples
    from salun_diffusers.evaluation.detectors import make_detector
    from salun_diffusers.run_folder import fingerprint, identity_of, open_run, require_space, size_of, write_pipeline
    from salun_diffusers.selected_weights import SelectedWeights

    make_family = family_of(str(index.get("_class_name", "")))
    detector = make_detector("none" if config.detector == "none" else concept.detector)
    accelerator = Accelerator(
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        mixed_precision=config.mixed_precision, log_with=config.report_to, project_dir=config.output_dir,
    )  # fmt: skip
    _refuse_unsupported(accelerator)
    if config.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    base_identity = identity_of(base)
    identity = fingerprint(base=base_identity, **what_counts(config))
    details = f"{config.recipe}-{config.mask}-{config.mask_ratio:g}"
    run = open_run(
        config.output_dir, concept.name, details, resume=config.resume_from_checkpoint, identity=identity
    )  # fmt: skip
    require_space(run.root, 2 * size_of(base), "The erased pipeline with its work files")
    run.write_json("config.json", {**dataclasses.asdict(config), "concept_prompts": _prompts(concept)})
    clock = _Clock({})
    main = accelerator.is_main_process

    # Load the base and let it draw.
    set_seed(config.seed)
    precision = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
    with clock.stage("load"):
        family = make_family(
            base, device=accelerator.device, dtype=precision if accelerator.device.type != "cpu" else torch.float32,
            variant=config.variant,
        )  # fmt: skip
        warn_of_cut_words(family, concept)
    with clock.stage("latent sets"):
        data = latent_sets(accelerator, family, concept, config, run, base_identity)
    with clock.stage("pictures before"):
        before = tuple(
            draw_samples(family, prompts, config, f"before, {name}", main)
            for name, prompts in (("forget", concept.forget_evaluation), ("retain", concept.retain_evaluation))
        )
    family.release_encoders()

    # Find the weights that carry the concept.
    with clock.stage("saliency and mask"):
        mask = make_mask(accelerator, family, data, config, run, base_identity)
        selected = SelectedWeights(dict(family.denoiser.named_parameters()), mask)

    # Let only those move.
    paper = config.recipe == "paper"
    objective = PromptSwap(
        retain_weight=config.retain_weight or 0.0,
        teacher="current" if paper else "base", retain_target="noise" if paper else "base",
    )  # fmt: skip
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
        accelerator.wait_for_everyone()
        receipt = _receipt(base, run, mask, config)
    with clock.stage("pictures after"):
        family = make_family(run.pipeline, device=accelerator.device, dtype=precision, variant=config.variant)
        after = tuple(
            draw_samples(family, samples.prompts, config, f"after, {name}", main)
            for name, samples in zip(("forget", "retain"), before, strict=True)
        )
    from salun_diffusers.diffusion.run_report import write_report

    report = write_report(
        run, concept=concept, config=config, detector=detector, before=before, after=after, mask=mask,
        receipt=receipt, history=history, clock=clock.seconds, command=command, write=main,
    )  # fmt: skip
    accelerator.end_training()
    return run, report


def _prompts(concept: Concept) -> dict[str, Any]:
    return {
        "forget": list(concept.forget_prompts),
        "anchor": list(concept.anchor_prompts),
        "retain": list(concept.retain_prompts),
    }


def _refuse_unsupported(accelerator: Accelerator) -> None:
    from accelerate.utils import DistributedType

    supported = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if accelerator.distributed_type not in supported:
        raise UserError(
            f"accelerate is configured for {accelerator.distributed_type.value}; one process or DDP is required, since "
            "the mask needs whole parameters. Run `accelerate launch --multi_gpu …` or `--num_processes 1`."
        )


def _receipt(base: Path, run: RunFolder, mask: SaliencyMask, config: EraseConfig) -> Any:
    from salun_diffusers.verify import compare

    receipt = compare(base, run.pipeline, mask, config.variant)
    if not receipt.holds:
        raise RuntimeError(f"The mask receipt failed, do not use {run.pipeline}: {receipt.sentence()}")
    return receipt


def _quieten_hosts() -> None:
    """Leave the terminal to this program's bars; warnings and errors of the libraries still show."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def _plan(config: EraseConfig, concept: Concept, base: Path) -> str:
    """What a run would do, for `--dry_run`."""
    lines = [
        json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False),
        f"base      {base}",
        f"forget    {len(concept.forget_prompts)} prompts, first: {concept.forget_prompts[0]!r}",
        f"anchor    {len(concept.anchor_prompts)} prompts, first: {concept.anchor_prompts[0]!r}",
        f"retain    {len(concept.retain_prompts)} prompts, first: {concept.retain_prompts[0]!r}",
        f"draw      {config.num_forget_images} + {config.num_retain_images} latents of "
        f"{config.num_inference_steps} steps",
        f"mask      {config.mask}, ratio {config.mask_ratio:g}, saliency guidance {config.saliency_guidance:g}",
        f"fine-tune {config.max_train_steps or f'{config.num_train_epochs} epoch(s)'}"
        f"{' steps' if config.max_train_steps else ''}, batch {config.train_batch_size} + {config.train_batch_size}, "
        f"Adam {config.learning_rate:g} ({config.lr_scheduler}), retain weight {config.retain_weight:g}, "
        f"{config.recipe}",
        f"report    detector {concept.detector}, {config.num_validation_images} pictures per prompt",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The program: 0 when done, 2 on a user's mistake, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = "accelerate launch erase.py " + shlex.join(words)
    folder = "the run folder"
    try:
        _quieten_hosts()
        config = parse(EraseConfig, words, description=(__doc__ or ""))
        if config.dry_run:
            concept = find_concept(config)
            base = locate(config.pretrained_model_name_or_path, revision=config.revision, cache_dir=config.cache_dir)
            model_index(base)
            sys.stdout.write(_plan(resolve(config, concept), concept, base))
            return 0
        folder = config.output_dir or "the newest folder in runs/"
        started = datetime.datetime.now()
        run, report = run_erasure(config, command)
        seconds = (datetime.datetime.now() - started).seconds
        sys.stdout.write(
            f"\n{report.verdict}: {report.verdict_reason}\n"
            f"pipeline  {run.pipeline}\nreport    {run.root / 'report.html'}\ntook      {seconds} s\n"
        )
        return 0
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(
            f"\ninterrupted: finished stages and checkpoints are kept in {folder}; "
            "the same command with --resume_from_checkpoint latest goes on from there.\n"
        )
        return 130


if __name__ == "__main__":
    sys.exit(main())
