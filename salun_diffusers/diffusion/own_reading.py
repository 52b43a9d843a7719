"""Which pictures are the user's: flags that must fit each other, folders and data sets that are looked at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from salun_diffusers.diffusion.concept_rows import name_of
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.own_sets import OwnSet, OwnSets
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.prompt_files import read_prompts
from salun_diffusers.pictures.captions import class_name
from salun_diffusers.pictures.own_pictures import OwnPicture, data_set_pictures, folder_pictures, readable
from salun_diffusers.pictures.picture_files import local_folder


def check_own_flags(config: EraseConfig) -> None:
    """Refuse flags of own pictures that are not clear, or have no effect; nothing is read.

    Raises:
        UserError: At the first.
    """
    if config.forget_dir and config.dataset_name:
        raise UserError("--forget_dir and --dataset_name both name the forget set; leave one of them out.")
    own = bool(config.forget_dir or config.dataset_name or config.retain_dir)
    for name in ("center_crop", "random_flip", "caption_column"):
        if getattr(config, name) and not own:
            raise UserError(f"--{name} is for own pictures: --forget_dir, --retain_dir or --dataset_name is required.")
    if config.generated_share and not own:
        raise UserError(
            "--generated_share mixes generated latents with own pictures: --forget_dir, --retain_dir or --dataset_name "
            "is required."
        )
    for name, default in (("dataset_config_name", None), ("image_column", "image")):
        if getattr(config, name) != default and not config.dataset_name:
            raise UserError(f"--{name} goes with --dataset_name, which is missing.")
    if own and config.train_data:
        raise UserError(
            "--train_data gives all sets already; leave it out, or --forget_dir, --retain_dir and the like."
        )
    folders = {
        flag: local_folder(path, f"--{flag}: a folder of pictures").resolve()
        for flag, path in (("forget_dir", config.forget_dir), ("retain_dir", config.retain_dir))
        if path
    }
    if config.forget_dir and config.retain_dir and folders["retain_dir"].is_relative_to(folders["forget_dir"]):
        raise UserError(
            f"--retain_dir {config.retain_dir} must not be --forget_dir or lie in it: its pictures would be forgotten "
            "and retained."
        )
    output = Path(config.output_root).expanduser().resolve()
    for flag, folder in folders.items():
        # Without the flag the run gets a folder of its own in runs/, where others may hold pictures.
        if output.is_relative_to(folder) or (config.output_dir and folder.is_relative_to(output)):
            raise UserError(
                f"--output_dir and --{flag} must lie apart, got {output} and {folder}: pictures of the report would be "
                "taken for the user's. Choose another --output_dir."
            )


def read_own_sets(config: EraseConfig) -> OwnSets:
    """Find the user's pictures, decode each once, and choose as many as are asked for.

    Raises:
        UserError: If there are none or too few, one has no caption, or a picture is to be forgotten and to be retained.
    """
    sets: dict[str, OwnSet] = {}
    forget_dir = local_folder(config.forget_dir, "--forget_dir: a folder of pictures") if config.forget_dir else None
    if forget_dir:
        found = folder_pictures(forget_dir, config.caption_column, apart=None)
        sets["forget"] = _chosen(found, config, "forget", str(forget_dir))
    elif config.dataset_name:
        columns = config.image_column, config.caption_column
        found = data_set_pictures(config.dataset_name, config.dataset_config_name, columns)
        mine, others = _by_class(found, config)
        sets["forget"] = _chosen(mine, config, "forget", config.dataset_name)
        if others and not config.retain_dir:
            sets["retain"] = _chosen(others, config, "retain", config.dataset_name)
    if config.retain_dir:
        root = local_folder(config.retain_dir, "--retain_dir: a folder of pictures")
        # A column that was named for the forget set's data set need not be one of this folder.
        column = None if config.dataset_name else config.caption_column
        found = [_with_caption(one, config) for one in folder_pictures(root, column, apart=forget_dir)]
        sets["retain"] = _chosen(found, config, "retain", str(root))
    forgotten = {one.sha256: one.name for one in sets["forget"].pictures} if "forget" in sets else {}
    for one in sets["retain"].pictures if "retain" in sets else ():
        if one.sha256 in forgotten:
            raise UserError(
                f"The same picture is to be forgotten and to be retained: {forgotten[one.sha256]} and {one.name}; "
                "remove one of them."
            )
    return OwnSets(sets, config.center_crop, config.random_flip)


def _with_caption(picture: OwnPicture, config: EraseConfig) -> OwnPicture:
    """A picture to retain; where its folder says nothing of it, the user's only retain prompt does."""
    if picture.caption or picture.label:
        return picture
    given = read_prompts(config.retain_prompts, "--retain_prompts", 10_000) if config.retain_prompts else ()
    if len(given) != 1:
        raise UserError(
            f"Captions are required for pictures to retain, {picture.name} has none: write metadata.jsonl with "
            "file_name and text, put the pictures into one folder per class, or give one caption for all as the only "
            f"line of --retain_prompts (it has {len(given)})."
        )
    return dataclasses.replace(picture, caption=given[0])


def _by_class(found: list[OwnPicture], config: EraseConfig) -> tuple[list[OwnPicture], list[OwnPicture]]:
    """Pictures of a data set to forget, and to retain: where it has classes, those of the concept, and all others."""
    classes = sorted({one.label for one in found} - {""})
    if not classes:
        return found, []
    wanted = class_name(name_of(config)).casefold()
    mine = [one for one in found if class_name(one.label).casefold() == wanted]
    if not mine:
        raise UserError(
            f"--dataset_name {config.dataset_name} has classes, of which --concept must name the one to forget: "
            f"{', '.join(classes[:20])}; got {name_of(config)!r}."
        )
    return mine, [one for one in found if class_name(one.label).casefold() != wanted]


def _chosen(candidates: list[OwnPicture], config: EraseConfig, name: str, where: str) -> OwnSet:
    """All pictures that can be read, or as many as a set of the wanted size takes beside its generated share."""
    found = readable(candidates, where)
    share, size = config.generated_share, getattr(config, f"num_{name}_images")
    wanted = len(found) if size is None else size - round(share * size)
    drawn = round(len(found) * share / (1 - share)) if size is None else size - wanted
    if wanted > len(found):
        raise UserError(
            f"--num_{name}_images {size} takes {wanted} pictures beside a generated share of {share:g}; there are "
            f"{len(found)}. Ask for fewer, add pictures, or raise --generated_share."
        )
    if wanted < 1:
        raise UserError(
            f"--num_{name}_images {size} with --generated_share {share:g} leaves no own picture in the {name} set; ask "
            "for more, or leave the pictures out."
        )
    rows = list(range(len(found)))
    if wanted < len(found):
        import torch  # Not before it is needed: what is refused is refused in a moment.

        from salun_diffusers.seeds import stream

        order = torch.randperm(len(found), generator=stream(config.seed, "own", name))
        rows = sorted(order[:wanted].tolist())
    return OwnSet(tuple(found[row] for row in rows), drawn, len(found), len(candidates) - len(found))
