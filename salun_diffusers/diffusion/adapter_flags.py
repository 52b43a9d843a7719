"""The flags of an adapter: which go together, told before anything is loaded."""

from __future__ import annotations

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.foreseen import MADE_MASKS
from salun_diffusers.errors import UserError


def check_adapter(config: EraseConfig) -> None:
    """Refuse flags that contradict each other.

    Raises:
        UserError: Naming them.
    """
    if config.adapter == "none":
        for name in ("rank", "lora_alpha"):
            if getattr(config, name) is not None:
                raise UserError(f"--{name} is of a LoRA: --adapter lora is required with it.")
        return
    if config.objective == "l1_sparse":
        raise UserError(
            "--objective l1_sparse draws the denoiser's own weights to zero, and --adapter lora leaves them as they "
            "are; take relabel, ascent, finetune or esd."
        )
    if config.mask not in MADE_MASKS:
        raise UserError(
            f"--adapter lora moves whole layers, a mask file says single weights, got --mask {config.mask}; take one "
            f"of {', '.join(MADE_MASKS)}, which here rank the layers."
        )
    if config.mask_scope != "global":
        raise UserError("--adapter lora ranks layers against each other: leave --mask_scope at global.")
    if config.soft_threshold != "none":
        raise UserError(
            f"--soft_threshold {config.soft_threshold} weighs single weights of the denoiser, and --adapter lora moves "
            "none of them; leave one of the two out."
        )
    if config.save_patch:
        raise UserError("--save_patch says what changed in the base, and --adapter lora changes nothing in it.")
    if config.target_forget is not None:
        raise UserError(
            "--target_forget leaves a pipeline at a strength, and a LoRA's is set where it is loaded, by "
            "pipe.set_adapters(NAME, 0.8); --strength_points draws the curve that says which."
        )
