"""The data's classes in the order of the model's: a label is a name, and only then a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from salun_diffusers.classification.forget_split import Pools
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.class_names import find_label, nearest
from salun_diffusers.pictures.labelled_pictures import LabelledPictures


def in_order_of_model(pools: Pools, names: Sequence[str], folder: Path) -> Pools:
    """Give each picture the number that its class has in the model.

    Where model or data have numbers for names (``LABEL_3``, ``3``), there is nothing to compare, and the order counts.

    Args:
        pools: The data.
        names: The model's classes, in the order of its outputs.
        folder: The model, for the message.

    Raises:
        UserError: If the two have other numbers of classes, or a class of the data is none of the model's.
    """
    known = pools.train.class_names
    if len(names) != len(known):
        raise UserError(
            f"--model {folder} has {len(names)} classes, the data {len(known)}; use the data that the model was "
            "trained on."
        )
    if tuple(names) == known or _numbers(names) or _numbers(known):
        return pools
    places = [find_label(name, names) for name in known]
    for name, place in zip(known, places, strict=True):
        if place is None:
            raise UserError(
                f"--model {folder} has no class {name!r} of the data (its nearest is {nearest(name, names)!r}): use "
                "the data that it was trained on, or name the data's classes as its id2label does."
            )
        if places.count(place) > 1:
            raise UserError(
                f"Two classes of the data are {names[place]!r} of --model {folder}: name the data's classes as its "
                "id2label does."
            )
    order = torch.tensor(places)
    named = tuple(known[places.index(place)] for place in range(len(names)))

    def ordered(data: LabelledPictures) -> LabelledPictures:
        return replace(data, labels=order[data.labels.long()], class_names=named)

    return Pools(ordered(pools.train), ordered(pools.validation), ordered(pools.test))


def _numbers(names: Sequence[str]) -> bool:
    """Whether names only count: 0, 1, 2, … or LABEL_0, LABEL_1, …"""
    return all(re.fullmatch(rf"(label[_ ]?)?0*{number}", name.lower()) for number, name in enumerate(names))
