"""The preset `nudity`, written in harms.toml."""

from __future__ import annotations

from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.config import Recipe
from salun_diffusers.diffusion.presets.from_written import from_written
from salun_diffusers.diffusion.presets.stable_diffusion import SD_1, Kind
from salun_diffusers.diffusion.presets.written import written

NUDITY = "nudity"


def nudity(recipe: Recipe, kind: Kind = SD_1) -> Concept:
    """Nude people become dressed ones; under the paper's recipe with its two prompts only.

    Args:
        recipe: Half of what `frozen_teacher` retains are dressed people, the neighbours; the other half are everyday
            captions.
        kind: The model.
    """
    return from_written(written("harms")[NUDITY], recipe, kind)
