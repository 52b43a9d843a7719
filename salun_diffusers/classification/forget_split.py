"""What to forget and what to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.files.json_files import parse_json, read_bytes
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.seeds import stream


@dataclass(frozen=True)
class Pools:
    """A data set as a model sees it: what it is trained on, what chooses between models, what it is tested on."""

    train: LabelledPictures
    validation: LabelledPictures
    test: LabelledPictures


@final
@dataclass(frozen=True)
class ForgetSplit:
    """The training set cut in two, and the sets it is not trained on.

    Forget and retain are disjoint and together the training set; all labels are the true ones.

    Args:
        forget_indices: Positions in the training set, ascending, int64.
        train: The training set.
        validation: Held out; it may be empty.
        test: The test set; where a whole class is forgotten, without that class.
        name: What is forgotten, in words.
        whole_class: Whether the forget set is a class.

    Raises:
        UserError: If the forget set is empty or everything, or an index is out of range or there twice.
    """

    forget_indices: Tensor
    train: LabelledPictures
    validation: LabelledPictures
    test: LabelledPictures
    name: str
    whole_class: bool = False

    def __post_init__(self) -> None:
        indices, total = self.forget_indices, len(self.train)
        if len(indices) == 0:
            raise UserError("The forget set is empty; name a class, a ratio or indices that select something.")
        if int(indices.min()) < 0 or int(indices.max()) >= total:
            wrong = int(indices[(indices < 0) | (indices >= total)][0])
            raise UserError(f"Forget index {wrong} is out of range; the training set has positions 0 to {total - 1}.")
        unique, counts = indices.unique(return_counts=True)
        if len(unique) < len(indices):
            twice = int(unique[counts > 1][0])
            raise UserError(f"Forget index {twice} is there {int(counts.max())} times; name each position once.")
        if len(indices) == total:
            raise UserError(
                f"The forget set is all {total} training pictures, so nothing is left to retain; forget fewer."
            )
        require_two_classes(self.train, self.test)
        object.__setattr__(self, "forget_indices", unique)

    @property
    def retain_indices(self) -> Tensor:
        """Positions of the retain set in the training set, ascending."""
        keep = torch.ones(len(self.train), dtype=torch.bool)
        keep[self.forget_indices] = False
        return keep.nonzero().squeeze(1)

    @property
    def forget(self) -> LabelledPictures:
        """D_f."""
        return self.train[self.forget_indices]

    @property
    def retain(self) -> LabelledPictures:
        """D_r."""
        return self.train[self.retain_indices]


def require_two_classes(train: LabelledPictures, test: LabelledPictures) -> None:
    """Refuse data on which no classifier can be trained and measured.

    Args:
        train: The training set.
        test: What it is measured on.

    Raises:
        UserError: If the training set has fewer than two classes, or there is no test picture.
    """
    if len(train.labels.unique()) < 2:
        raise UserError(
            f"The training set must have pictures of two classes or more, there is nothing to tell apart; found "
            f"{len(train)} pictures of {len(train.labels.unique())}."
        )
    if len(test) == 0:
        raise UserError(
            "No test picture is left to measure on; the data needs a test set that has other classes, too, and "
            "where it is held out of the training set, at least five pictures a class."
        )


def forget_class(pools: Pools, wanted: str) -> ForgetSplit:
    """Forget a whole class, by its name or number; the test set loses it, too.

    Raises:
        UserError: If there is no such class in the training set.
    """
    names = pools.train.class_names
    number = names.index(wanted) if wanted in names else int(wanted) if wanted.isdecimal() else -1
    if not 0 <= number < len(names):
        raise UserError(f"--forget_class {wanted} is not in the data; classes are {', '.join(names)}.")
    indices = (pools.train.labels == number).nonzero().squeeze(1)
    if len(indices) == 0:
        raise UserError(f"--forget_class {wanted} has no picture in the training set; choose another class.")
    validation, test = (data[(data.labels != number).nonzero().squeeze(1)] for data in (pools.validation, pools.test))
    return ForgetSplit(indices, pools.train, validation, test, f"class {names[number]}", whole_class=True)


def forget_fraction(pools: Pools, ratio: float, seed: int) -> ForgetSplit:
    """Forget int(ratio · N) training pictures, drawn at random from all classes.

    Raises:
        UserError: If that is none or all of them.
    """
    total = len(pools.train)
    order = torch.randperm(total, generator=stream(seed, "forget"))
    indices = order[: int(ratio * total)].sort().values
    return ForgetSplit(indices, pools.train, pools.validation, pools.test, f"random {100 * ratio:g} %")


def forget_instances(pools: Pools, indices: Sequence[int]) -> ForgetSplit:
    """Forget training pictures by their positions.

    Raises:
        UserError: If a position is out of range or there twice, or they are none or all.
    """
    total = len(pools.train)
    for index in indices:  # Before torch sees them: it has no words for more than 64 bits.
        if not 0 <= index < total:
            raise UserError(f"Forget index {index} is out of range; the training set has positions 0 to {total - 1}.")
    chosen = torch.tensor(list(indices), dtype=torch.int64)
    return ForgetSplit(chosen, pools.train, pools.validation, pools.test, f"{len(chosen)} instances")


def read_indices(path: str | Path) -> list[int]:
    """Read positions from a file: a JSON list, or whole numbers separated by white space or commas.

    Raises:
        UserError: If the file cannot be read or holds anything else; the message names the first such word.
    """
    try:
        text = read_bytes(Path(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"--forget_indices {path} cannot be read as text: {error}.") from error
    try:
        found = parse_json(text)
        words = [str(item) for item in found] if isinstance(found, list) else text.replace(",", " ").split()
    except ValueError:
        words = text.replace(",", " ").split()
    for word in words:
        if not word.removeprefix("-").isdecimal():
            raise UserError(f"--forget_indices {path} must hold whole numbers, found {word!r}.")
    return [int(word) for word in words]
