"""The model card of an erased pipeline, and its way to the hub.

Uploaded is the pipeline's folder, card included, and nothing else of a run: latents, checkpoints, pictures and records
never leave the machine, mask and patch only by `--publish_mask`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from salun_diffusers import __version__
from salun_diffusers.accelerator import decided_by_main
from salun_diffusers.adapters.lora_folder import WEIGHTS as LORA
from salun_diffusers.adapters.lora_folder import write_lora
from salun_diffusers.adapters.low_rank import LowRank
from salun_diffusers.diffusion.adapted_model import AdaptedModel
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.foreseen import MADE_MASKS
from salun_diffusers.diffusion.hub_flags import hub_target, look_at_target, made_of
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.settings import OWN_SCHEDULER, recorded
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.errors import UserError, tell
from salun_diffusers.files.base_card import CARD, card_of, carry_cards
from salun_diffusers.files.component_files import pipeline_files, unreadable_parts, weight_files
from salun_diffusers.files.hub_upload import upload
from salun_diffusers.files.loading import loading_line
from salun_diffusers.files.pipeline_folder import denoiser_folder, model_index, public_name
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.files.whole_files import full_disk_is_told, sha256_of, whole_folder, write_text
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.reports.model_card import CardBase, CardFacts, model_card
from salun_diffusers.reports.report import EvaluationReport

_MASK, _PATCH = "salun/mask.safetensors", "salun/patch.safetensors"
_HERE = "FOLDER"
"""What stands in a card for the folder that it lies in."""


def write_card(run: Run, request: Request, report: EvaluationReport | None, place: str = _HERE) -> None:
    """Write the card of the erased pipeline, and keep the base's beside it; the main process does.

    Args:
        run: Its folder.
        request: What was erased, and how.
        report: What was measured; None while nothing is.
        place: The repository it goes to.
    """
    if not run.main or request.model.is_held:
        return
    config, folder = request.config, run.folder.pipeline
    lora = isinstance(request.model, AdaptedModel)  # It lies beside a base whose card stays where it is.
    base = _base_of(request, run.base)
    if not lora:
        left_out = unreadable_parts(request.base, config.variant)
        base = replace(base, kept_as=carry_cards(request.base, folder), left_out=left_out)
    names = {str(folder): place}
    names |= {str(request.base): base.name if base.kind == "hub" else "BASE"} if lora else {}
    measured = report is not None
    facts = CardFacts(
        concepts=tuple(part.name for part in request.concept.parts or (request.concept,)),
        base=base,
        pipeline_class=request.class_name,
        settings=in_words(recorded(config, request.settings)),
        load=_loading(request.model.at(folder).loading_line(), names),
        made=made_of(config),
        mask_sha256=SaliencyMask.load(run.folder.mask).sha256 if measured else "",
        weights=({} if not measured else _digest_of_lora(folder) if lora else _digests(folder, config.variant)),
        mask_published=_MASK if config.publish_mask and place != _HERE else "",
        place=place,
        lora=lora,
    )
    write_text(folder / CARD, model_card(facts, report) + "\n")


def publish(run: Run, request: Request, report: EvaluationReport) -> None:
    """Upload the erased pipeline if that was asked for; the main process does.

    Raises:
        UserError: If the hub refuses; the folder is whole then, and can be uploaded later.
    """
    config = request.config
    if not config.push_to_hub:
        return

    def sent() -> str:
        place = look_at_target(config)  # Again: hours may have gone by.
        write_card(run, request, report, place.repository)
        erased = ", ".join(part.name for part in request.concept.parts or (request.concept,))
        told = f"{public_name(config.pretrained_model_name_or_path)[0]} without {erased}"
        return upload(hub_target(config), place, published(run.folder, config), told)

    try:
        address = decided_by_main(run.accelerator, sent)
    except UserError as error:
        raise UserError(
            f"{str(error).rstrip('.')}. The erased pipeline is whole in {run.folder.pipeline}; the same command with "
            f"--output_dir {run.folder.root} --resume_from_checkpoint latest tries the upload again."
        ) from error
    if run.main:
        tell("note", f"uploaded to {address}")


def published(folder: RunFolder, config: EraseConfig) -> dict[str, Path]:
    """What is uploaded of a run: name in the repository → file."""
    if config.adapter != "lora":
        files = {file.name: file.path for file in pipeline_files(folder.pipeline)}
    else:
        files = {path.name: path for path in sorted(folder.pipeline.iterdir()) if path.is_file()}
    if config.publish_mask:
        files[_MASK] = folder.mask
        if config.save_patch:
            files[_PATCH] = folder.patch
    return files


def save_erased(pipeline: Any, mask: SaliencyMask, report: EvaluationReport, folder: Path) -> None:
    """Write an erased pipeline that lies in memory as a folder with its card; it is there whole or not at all.

    Args:
        pipeline: The pipeline.
        mask: Which of its weights might move.
        report: What was measured.
        folder: A folder that is new or empty.

    Raises:
        UserError: If the folder is in use.
    """
    require_new(folder)
    name, kind = public_name(report.base)
    with full_disk_is_told("the erased pipeline"), whole_folder(folder) as partial:
        pipeline.save_pretrained(partial)
        at_hand = kind != "embedded" and (Path(report.base) / CARD).is_file()
        kept_as = carry_cards(Path(report.base), partial) if at_hand else ""
        card = card_of(report.base, Path(report.base), report.config["revision"])
        facts = CardFacts(
            concepts=(report.concept,),
            base=CardBase(name, kind, card=card, kept_as=kept_as),
            pipeline_class=type(pipeline).__name__,
            settings=in_words(report.config),
            load=_loading(loading_line(partial), {str(partial): _HERE}),
            made={"concept": [report.concept], "base": name},
            mask_sha256=mask.sha256,
            weights=_digests(partial, None),
            anew=True,
        )
        write_text(partial / CARD, model_card(facts, report) + "\n")


def save_adapter(pipeline: Any, adapter: LowRank, mask: SaliencyMask, report: EvaluationReport, folder: Path) -> None:
    """Write the LoRA of an erasure as a folder with its card; it is there whole or not at all.

    Args:
        pipeline: What it belongs to.
        adapter: The LoRA.
        mask: The layers it changes.
        report: What was measured.
        folder: A folder that is new or empty.

    Raises:
        UserError: If the folder is in use.
    """
    require_new(folder)
    name, kind = public_name(report.base)
    write_lora(folder, adapter, {"concept": report.concept, "base": name, "base_sha256": mask.recipe["base_sha256"]})
    origin = json.dumps(name if kind == "hub" else "BASE", ensure_ascii=False)
    facts = CardFacts(
        concepts=(report.concept,),
        base=CardBase(name, kind, card=card_of(report.base, Path(report.base), report.config["revision"])),
        pipeline_class=type(pipeline).__name__,
        settings=in_words(report.config),
        load=f"from diffusers import DiffusionPipeline\npipe = DiffusionPipeline.from_pretrained({origin})\n"
        f'pipe.load_lora_weights("{_HERE}", weight_name="{LORA}")',
        made={"concept": [report.concept], "base": name, "adapter": "lora"},
        mask_sha256=mask.sha256,
        weights=_digest_of_lora(folder),
        lora=True,
    )
    write_text(folder / CARD, model_card(facts, report) + "\n")


def require_new(folder: Path) -> None:
    """Refuse a folder that holds anything.

    Raises:
        UserError: If it does, or is none.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} must be empty or new: nothing is overwritten.")


def _loading(line: str, names: Mapping[str, str]) -> str:
    """The Python that loads a folder, as whoever has it elsewhere types it: with these names in place of folders."""
    for here, there in names.items():
        line = line.replace(json.dumps(here, ensure_ascii=False), json.dumps(there, ensure_ascii=False))
    return "\n".join(line.split("; "))


def _digest_of_lora(folder: Path) -> dict[str, str]:
    return {LORA: sha256_of(folder / LORA)}


def _digests(folder: Path, variant: str | None) -> dict[str, str]:
    denoiser = folder / denoiser_folder(model_index(folder), folder)
    return {f"{denoiser.name}/{file.name}": sha256_of(file) for file in weight_files(denoiser, variant)}


def _base_of(request: Request, sha256: str) -> CardBase:
    config = request.config
    name, kind = public_name(config.pretrained_model_name_or_path)
    revision = request.base.name if kind == "hub" and request.base.parent.name == "snapshots" else ""
    card = card_of(config.pretrained_model_name_or_path, request.base, config.revision)
    return CardBase(name, kind, revision, sha256, card)


def in_words(values: Mapping[str, Any]) -> dict[str, str]:
    """The settings that a reader wants to know, without prompts and without paths.

    Args:
        values: As `recorded` gives them.
    """
    plain = values["objective"] == "relabel"
    lora = values["adapter"] == "lora"
    mask = f"{values['mask_ratio']:g} ({values['mask']}, {'whole layers' if lora else values['mask_scope']})"
    scheduler = "the model's own scheduler" if values["scheduler"] == OWN_SCHEDULER else values["scheduler"]
    epochs, steps = values["num_train_epochs"], values["max_train_steps"]
    return {
        "recipe": values["recipe"] if plain else f"{values['objective']}, {values['recipe']} settings",
        **({"LoRA": f"the parameters of rank {values['rank']}, shared out by saliency"} if lora else {}),
        "mask ratio": mask if values["mask"] in MADE_MASKS else "that of a given mask",
        "trained": f"{f'{epochs} epochs' if steps is None else f'{steps} steps'}, Adam {values['learning_rate']:g} "
        f"({values['lr_scheduler']}), retain weight {values['retain_weight']:g}",
        "latents": f"{values['num_forget_images']} to forget, {values['num_anchor_images']} of anchors, "
        f"{values['num_retain_images']} to retain; {values['num_inference_steps']} steps by {scheduler}",
        "pictures a prompt in the figures": f"{values['num_validation_images']}",
        "seed": f"{values['seed']}",
        "data type of the denoiser": "the base's" if values["save_dtype"] == "base" else values["save_dtype"],
        "made with": f"salun_diffusers {__version__}",
    }
