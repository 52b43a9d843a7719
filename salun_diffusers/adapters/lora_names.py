"""What a LoRA's tensors are called: by PEFT, as diffusers saves it, and by kohya's scripts, as WebUI and ComfyUI read.

PEFT keeps ``lora_A`` and ``lora_B`` by the path of the layer. The conversion of diffusers' own training scripts
(`convert_state_dict_to_diffusers`) gives linear layers and convolutions different names, of which loading takes one
kind and drops the other with no more than a warning; these names here are PEFT's, unconverted.

kohya's are the path with underscores, ``lora_down``, ``lora_up`` and ``alpha``. diffusers attributes alphas that differ
to layers of attention by a name that they do not have, and loses them: here all are one number, and ``lora_up`` makes
up for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from salun_diffusers.adapters.low_rank import Factors, LowRank

DOWN, UP = ".lora_A.weight", ".lora_B.weight"
PREFIX = "unet."
# Of XL, whose names in diffusers' own style diffusers does not read back; these are the original's.
_ORIGINAL = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}


def peft_tensors(lora: LowRank) -> dict[str, Tensor]:
    """Tensors by PEFT's names, without a prefix."""
    return {
        f"{name}{ending}": tensor
        for name, one in lora.items()
        for ending, tensor in ((DOWN, one.down), (UP, one.up))
    }  # fmt: skip


def from_peft(tensors: Mapping[str, Tensor]) -> LowRank:
    """What `peft_tensors` gave, with diffusers' prefix or without.

    Raises:
        KeyError: If a layer has only one of both tensors.
    """
    found = {}
    for name, down in tensors.items():
        if name.endswith(DOWN):
            path = name.removesuffix(DOWN)
            found[path.removeprefix(PREFIX)] = Factors(down, tensors[f"{path}{UP}"])
    return LowRank(found)


def peft_settings(lora: LowRank) -> dict[str, Any]:
    """Arguments of PEFT's `LoraConfig` that any version of it knows; α = r in every layer."""
    others = {name: one.rank for name, one in lora.items() if one.rank != lora.rank}
    return {
        "r": lora.rank,
        "lora_alpha": lora.rank,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "target_modules": list(lora),
    }


def kohya_tensors(lora: LowRank) -> dict[str, Tensor]:
    """Tensors by kohya's names; the scale of each layer, α/r, is taken out of ``lora_up``."""
    alpha, found = lora.rank, {}
    for name, one in lora.items():
        called = f"lora_unet_{_ORIGINAL.get(name, name).replace('.', '_')}"
        found[f"{called}.lora_down.weight"] = one.down
        found[f"{called}.lora_up.weight"] = (one.up * (one.rank / alpha)).to(one.up.dtype)
        found[f"{called}.alpha"] = torch.tensor(float(alpha), dtype=one.up.dtype)
    return found


def kohya_header(lora: LowRank) -> dict[str, str]:
    """What such files say of themselves."""
    return {"format": "pt", "ss_network_module": "networks.lora", "ss_network_dim": str(lora.rank),
            "ss_network_alpha": str(lora.rank)}  # fmt: skip
