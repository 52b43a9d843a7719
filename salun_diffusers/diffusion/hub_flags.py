"""The flags of an upload to the hub: what they mean, and what is refused before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.errors import UserError, is_first_process
from salun_diffusers.files.base_card import MADE_BY
from salun_diffusers.files.hub_upload import HubPlace, HubTarget, look_at, require_name
from salun_diffusers.files.pipeline_folder import public_name

_ONLY_WITH = ("hub_model_id", "hub_token", "hub_private_repo", "publish_mask")


def check_hub(config: EraseConfig) -> None:
    """Refuse an upload that cannot be, before anything is computed; nothing is made on the hub.

    With `dry_run` the hub is not asked. Of several processes the first asks, which uploads, too.

    Raises:
        UserError: If flags do not go together, or the hub or the repository will not do.
    """
    given = [name for name in _ONLY_WITH if getattr(config, name)]
    if not config.push_to_hub:
        if given:
            raise UserError(f"--{given[0]} goes with --push_to_hub, which was not given; leave it out, or upload.")
        return
    if config.hub_token and config.report_to not in (None, "tensorboard"):
        raise UserError(
            f"--hub_token with --report_to {config.report_to}: such trackers record the command line, and the token "
            "with it. `hf auth login` or HF_TOKEN is required instead."
        )
    require_name(hub_target(config).name)
    if not config.dry_run and is_first_process():
        look_at_target(config)


def look_at_target(config: EraseConfig) -> HubPlace:
    """Ask the hub about the repository that a run uploads to.

    Raises:
        UserError: If it will not do.
    """
    return look_at(hub_target(config), lambda told: told.get(MADE_BY) == made_of(config))


def hub_target(config: EraseConfig) -> HubTarget:
    """The repository that a run uploads to.

    Raises:
        UserError: If nothing names one.
    """
    folder = Path(config.output_dir).name if config.output_dir else ""
    name = folder if config.hub_model_id is None else config.hub_model_id
    if not name:
        raise UserError(
            "--push_to_hub needs a name for the repository: --hub_model_id OWNER/NAME, or --output_dir, whose name is "
            "taken."
        )
    return HubTarget(name, config.hub_token, config.hub_private_repo)


def made_of(config: EraseConfig) -> dict[str, Any]:
    """What tells this erasure from another in a repository's card; known before the work, and without local paths."""
    asked = [config.concept] if isinstance(config.concept, str) else [*config.concept]
    words = [Path(one).name if Path(one).suffix == ".toml" else one for one in asked if one]
    table = {"concepts": Path(config.concepts).name} if config.concepts else {}
    kind = {"adapter": config.adapter} if config.adapter == "lora" else {}
    return {"concept": words, **table, "base": public_name(config.pretrained_model_name_or_path)[0], **kind}
