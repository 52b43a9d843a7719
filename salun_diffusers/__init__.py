"""Make a diffusion model forget a concept: SalUn for diffusers.

from salun_diffusers import EraseConfig, erase

result = erase(EraseConfig(concept="circle", pretrained_model_name_or_path="demo"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from salun_diffusers.diffusion.config import EraseConfig
    from salun_diffusers.diffusion.erase import EraseResult, erase
    from salun_diffusers.errors import UserError
    from salun_diffusers.masks.mask import SaliencyMask
    from salun_diffusers.masks.saliency import Saliency, gradient_saliency
    from salun_diffusers.masks.selected_weights import SelectedWeights
    from salun_diffusers.pipelines.class_conditional_ddpm import ClassConditionalDDPMPipeline

_HOMES = {
    "ClassConditionalDDPMPipeline": "pipelines.class_conditional_ddpm",
    "EraseConfig": "diffusion.config",
    "EraseResult": "diffusion.erase",
    "Saliency": "masks.saliency",
    "SaliencyMask": "masks.mask",
    "SelectedWeights": "masks.selected_weights",
    "UserError": "errors",
    "erase": "diffusion.erase",
    "gradient_saliency": "masks.saliency",
}

__all__ = [
    "ClassConditionalDDPMPipeline",
    "EraseConfig",
    "EraseResult",
    "Saliency",
    "SaliencyMask",
    "SelectedWeights",
    "UserError",
    "erase",
    "gradient_saliency",
]
__version__ = "0.1.0"

# `python -m salun_diffusers.erase`, `.verify` and `.patch` were commands before there was `salun`: they lie apart.
__path__.append(f"{__path__[0]}/programs/former")


def __getattr__(name: str) -> Any:
    """Import on first use: `python erase.py --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, for tab completion."""
    return sorted([*__all__, "__version__"])
