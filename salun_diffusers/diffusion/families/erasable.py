"""Which pipelines can be erased, and of all others what they are: told by their files, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.pipeline_folder import CLASS_CONDITIONAL, class_name, components

FAMILIES = {
    "StableDiffusionPipeline": "stable_diffusion.StableDiffusion",
    "StableDiffusionXLPipeline": "stable_diffusion_xl.StableDiffusionXL",
    CLASS_CONDITIONAL: "ddpm.ClassConditionalDDPM",
}
"""Module and class of the family that handles a pipeline class; a new family is entered here."""

_INPAINTING = "an inpainting model, whose network also takes a mask and a masked picture (9 channels)"
_INSTRUCT = "an instruction model, whose network also takes the picture to edit (8 channels)"
_FROM_PICTURE = (
    "a pipeline that goes on from a picture; if its weights are those of a text-to-image model, name that class as "
    "_class_name in its model_index.json"
)
_FLOW = "a transformer under flow matching, for which no family is written yet"
_OTHERS = {
    "StableDiffusionInpaintPipeline": _INPAINTING,
    "StableDiffusionInpaintPipelineLegacy": _INPAINTING,
    "StableDiffusionXLInpaintPipeline": _INPAINTING,
    "StableDiffusionInstructPix2PixPipeline": _INSTRUCT,
    "StableDiffusionXLInstructPix2PixPipeline": _INSTRUCT,
    "StableDiffusionImg2ImgPipeline": _FROM_PICTURE,
    "StableDiffusionXLImg2ImgPipeline": _FROM_PICTURE,
    "StableDiffusionDepth2ImgPipeline": "a model whose network also takes a depth map (5 channels)",
    "StableDiffusionUpscalePipeline": "an upscaler, whose network also takes the small picture (7 channels)",
    "StableDiffusionLatentUpscalePipeline": "an upscaler, whose network also takes the small picture",
    "StableUnCLIPPipeline": "a model whose network also takes an embedding of a picture",
    "StableUnCLIPImg2ImgPipeline": "a model whose network also takes an embedding of a picture",
    "LatentConsistencyModelPipeline": (
        "a consistency model, distilled to a few steps, whose network takes the guidance as an input and has no "
        "unconditional branch; erase from the model that it was distilled from"
    ),
    "StableDiffusion3Pipeline": _FLOW,
    "FluxPipeline": _FLOW,
    "AuraFlowPipeline": _FLOW,
    "SanaPipeline": _FLOW,
    "QwenImagePipeline": _FLOW,
    "PixArtAlphaPipeline": "a transformer that reads T5 states, for which no family is written yet",
    "PixArtSigmaPipeline": "a transformer that reads T5 states, for which no family is written yet",
    "HunyuanDiTPipeline": "a transformer that reads CLIP and T5 states, for which no family is written yet",
    "KandinskyV22Pipeline": "a decoder of image embeddings, whose prompts are read by another model",
    "StableCascadeDecoderPipeline": "a decoder of image embeddings, whose prompts are read by another model",
    "IFPipeline": "a cascade on pixels, for which no family is written yet",
}
_CHANNELS = {9: _INPAINTING, 8: _INSTRUCT, 7: "an upscaler", 5: "a model that also takes a depth map"}


def require_erasable(folder: Path, index: Mapping[str, Any]) -> None:
    """Refuse what no family handles.

    Args:
        folder: The pipeline; of configurations that are not there (yet) nothing is asked.
        index: Its model_index.json.

    Raises:
        UserError: What it is, and what is required.
    """
    named = class_name(dict(index))
    if named.startswith("StableDiffusionXL") and (
        index.get("requires_aesthetics_score") is True or "text_encoder" not in components(dict(index))
    ):
        raise _refusal(
            folder,
            "the refiner of Stable Diffusion XL, which has no first text encoder and goes on from another model's "
            "latents; erase from the base model, whose pictures it refines",
        )
    if named not in FAMILIES:
        what = _OTHERS.get(named, f"a {named}" if named else "a folder without a class")
        raise _refusal(folder, f"{named}: {what}" if named in _OTHERS else what)
    network = _configuration(folder / "unet" / "config.json")
    channels = network.get("in_channels")
    if named != CLASS_CONDITIONAL and channels is not None and channels != network.get("out_channels", channels):
        raise _refusal(folder, _CHANNELS.get(channels, f"a model whose network takes {channels} channels"))
    if network.get("time_cond_proj_dim") is not None:
        raise _refusal(folder, _OTHERS["LatentConsistencyModelPipeline"])


def few_steps(folder: Path) -> str:
    """A word on a model that seems to be distilled to a few steps without guidance (turbo, lightning); else empty.

    Nothing in its files says so. Such models come with an Euler scheduler whose steps are spaced from the end, without
    the zero-terminal-SNR noise that others have that for. Their network still tells ε of any x_t, and the targets are
    its own, so that it can be erased from; but guidance it has not learned.
    """
    scheduler = _configuration(folder / "scheduler" / "scheduler_config.json")
    euler = scheduler.get("_class_name") in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
    trailing = scheduler.get("timestep_spacing") == "trailing"
    plain = scheduler.get("prediction_type", "epsilon") == "epsilon" and not scheduler.get("rescale_betas_zero_snr")
    if not (euler and trailing and plain):
        return ""
    return (
        f"{folder} looks like a model distilled to a few steps without guidance (turbo, lightning); draw with it as it "
        "is meant: --scheduler own, --num_inference_steps 1 to 4 or 8, --guidance_scale 0, --saliency_guidance 0, "
        "--empty_prompt_share 0."
    )


def predicted(folder: Path, wanted: str) -> str:
    """What a denoiser predicts, for the plan.

    Args:
        folder: The pipeline.
        wanted: `--prediction_type`.
    """
    scheduler = _configuration(folder / "scheduler" / "scheduler_config.json")
    told = str(scheduler.get("prediction_type", "epsilon")) if scheduler else "what its scheduler says"
    if wanted in ("scheduler", told):
        return told
    return f"{wanted}, by --prediction_type; the scheduler's configuration says {told}, here and in the erased copy"


def _configuration(file: Path) -> dict[str, Any]:
    return read_object(file, constants=float) if file.is_file() else {}


def _refusal(folder: Path, what: str) -> UserError:
    return UserError(
        f"A text-to-image or class-conditional pipeline is required ({', '.join(FAMILIES)}); {folder} is {what}."
    )
