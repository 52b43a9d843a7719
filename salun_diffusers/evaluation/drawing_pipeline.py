"""A pipeline that draws: loaded, with its scheduler, and asked before anything is drawn what it can do."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.component_files import unreadable_parts
from salun_diffusers.files.component_weights import check_components
from salun_diffusers.files.loading import load_folder
from salun_diffusers.files.pipeline_folder import CLASS_CONDITIONAL, model_index, refuse_own_code
from salun_diffusers.progress import loading_quietly

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load_pipeline(
    folder: Path, *, device: torch.device, dtype: torch.dtype, variant: str | None, scheduler: str | None
) -> DiffusionPipeline:
    """Load a local pipeline folder: of any class that diffusers knows, or this package's class-conditional one.

    Safety checkers are left out: a picture that they blacken would count as harmless, whatever the model drew.

    Args:
        folder: A diffusers folder.
        device: Where it runs.
        dtype: Of its weights.
        variant: Variant of the weight files.
        scheduler: Name of a diffusers scheduler class that replaces the pipeline's, or None.

    Raises:
        UserError: If it cannot be loaded, or there is no such scheduler.
    """
    import diffusers

    from salun_diffusers.pipelines.class_conditional_ddpm import ClassConditionalDDPMPipeline

    index = model_index(folder)
    # A folder that names another file for the class carries code, which `load_folder` refuses.
    module = ClassConditionalDDPMPipeline.__module__.rpartition(".")[2]
    keywords: dict[str, Any] = dict.fromkeys(unreadable_parts(folder, variant))
    if "safety_checker" in index:
        keywords |= {"safety_checker": None, "requires_safety_checker": False}
    if str(index.get("_class_name")).startswith("StableDiffusionXL"):
        keywords["add_watermarker"] = False  # It would be part of what is measured.
    pipe: Any
    try:  # Weights that are missing are seen as late as where the pipeline is moved.
        with loading_quietly():
            if index.get("_class_name") in (CLASS_CONDITIONAL, [module, CLASS_CONDITIONAL]):
                pipe = ClassConditionalDDPMPipeline.from_pretrained(
                    folder, dtype=None if dtype == torch.float32 else dtype, variant=variant, use_safetensors=True
                )
            else:
                refuse_own_code(folder)
                check_components(folder, variant)
                pipe = load_folder(
                    diffusers.DiffusionPipeline, folder, dtype=dtype, variant=variant, use_safetensors=True, **keywords
                )
            pipe = pipe.to(device)
    except (OSError, ValueError, AttributeError, TypeError, KeyError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder} cannot be loaded as a diffusers pipeline: {one_line(error, 300)}") from error
    if scheduler:
        replace_scheduler(pipe, scheduler)
    pipe.set_progress_bar_config(disable=True)
    loaded: DiffusionPipeline = pipe
    return loaded


def scheduler_class(name: str, flag: str = "--scheduler") -> Any:
    """A scheduler of diffusers by the name of its class.

    Args:
        name: Of the class.
        flag: Name of the setting, for messages.

    Raises:
        UserError: If there is none.
    """
    import diffusers

    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if kind is None:
        raise UserError(
            f"{flag} must be the name of a diffusers class such as DDIMScheduler or LMSDiscreteScheduler, got {name!r}."
        )
    return kind


def replace_scheduler(pipe: Any, name: str, flag: str = "--scheduler") -> None:
    """Let another scheduler draw, with the settings of the pipeline's own: its noise and what its network predicts.

    Args:
        pipe: A pipeline.
        name: Of a class of diffusers.
        flag: Name of the setting, for messages.

    Raises:
        UserError: If there is none, or it does not go with the pipeline.
    """
    kind = scheduler_class(name, flag)
    own = pipe.scheduler
    try:
        pipe.scheduler = kind.from_config(own.config)
    except ImportError as error:  # LMSDiscreteScheduler, for one, needs scipy.
        raise UserError(f"{flag} {name} needs a package: {one_line(error, 160)}") from error
    except Exception as error:  # What a scheduler's settings may not be, each says in an error of its own.
        raise _unfit(own, f"{flag} {name}", error) from error
    # A pipeline calls what its own scheduler has.
    for needed in ("scale_model_input", "init_noise_sigma", "set_timesteps", "step"):
        if hasattr(own, needed) and not hasattr(pipe.scheduler, needed):
            raise _unfit(own, f"{flag} {name}", f"it has no {needed}")


def _unfit(own: Any, asked: str, reason: object) -> UserError:
    fitting = sorted(kind.__name__ for kind in getattr(own, "compatibles", []))
    return UserError(
        f"{asked} does not go with a pipeline of {type(own).__name__} ({one_line(reason, 160)}); one that "
        f"does is required: {', '.join(fitting[:8]) or 'the pipeline’s own'}."
    )


def require_steps(
    pipe: Any, steps: int, flag: str = "--num_inference_steps", scheduler_flag: str = "--scheduler"
) -> None:
    """Let the scheduler do one step of `steps`, so that what it cannot do is known before anything is drawn.

    Schedulers of flow models are left alone: theirs depend on the size.

    Args:
        pipe: A pipeline.
        steps: Of a picture.
        flag: Name of the setting that says it, for messages.
        scheduler_flag: Name of the one that says the scheduler.

    Raises:
        UserError: If it cannot.
    """
    if not hasattr(pipe.scheduler, "scale_model_input"):
        return
    try:
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        scheduler.set_timesteps(steps)
        noise = torch.zeros(1, 4, 2, 2) * scheduler.init_noise_sigma
        time = scheduler.timesteps[0]
        scheduler.step(scheduler.scale_model_input(noise, time), time, noise)
    except Exception as error:  # Each scheduler says it in an error of its own.
        raise UserError(
            f"{flag} {steps} cannot be done by {type(pipe.scheduler).__name__} "
            f"({one_line(error, 160)}); choose other steps or another {scheduler_flag}."
        ) from error


def describe_scheduler(pipe: Any) -> dict[str, Any]:
    """Class and settings of a pipeline's scheduler, as JSON; infinity, which JSON lacks, becomes a word."""
    config = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    described: dict[str, Any] = json.loads(json.dumps(config, default=str), parse_constant=str)
    return {"class": type(pipe.scheduler).__name__, **described}


def is_class_conditional(pipe: Any) -> bool:
    """Whether prompts are names of classes."""
    return type(pipe).__name__ == CLASS_CONDITIONAL


def require_prompts(pipe: Any, prompts: Sequence[str]) -> None:
    """Refuse prompts that a class-conditional pipeline has no class for.

    Raises:
        UserError: Naming the first.
    """
    if is_class_conditional(pipe):
        unknown = next((prompt for prompt in prompts if prompt not in pipe.labels), None)
        if unknown is not None:
            raise UserError(
                f"--prompts must be names of the model's classes ({', '.join(pipe.labels)}), got {unknown[:80]!r}."
            )


def drawn_size(pipe: Any, height: int | None, width: int | None) -> tuple[int | None, int | None]:
    """Height and width that a pipeline will draw, where they are known before.

    diffusers takes its own size for both where one is missing; here the missing one alone is the pipeline's own.

    Args:
        pipe: A pipeline.
        height: What the user asks for, or None.
        width: The same.

    Raises:
        UserError: If it cannot draw that size.
    """
    own = _own_size(pipe)
    if "height" not in inspect.signature(type(pipe).__call__).parameters:
        for name, asked, has in (("height", height, own[0]), ("width", width, own[1])):
            if asked not in (None, has):
                raise UserError(
                    f"--{name} must be {has or 'left out'}, since {type(pipe).__name__} draws one size only; got "
                    f"{asked}."
                )
        return own
    if (height is None) != (width is None) and None in own:
        raise UserError(f"--height and --width are required together: the size of {type(pipe).__name__} is not known.")
    step = math.lcm(8, int(getattr(pipe, "vae_scale_factor", 8) or 8))
    for name, asked in (("height", height), ("width", width)):
        if asked is not None and asked % step:
            lower = asked // step * step
            raise UserError(
                f"--{name} must be a multiple of {step} for {type(pipe).__name__}, got {asked}; the next ones are "
                f"{f'{lower} and ' if lower else ''}{lower + step}."
            )
    return height or own[0], width or own[1]


def _own_size(pipe: Any) -> tuple[int | None, int | None]:
    """Height and width of a pipeline's own pictures."""
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    sample = getattr(pipe, "default_sample_size", None) or getattr(
        getattr(denoiser, "config", None), "sample_size", None
    )
    factor = 1 if is_class_conditional(pipe) else int(getattr(pipe, "vae_scale_factor", 1) or 1)
    if isinstance(sample, int):
        return sample * factor, sample * factor
    if isinstance(sample, list | tuple) and len(sample) == 2 and all(isinstance(side, int) for side in sample):
        return sample[0] * factor, sample[1] * factor
    return None, None
