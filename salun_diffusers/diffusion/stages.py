"""The stages of a run that leave something to take up again: latent sets and the mask."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import nn

from salun_diffusers.diffusion.batches import EraseData
from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.families import Family
from salun_diffusers.diffusion.latent_cache import Generate
from salun_diffusers.diffusion.latent_sets import LatentSet, generate_latents
from salun_diffusers.diffusion.masks import forget_saliency
from salun_diffusers.diffusion.request import MADE_MASKS
from salun_diffusers.errors import UserError, tell
from salun_diffusers.files.pipeline_folder import weight_files
from salun_diffusers.files.run_folder import RunFolder, fingerprint
from salun_diffusers.files.whole_files import full_disk_is_told
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.mask_file import JSON
from salun_diffusers.masks.saliency import Saliency
from salun_diffusers.pictures.picture_sources import load_pictures
from salun_diffusers.progress import Progress
from salun_diffusers.seeds import stream


def what_counts(config: EraseConfig) -> dict[str, Any]:
    """The settings that decide the result: not where it goes, nor how it is watched."""
    aside = {"output_dir", "resume_from_checkpoint", "dry_run", "report_to", "checkpointing_steps",
             "checkpoints_total_limit", "show_explicit", "cache_dir", "generated_data_dir"}  # fmt: skip
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in aside}


def given_mask(config: EraseConfig) -> SaliencyMask | None:
    """The mask of the user's file, or None where the run makes its own."""
    return None if config.mask in MADE_MASKS else SaliencyMask.load(Path(config.mask))


def check_fits(mask: SaliencyMask, file: str, family: Family) -> None:
    """Refuse a mask of another model, naming the file."""
    try:
        mask.matched_to(dict(family.denoiser.named_parameters()))
    except UserError as error:
        raise UserError(f"--mask {file}: {error}") from error


def warn_of_cut_words(family: Family, concept: Concept) -> None:
    """Say which words of the prompts lie beyond the tokenizer's limit."""
    for prompt in dict.fromkeys((*concept.forget_prompts, *concept.anchor_prompts, *concept.retain_prompts)):
        cut = family.cut_words(prompt)
        if cut:
            tell("warning", f"the text encoder cannot take the end of {prompt!r}; it will not see: {cut!r}")


def real_sets(family: Family, concept: Concept, config: EraseConfig) -> dict[str, LatentSet]:
    """Forget and retain set from the user's labelled pictures; empty where there are none.

    Raises:
        UserError: If a class of the model has no pictures.
    """
    if not config.train_data:
        return {}
    model: Any = getattr(family.denoiser, "config", None)
    images = load_pictures(config.train_data)[0].with_channels(model.in_channels).resized(model.sample_size)
    sets = {}
    for name, prompts, count in (
        ("forget", concept.forget_prompts, config.num_forget_images or 1),
        ("anchor", concept.anchor_prompts, config.num_anchor_images or 0),
        ("retain", concept.retain_prompts, config.num_retain_images or 1),
    ):
        missing = set(prompts) - set(images.class_names)
        if missing:
            raise UserError(
                f"--train_data must hold pictures of each of the model's classes; {config.train_data} has "
                f"{', '.join(images.class_names)}, which lacks {sorted(missing)[0]!r}."
            )
        row = torch.tensor([prompts.index(label) if label in prompts else -1 for label in images.class_names])
        of_prompt = row[images.labels]
        found = (of_prompt >= 0).nonzero().squeeze(1)
        chosen = found[torch.randperm(len(found), generator=stream(config.seed, "real", name))][:count]
        pixels = images.pixels[chosen].float() / 127.5 - 1
        sets[name] = LatentSet(pixels, of_prompt[chosen], prompts)
    return sets


def latent_sets(
    accelerator: Accelerator,
    family: Family,
    concept: Concept,
    config: EraseConfig,
    run: RunFolder,
    base: str,
    real: Mapping[str, LatentSet],
    generate: Generate,
) -> EraseData:
    """Draw the forget and the retain set, or take up those of an interrupted run, or the user's `real` ones."""
    sets = {}
    for name, prompts, count in (
        ("forget", concept.forget_prompts, config.num_forget_images or 1),
        ("anchor", concept.anchor_prompts, config.num_anchor_images or 0),
        ("retain", concept.retain_prompts, config.num_retain_images or 1),
    ):
        steps, guidance = config.num_inference_steps or 50, config.guidance_scale or 0.0
        mark = fingerprint(
            base=base, prompts=prompts, count=count, seed=config.seed, batch=config.generation_batch_size,
            steps=steps, guidance=guidance,
        )  # fmt: skip
        path = run.work / f"{name}.safetensors"
        if real or count == 0:
            sets[name] = real[name] if real else LatentSet.empty(prompts)
            continue
        if run.stage_is_done(name, mark):
            sets[name] = LatentSet.load(path)
            continue
        with (
            full_disk_is_told("the latent set"),
            Progress(f"latents, {name}", count, accelerator.is_main_process) as bar,
        ):
            sets[name] = generate_latents(
                generate, prompts, count,
                name=name, seed=config.seed, batch_size=config.generation_batch_size or 8, progress=bar.advance,
                process=(accelerator.process_index, accelerator.num_processes), wait=accelerator.wait_for_everyone,
                num_inference_steps=steps, guidance_scale=guidance,
            )  # fmt: skip
            if not sets[name].latents.isfinite().all():
                raise UserError(
                    f"The base model draws NaN or infinite latents for its {name} prompts, so there is nothing to "
                    "learn from; check its weights, or use --mixed_precision no."
                )
            if accelerator.is_main_process:
                run.work.mkdir(exist_ok=True)
                sets[name].save(path)
                run.mark_done(name, mark)
    return EraseData(
        forget=sets["forget"],
        retain=sets["retain"],
        anchor=sets["anchor"],
        forget_conditions=family.encode(concept.forget_prompts),
        anchor_conditions=family.encode(concept.anchor_prompts),
        retain_conditions=family.encode(concept.retain_prompts),
        empty=family.encode([""]),
    )


def trained_parameters(parameters: Mapping[str, nn.Parameter], method: str) -> dict[str, nn.Parameter]:
    """The parameters that a train method lets into the mask.

        xattn      cross-attention: names with attn2
        selfattn   self-attention: names with attn1, or any attention of a network that has no text to attend to
        noxattn    all but cross-attention, the time embedding and the last convolution
                   (rohitgandikota/erasing, train-esd.py, arXiv 2303.07345)

    Args:
        parameters: All parameters of the denoiser.
        method: ``full``, one of the words above, or a regular expression that is searched in the names.

    Raises:
        UserError: If no parameter is left, or the expression is none.
    """
    unconditional = not any("attn2" in name for name in parameters)
    patterns = {
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
    kept = {name: tensor for name, tensor in parameters.items() if pattern.search(name)}
    if not kept:
        raise UserError(
            f"--train_method {method} leaves no tensor to train; the denoiser's names are such as "
            f"{next(iter(parameters))}."
        )
    return kept


def make_mask(
    accelerator: Accelerator, family: Family, data: EraseData, config: EraseConfig, run: RunFolder, base: str
) -> SaliencyMask:
    """The mask of the run: of the forget loss, random, full, or from a file."""
    parameters = dict(family.denoiser.named_parameters())
    mark = fingerprint(base=base, **what_counts(config))
    if run.stage_is_done("mask", mark):
        return SaliencyMask.load(run.mask).matched_to(parameters)
    trained = trained_parameters(parameters, config.train_method)
    recipe: dict[str, JSON] = {
        "concept": config.concept,
        "base": config.pretrained_model_name_or_path,
        "base_sha256": base,
        "train_method": config.train_method,
        "seed": config.seed,
    }
    if config.mask == "saliency":
        saliency = forget_saliency(accelerator, family, trained, data, config)
        recipe |= {"guidance": config.saliency_guidance}
        mask = SaliencyMask.from_saliency(saliency, config.mask_ratio, config.mask_scope, recipe)
    elif config.mask == "magnitude":
        sizes = Saliency({name: tensor.detach().abs() for name, tensor in trained.items()})
        recipe |= {"scores": "magnitude"}
        mask = SaliencyMask.from_saliency(sizes, config.mask_ratio, config.mask_scope, recipe)
    elif config.mask == "random":
        mask = SaliencyMask.random(trained, config.mask_ratio, stream(config.seed, "mask"), config.mask_scope)
    elif config.mask == "full":
        mask = SaliencyMask.full(trained)
    else:
        mask = SaliencyMask.load(Path(config.mask)).matched_to(parameters)
        if len(trained) < len(parameters):
            mask = mask.restrict(trained.__contains__)
    mask = mask.extended_to(parameters)
    if accelerator.is_main_process:
        with full_disk_is_told("the mask"):
            mask.save(run.mask)
        run.mark_done("mask", mark)
    accelerator.wait_for_everyone()
    return mask


def save_dtype(config: EraseConfig, base: Path, denoiser: str) -> Any:
    """The data type that the denoiser is saved in."""
    if config.save_dtype != "base":
        return getattr(torch, config.save_dtype)
    with safe_open(weight_files(base / denoiser, config.variant)[0], framework="pt") as file:
        return file.get_tensor(next(iter(file.keys()))).dtype
