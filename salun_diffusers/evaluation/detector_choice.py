"""Which detector is meant, and whether it can be had: found out before anything heavy is imported or fetched."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.pipeline_folder import EMBEDDED, embedded_detector

CLIP_WEIGHTS = "openai/clip-vit-base-patch16"
FACE = "FACE"
"""Label of a picture with a face, of whatever sex, as NudeNet finds it."""
_CLIP = "clip:"


@dataclass(frozen=True)
class DetectorChoice:
    """A detector, as far as it can be named without loading it.

    Args:
        name: ``nudenet``, ``clip``, ``classifier``, ``none``, an embedded model, or ``several``.
        weights: Folder or hub id of CLIP or the classifier.
        labels: What it can find: the classifier's labels; of CLIP the texts that it chooses from.
        clip: CLIP that compares retained pictures with the base's; empty where none does.
        parts: Of several, each of them.
    """

    name: str
    weights: str = ""
    labels: tuple[str, ...] = ()
    clip: str = ""
    parts: tuple[DetectorChoice, ...] = ()

    def __str__(self) -> str:
        if self.parts:
            return ", ".join(dict.fromkeys(map(str, self.parts)))
        words = f" of {self.weights}" if self.weights else ""
        return f"{self.name}{words}" + (f", retained pictures by {self.clip}" if self.clip else "")


def several(choices: Sequence[DetectorChoice]) -> DetectorChoice:
    """One detector for each of several concepts."""
    return DetectorChoice("several", parts=tuple(choices))


def find_detector(text: str, clip: str | None = None) -> DetectorChoice:
    """The detector that a flag or a concept names.

    Args:
        text: ``nudenet``, ``demo``, ``digits``, ``none``, ``clip:words``, or a classifier's folder or hub id.
        clip: Folder or hub id of CLIP.

    Raises:
        UserError: If there is none of that name, or it is not there.
    """
    if text == "none":
        return DetectorChoice("none")
    if text == "nudenet":
        _require_nudenet()
        return DetectorChoice("nudenet")
    if text in EMBEDDED:
        weights = str(embedded_detector(text))
        return DetectorChoice(text, labels=_labels(_config_of(weights, "--detector"), weights))
    if text.startswith(_CLIP):
        words = text.removeprefix(_CLIP).strip().strip("\"'").strip()
        if not words:
            raise UserError('--detector clip:"words" needs the words that describe the concept, got none.')
        weights = clip or CLIP_WEIGHTS
        require_clip(weights)
        return DetectorChoice("clip", weights, (words,))
    if not Path(text).expanduser().is_dir() and (text.count("/") != 1 or text.startswith((".", "/", "~"))):
        raise UserError(
            f'--detector must be preset, none, nudenet, {", ".join(EMBEDDED)}, clip:"words", or the folder or hub id '
            f"of an image classifier; got {text!r}."
        )
    return DetectorChoice("classifier", text, _labels(_config_of(text, "--detector"), text))


def require_clip(weights: str) -> None:
    """Refuse what is no CLIP with both of its towers.

    Raises:
        UserError: If it is not there, or is another network.
    """
    config = _config_of(weights, "--clip")
    if not {"text_config", "vision_config"} <= config.keys():
        raise UserError(
            f"--clip must be a CLIP model with its text and its vision tower; {weights} is a "
            f"{config.get('model_type', 'model of an unknown kind')}."
        )


def cached_clip() -> str:
    """The default CLIP if it was fetched from the hub before; empty if not."""
    from huggingface_hub import try_to_load_from_cache

    there = all(
        isinstance(try_to_load_from_cache(CLIP_WEIGHTS, name), str)
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    )
    return CLIP_WEIGHTS if there else ""


def _require_nudenet() -> None:
    try:
        there = importlib.util.find_spec("nudenet") is not None
    except ValueError:  # What has been imported without a specification is there, None in its place is not.
        there = False
    if not there:
        raise UserError(
            "The nudity detector needs NudeNet: pip install 'salun-diffusers[nudity]'; an erasure also runs with "
            "--detector none."
        )


def _config_of(weights: str, flag: str) -> dict[str, Any]:
    """The config.json of a transformers folder that holds safetensors, or of a hub id, of which no weights are fetched.

    Raises:
        UserError: If there is none.
    """
    folder = Path(weights).expanduser()
    if folder.is_dir():
        path = folder / "config.json"
        if not path.is_file():
            raise UserError(f"{flag} must be a transformers model; the folder {weights} has no config.json.")
        if not any(folder.glob("*.safetensors")):
            raise UserError(
                f"{flag} must hold safetensors weights, {weights} has none; pickled weights are not opened."
            )
    else:
        try:
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(weights, "config.json"))
        except Exception as error:  # The hub raises a dozen unrelated types.
            raise UserError(
                f"{flag} {weights} is neither a local folder nor could be had from the hub ({one_line(error, 140)}). "
                "Download it where there is a network and name the folder."
            ) from error
    return read_object(path, constants=float)


def _labels(config: dict[str, Any], weights: str) -> tuple[str, ...]:
    named = config.get("id2label")
    if not isinstance(named, dict) or not named:
        raise UserError(
            f"--detector must be an image classifier that names its classes; the config.json of {weights} has no "
            "id2label."
        )
    try:
        return tuple(str(name) for _, name in sorted((int(number), name) for number, name in named.items()))
    except ValueError as error:
        raise UserError(f"The id2label of {weights} must count its classes, got {next(iter(named))!r}.") from error
