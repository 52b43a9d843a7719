"""The layout in which pipelines lie on the hub, which every transformers reads alike.

transformers 5 saves a CLIP tokenizer as one `tokenizer.json`, and a text encoder without the `text_model.` that its
parameters' names used to begin with. transformers 4 then finds no vocabulary; transformers 5.5 finds none of the
parameters, draws them at random and says so in a log line only. Pipelines on the hub have the older layout, and the
newer versions read it, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import load_file

from salun_diffusers.files.stored_weights import write_tensors
from salun_diffusers.files.whole_files import write_json, write_text

_PREFIX = "text_model."
_OF_THE_LOADING = {"backend", "is_local", "local_files_only"}  # transformers 5 saves how a tokenizer was loaded, too.


def write_vocabulary(folder: Path, vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> None:
    """Write a CLIP tokenizer's `vocab.json` and `merges.txt`.

    Args:
        folder: The tokenizer's folder.
        vocabulary: Id of each piece.
        merges: Pairs of pieces, the first to be merged first.
    """
    write_json(folder / "vocab.json", vocabulary)
    # Readers skip the first line, whatever it says.
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    write_text(folder / "merges.txt", "\n".join(lines) + "\n")


def lay_out_as_on_the_hub(folder: Path) -> None:
    """Rewrite tokenizer and text encoder of a saved Stable Diffusion folder, whichever transformers saved them.

    No number changes: pieces keep their ids, and weights their bits.

    Args:
        folder: A pipeline folder with a CLIP tokenizer in `tokenizer/` and a CLIP text model in `text_encoder/`.
    """
    tokenizer = folder / "tokenizer"
    whole = tokenizer / "tokenizer.json"
    if whole.is_file():
        model = json.loads(whole.read_text(encoding="utf-8"))["model"]
        write_vocabulary(tokenizer, model["vocab"], pairs(model["merges"]))
        whole.unlink()
        settings = tokenizer / "tokenizer_config.json"
        known = json.loads(settings.read_text(encoding="utf-8"))
        write_json(settings, {name: value for name, value in known.items() if name not in _OF_THE_LOADING})
    weights = folder / "text_encoder" / "model.safetensors"
    named = {_PREFIX + name.removeprefix(_PREFIX): tensor for name, tensor in load_file(weights).items()}
    write_tensors(weights, named, {"format": "pt"})


def pairs(merges: Iterable[str | list[str]]) -> list[tuple[str, str]]:
    """Merges as pairs: some versions of `tokenizers` store each as two texts, others as one with a space."""
    split = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return [(first, second) for first, second in split]
