"""What an erasure changed, as a file of its own: base + patch = erased, erased - patch = base, bit for bit.

    salun patch make BASE ERASED patch.safetensors
    salun patch apply BASE patch.safetensors FOLDER --scale 0.7
    salun patch revert ERASED patch.safetensors FOLDER
    salun patch info patch.safetensors
    salun patch stack FIRST.safetensors SECOND.safetensors BOTH.safetensors --order last

A patch knows the SHA-256 of the weights before and after and refuses any other. `stack` makes one patch of two; without
a third file it only says which weights both of them claim. Whoever has a patch can bring the concept back: publish it
only if that is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from salun_diffusers.arguments import setting, word
from salun_diffusers.errors import UserError
from salun_diffusers.files.base_card import CARD, card_of, carry_cards, restore_cards
from salun_diffusers.files.component_files import unreadable_parts
from salun_diffusers.files.output_places import require_outside_components, require_writable
from salun_diffusers.files.pipeline_folder import class_name, locate, model_index, public_name
from salun_diffusers.files.single_file import find_model
from salun_diffusers.files.whole_files import write_text
from salun_diffusers.programs.program import Program

_MADE_OF_WORDS = {"make": 3, "apply": 3, "revert": 3, "info": 1, "stack": 2}
_READ_BY: dict[str, tuple[str, ...]] = {
    "scale": ("apply",),
    "order": ("stack",),
    "revision": ("make", "apply", "revert"),
    "base_revision": ("make", "apply", "revert"),
    "variant": ("make", "apply", "revert"),
    "base_variant": ("make", "apply", "revert"),
    "cache_dir": ("make", "apply", "revert"),
    "single_file_config": ("make", "apply", "revert"),
}


@dataclass(frozen=True)
class PatchConfig:
    """What is made of what."""

    action: Literal["make", "apply", "revert", "info", "stack"] = word("make, apply, revert, info or stack.")
    pipeline: str = word(
        "make, apply: the base; revert: the erased pipeline; a folder, hub id or `demo`. info, stack: a patch file."
    )
    other: str | None = word(
        "make: the erased pipeline; apply, revert: the patch file; stack: the second patch.", left_out=None
    )
    output: str | None = word(
        "make, stack: the patch file to write; apply, revert: the new pipeline folder.", left_out=None
    )
    scale: float | None = setting(
        None, "apply: strength s of θ₀ + s·Δθ, 1 if left out; 0 is the base.", minimum=0, maximum=10
    )
    order: Literal["first", "last"] | None = setting(
        None, "stack: whose value a weight gets that both patches claim; without it that is refused."
    )
    revision: str | None = setting(None, "make, revert: revision of the erased pipeline on the hub.")
    base_revision: str | None = setting(None, "make, apply: revision of the base on the hub.")
    variant: str | None = setting(None, "Variant of the weight files, such as fp16.")
    base_variant: str | None = setting(None, "make: variant of the base's weight files, if it is another one.")
    cache_dir: str | None = setting(None, "Where downloaded pipelines are kept.")
    single_file_config: str | None = setting(None, "For a single file: folder or hub id with its configurations.")


def work(config: PatchConfig, command: str) -> str:
    """Make, apply, revert, describe or put together."""
    words = [config.pipeline, *(given for given in (config.other, config.output) if given is not None)]
    _require_words(config, words)
    _refuse_flags(config)
    if config.action == "info":
        return _info(Path(config.pipeline).expanduser())
    if config.action == "stack":
        return _stack(config, [Path(word).expanduser() for word in words])
    return _with_pipelines(config, words[1], Path(words[2]).expanduser())


def _with_pipelines(config: PatchConfig, other: str, output: Path) -> str:
    from salun_diffusers.masks.patch import WeightPatch, patch_between, patch_folder

    require_writable(output.parent, "OUTPUT's folder")
    if config.action == "make":
        _refuse_existing(output)
        variants = (config.variant if config.base_variant is None else config.base_variant, config.variant)
        base = _found(config, config.base_revision, variants[0])
        erased = locate(other, revision=config.revision, variant=variants[1], cache_dir=config.cache_dir)
        for folder in (base, erased):
            require_outside_components(output, folder, "OUTPUT")
        patch = patch_between(base, erased, variants)
        patch.save(output)
        return f"{patch.number_moved:,} weights moved: {output}\n"
    _refuse_the_other_side(config)
    patch = WeightPatch.load(Path(other).expanduser())
    change, revision = patch.apply, config.base_revision
    strength = 1.0 if config.scale is None else config.scale
    if config.action == "revert":
        change, revision = patch.revert, config.revision
    elif strength != 1:
        change = partial(patch.scaled, strength=strength)
    source = _found(config, revision, config.variant)
    patch_folder(source, output, change, variant=config.variant)
    if config.action == "revert":
        restore_cards(output)
    elif strength != 0:  # At 0 it is the base, whose card is right.
        hashes = patch.base_sha256, patch.erased_sha256 if strength == 1 else ""
        _write_card(config, source, output, hashes, strength)
    said = f"{patch.number_moved:,} weights changed: {output}\n"
    if strength not in (0, 1):
        said += (
            f"At strength {strength:g} these are neither the base's weights nor the erased ones, so this patch does "
            "not revert them: keep the base, or make a patch of their own by salun patch make.\n"
        )
    return said


def _info(file: Path) -> str:
    from salun_diffusers.masks.patch import WeightPatch
    from salun_diffusers.masks.patch_account import account

    return account(WeightPatch.load(file), file)


def _stack(config: PatchConfig, files: list[Path]) -> str:
    from salun_diffusers.masks.patch import WeightPatch
    from salun_diffusers.masks.patch_account import account_of_two
    from salun_diffusers.masks.patch_stack import stacked

    for output in files[2:]:
        require_writable(output.parent, "OUTPUT's folder")
        _refuse_existing(output)
    first, second = map(WeightPatch.load, files[:2])
    said = account_of_two(first, second)
    for output in files[2:]:
        both = stacked(first, second, "refuse" if config.order is None else config.order)
        both.save(output)
        said += f"{both.number_moved:,} weights moved by both together: {output}\n"
    return said


def _write_card(config: PatchConfig, base: Path, folder: Path, hashes: tuple[str, str], strength: float) -> None:
    """Say in the new folder that it is not the base."""
    from salun_diffusers.reports.model_card import CardBase, patched_card

    name, kind = public_name(config.pipeline)
    card, kept_as = card_of(config.pipeline, base, config.base_revision), carry_cards(base, folder)
    described = CardBase(name, kind, card=card, kept_as=kept_as, left_out=unreadable_parts(base, config.variant))
    write_text(folder / CARD, patched_card(described, class_name(model_index(base)), *hashes, strength))


def _found(config: PatchConfig, revision: str | None, variant: str | None) -> Path:
    """The folder of PIPELINE."""
    return find_model(
        config.pipeline,
        revision=revision,
        variant=variant,
        cache_dir=config.cache_dir,
        single_file_config=config.single_file_config,
    )


def _refuse_existing(output: Path) -> None:
    if output.exists():
        raise UserError(f"{output} exists already: nothing is overwritten.")


def _require_words(config: PatchConfig, words: list[str]) -> None:
    """Refuse a command with too few words, or with one that its action does not read.

    Raises:
        UserError: With the right form.
    """
    least = _MADE_OF_WORDS[config.action]
    most = 3 if config.action == "stack" else least
    if not least <= len(words) <= most:
        forms = [
            line.strip() for line in (__doc__ or "").splitlines() if line.startswith(f"    salun patch {config.action}")
        ]
        raise UserError(f"{forms[0].split(' --')[0]} is the form of it, found {len(words)} of its words (see --help).")


def _refuse_flags(config: PatchConfig) -> None:
    """Refuse flags that an action does not read.

    Raises:
        UserError: Naming the flag.
    """
    for name, actions in _READ_BY.items():
        if getattr(config, name) is not None and config.action not in actions:
            raise UserError(f"--{name} has no meaning for {config.action}; it goes with {', '.join(actions)}.")


def _refuse_the_other_side(config: PatchConfig) -> None:
    """Refuse flags of the pipeline that `apply` or `revert` makes and does not read.

    Raises:
        UserError: Naming the flag.
    """
    for name in ("revision", "base_variant") if config.action == "apply" else ("base_revision", "base_variant"):
        if getattr(config, name) is not None:
            reads, takes = ("base", "base_revision") if config.action == "apply" else ("erased pipeline", "revision")
            raise UserError(
                f"--{name} has no meaning for {config.action}, which reads the {reads} only: its flags are --{takes} "
                "and --variant."
            )


main = Program("patch", PatchConfig, work, __doc__ or "")
