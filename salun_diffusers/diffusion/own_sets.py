"""Sets of the user's own pictures: which there are, how many latents are drawn beside them, and what they show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.explicit_prompts import explicit_words
from salun_diffusers.evaluation.prompt_files import read_prompts
from salun_diffusers.files.run_folder import fingerprint
from salun_diffusers.pictures.captions import class_caption
from salun_diffusers.pictures.own_pictures import OwnPicture, data_set_pictures, folder_pictures, readable
from salun_diffusers.pictures.picture_files import local_folder

_MOST_CAPTIONS = 10_000  # Each of them is encoded, and kept on the device.


@dataclass(frozen=True)
class OwnSet:
    """A set with pictures of the user's.

    Args:
        pictures: They, in a fixed order, each with its caption.
        drawn: How many latents are generated beside them.
        found: How many pictures there were to choose from.
        prompts: What the generated latents are drawn for.
    """

    pictures: tuple[OwnPicture, ...]
    drawn: int
    found: int
    prompts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures) + self.drawn

    @property
    def sha256(self) -> str:
        """Of what the pictures are and show, in their order."""
        return fingerprint(pictures=[(picture.sha256, picture.caption) for picture in self.pictures])


@dataclass(frozen=True)
class OwnSets:
    """The sets with pictures of the user's, ``forget`` and ``retain``; a set that is not among them is generated.

    Args:
        sets: By name.
        center_crop: Whether the centre of a picture is taken.
        random_flip: Whether mirrored pictures belong to a set.
    """

    sets: Mapping[str, OwnSet] = field(default_factory=dict)
    center_crop: bool = False
    random_flip: bool = False

    def __bool__(self) -> bool:
        return bool(self.sets)

    def pictures_of(self, name: str) -> int:
        """How many pictures a set has of the user's."""
        return len(self.sets[name].pictures) if name in self.sets else 0

    @property
    def count(self) -> int:
        """How many pictures there are in all, which nobody draws."""
        return sum(len(one.pictures) for one in self.sets.values())

    @property
    def marks(self) -> dict[str, str]:
        """What decides each set, by name, beside settings and seed."""
        how = {"center_crop": self.center_crop, "random_flip": self.random_flip}
        return {
            name: fingerprint(pictures=one.sha256, drawn=one.drawn, prompts=one.prompts, **how)
            for name, one in self.sets.items()
        }

    def recorded(self) -> dict[str, Any]:
        """What records and reports say of them: numbers and hashes, nothing of the pictures."""
        told = {
            name: {
                "pictures": len(one.pictures), "of": one.found, "generated_beside": one.drawn,
                "captions": len({picture.caption for picture in one.pictures}), "sha256": one.sha256,
            }
            for name, one in self.sets.items()
        }  # fmt: skip
        return {"own_pictures": told} if told else {}

    def in_words(self) -> str:
        """One line for a plan."""
        cut = "centre" if self.center_crop else "a drawn place"
        hand = ", mirrored or not" if self.random_flip else ""
        return (
            "; ".join(
                f"{name} {len(one.pictures)} of {one.found} own pictures and {one.drawn} generated latents, sha256 "
                f"{one.sha256[:12]}"
                for name, one in self.sets.items()
            )
            + f" (cut: {cut}{hand})"
        )


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
    if config.generated_share is not None and not own:
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
    output = Path(config.output_dir or "runs").expanduser().resolve()
    for flag, folder in folders.items():
        if output.is_relative_to(folder) or folder.is_relative_to(output):
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
    forget_dir = Path(config.forget_dir) if config.forget_dir else None
    if forget_dir:
        found = folder_pictures(forget_dir, config.caption_column, apart=None)
        sets["forget"] = _chosen(readable(found, str(forget_dir)), config, "forget")
    elif config.dataset_name:
        columns = config.image_column, config.caption_column
        found = data_set_pictures(config.dataset_name, config.dataset_config_name, columns)
        sets["forget"] = _chosen(readable(found, config.dataset_name), config, "forget")
    if config.retain_dir:
        root = Path(config.retain_dir)
        # A column that was named for the forget set's data set need not be one of this folder.
        column = None if config.dataset_name else config.caption_column
        found = [_with_caption(one, config) for one in folder_pictures(root, column, apart=forget_dir)]
        sets["retain"] = _chosen(readable(found, str(root)), config, "retain")
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


def _chosen(found: list[OwnPicture], config: EraseConfig, name: str) -> OwnSet:
    """All pictures, or as many as a set of the size that was asked for takes beside its generated share."""
    share, size = config.generated_share or 0.0, getattr(config, f"num_{name}_images")
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
    return OwnSet(tuple(found[row] for row in rows), drawn, len(found))


def with_own_sets(own: OwnSets, concept: Concept, classes: bool) -> tuple[OwnSets, Concept]:
    """Every picture with its caption, and the concept with the captions as its prompts.

    A picture to forget without a caption is one of the forget prompts, in turn. What a caption of the user's means
    afterwards are the anchor prompts, in turn: one of them for all, or of a caption that is a forget prompt its own.

    Args:
        own: As they were read.
        concept: What the words of the command line mean.
        classes: Whether prompts are names of a model's classes.

    Raises:
        UserError: If a caption is no class of such a model, is retained and forgotten, or there are too many.
    """
    sets = dict(own.sets)
    anchors = dict(zip(concept.forget_prompts, concept.anchor_prompts, strict=True))
    changed: dict[str, Any] = {}
    if "forget" in sets:
        given = [*anchors]
        shown = [one.caption or given[row % len(given)] for row, one in enumerate(sets["forget"].pictures)]
        if classes:
            shown = [given[0]] * len(shown)  # The class is the concept, whatever a data set calls it.
        sets["forget"] = _captioned(sets["forget"], shown, tuple(given))
        prompts = _prompts(sets["forget"])
        turn = list(anchors.values())
        pairs = [anchors.get(prompt, turn[row % len(turn)]) for row, prompt in enumerate(prompts)]
        explicit = concept.explicit or bool(explicit_words(prompts))
        changed |= {"forget_prompts": prompts, "anchor_prompts": tuple(pairs), "explicit": explicit}
    if "retain" in sets:
        word = (lambda label: label) if classes else class_caption
        shown = [one.caption or word(one.label) for one in sets["retain"].pictures]
        if classes and (unknown := next((name for name in shown if name not in concept.retain_prompts), "")):
            raise UserError(
                f"Pictures to retain must be of the model's other classes ({', '.join(concept.retain_prompts)}); found "
                f"{unknown!r}: rename its folder, or take it out of --retain_dir."
            )
        sets["retain"] = _captioned(sets["retain"], shown, tuple(dict.fromkeys(concept.retain_prompts)))
        changed["retain_prompts"] = _prompts(sets["retain"])
        asked = concept.retain_evaluation
        seen = set(changed["retain_prompts"])
        changed["retain_evaluation"] = tuple(
            dataclasses.replace(one, trained_on=one.trained_on and one.prompt in seen) for one in asked
        )
    return dataclasses.replace(own, sets=sets), dataclasses.replace(concept, **changed)


def _captioned(one: OwnSet, captions: list[str], prompts: tuple[str, ...]) -> OwnSet:
    pictures = tuple(
        dataclasses.replace(picture, caption=caption) for picture, caption in zip(one.pictures, captions, strict=True)
    )
    return dataclasses.replace(one, pictures=pictures, prompts=prompts if one.drawn else ())


def _prompts(one: OwnSet) -> tuple[str, ...]:
    """Captions of a set's pictures and what is drawn beside them, each once."""
    found = tuple(dict.fromkeys((*(picture.caption for picture in one.pictures), *one.prompts)))
    if len(found) > _MOST_CAPTIONS:
        raise UserError(
            f"A set may have {_MOST_CAPTIONS:,} different captions, got {len(found):,}: each is encoded and kept. Ask "
            "for fewer pictures, or give them one caption."
        )
    return found


def sized(own: OwnSets, settings: Settings, concept: Concept, config: EraseConfig) -> Settings:
    """The settings with the sizes of own sets; anchor latents that nobody asked for keep the preset's proportion.

    Args:
        own: The sets.
        settings: Of the concept and the flags.
        concept: Its numbers.
        config: The flags.
    """
    changed: dict[str, Any] = {f"num_{name}_images": len(one) for name, one in own.sets.items()}
    if "forget" in own.sets and config.num_anchor_images is None:
        ratio = concept.numbers.num_anchor_images / concept.numbers.num_forget_images
        changed["num_anchor_images"] = round(len(own.sets["forget"]) * ratio)
    return dataclasses.replace(settings, **changed)
