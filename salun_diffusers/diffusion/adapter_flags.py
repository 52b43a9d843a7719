"""The flags of an adapter: which go together, told before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.families.attention import ATTENTION
from salun_diffusers.diffusion.foreseen import MADE_MASKS, trained_names
from salun_diffusers.errors import UserError


def check_adapter(config: EraseConfig) -> None:
    """Refuse flags that contradict each other.

    Raises:
        UserError: Naming them.
    """
    if config.adapter == "sparse":
        from salun_diffusers.adapters.sparse import require_supertuning  # imports torch

        require_supertuning()
        if config.save_dtype != "base":
            raise UserError(
                f"--adapter sparse adds to weights of the base's data type: leave --save_dtype at base, got "
                f"{config.save_dtype}."
            )
    if config.adapter != "lora":
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


def require_linear(base: Path, train_method: str) -> None:
    """Refuse a sparse adapter of tensors that PEFT carries no exact change of.

    Args:
        base: Folder of the base.
        train_method: Which tensors may move.

    Raises:
        UserError: Naming the first that is no weight of a linear layer.
    """
    from torch import nn

    from salun_diffusers.adapters.difference import blank_denoiser

    network = blank_denoiser(base)
    linear = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    names = trained_names(dict(network.named_parameters()), train_method, ATTENTION.get(type(network).__name__, {}))
    others = [name for name in names if name not in linear]
    if others:
        raise UserError(
            f"--adapter sparse is for weights of linear layers, of which alone PEFT carries an exact change, and "
            f"--train_method {train_method} lets {len(others)} other tensors move, such as {others[0]}. Take "
            r'--train_method "attn\d\.to_(q|k|v)\.weight", or --save_patch, which holds every change, bit for bit.'
        )
