"""Folders of pictures: their files, what each should show, batches of decoded pixels, blurred previews."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageFilter

from salun_diffusers.errors import UserError, tell
from salun_diffusers.evaluation.manifest import Manifest, PictureRow, read_manifest
from salun_diffusers.evaluation.prompt_files import PromptRow
from salun_diffusers.pictures.decoding import read_header, read_picture, square, upright_rgb
from salun_diffusers.pictures.picture_files import (
    find_pictures,
    local_folder,
    no_pictures,
    read_headers,
    tell_left_out,
)

T = TypeVar("T")
_OWN_FOLDERS = {"previews", "detections"}
_PREVIEW_CELLS = 12  # across and down


@dataclass(frozen=True)
class ImageFolder:
    """A folder of pictures.

    Args:
        root: The folder.
        files: Its pictures, in a fixed order; empty where only detections were kept.
        rows: What is known of each picture, in the same order; empty where nothing is.
        manifest: What the folder says of itself, or None.
    """

    root: Path
    files: tuple[Path, ...]
    rows: tuple[PictureRow, ...] = ()
    manifest: Manifest | None = None

    def __len__(self) -> int:
        return len(self.rows or self.files)

    @property
    def beside(self) -> str:
        """Which pictures keep the sub-folders from being classes, in words for an error; empty where none do."""
        found = [file for file in self.files if file.parent == self.root]
        if self.rows or not 0 < len(found) < len(self.files):
            return ""
        return f" ({len(found)} of {len(self.files)} pictures lie in no sub-folder: {found[0].name}, …)"

    def without(self, classes: Sequence[str]) -> ImageFolder:
        """The pictures that were not drawn for some classes.

        Raises:
            UserError: If nothing is known of the pictures, a class has none (so a typing error excludes nothing without
                a word), or nothing is left.
        """
        if not classes:
            return self
        if not any(row.label for row in self.rows):
            raise UserError(
                f"Leaving classes out needs to know them: {self.root} has no classes in a manifest or as "
                f"sub-folders{self.beside}."
            )
        known = sorted({row.label for row in self.rows if row.label})
        for name in classes:
            if name not in known:
                close = (difflib.get_close_matches(name, known, n=1, cutoff=0.0) or known)[0]
                raise UserError(
                    f"{self.root} has no pictures of the class {name!r} to leave out; the closest is {close!r}."
                )
        kept = [at for at, row in enumerate(self.rows) if row.label not in classes]
        if not kept:
            raise UserError(f"{self.root} has no pictures of other classes than {', '.join(classes)}.")
        files = tuple(self.files[at] for at in kept) if self.files else ()
        return ImageFolder(self.root, files, tuple(self.rows[at] for at in kept), self.manifest)


def read_image_folder(path: str | Path, prompts: Sequence[PromptRow] = ()) -> ImageFolder:
    """Find the pictures below a folder.

    What they should show comes from the folder's manifest (of one without classes, those come from the same cases and
    prompts of `prompts`), else from `prompts` by the number that each name starts
    with (``<case_number>_<n>.png``, as the field's scripts write them), else from sub-folders named after classes.

    Args:
        path: Any folder.
        prompts: Rows of the prompt file that the pictures were made from.

    Raises:
        UserError: If there is no such folder, no picture in it, one has no picture's header, or pictures of its
            manifest are missing.
    """
    root = local_folder(path, "A folder of pictures")
    manifest = read_manifest(root)
    if manifest is not None:
        kept = [root / row.file for row in manifest.pictures]
        present = tuple(file for file in kept if file.is_file())
        if len(present) < len(kept) and not (manifest.explicit and not present):
            raise UserError(
                f"{root} is unfinished: {len(kept)} pictures are required by its manifest, found "
                f"{len(present)}; the command in the manifest goes on where it stopped."
            )
        read_headers(root, present)
        drawn = _with_classes(manifest.pictures, prompts)
        if prompts:
            asked = "asked for their classes only" if drawn != manifest.pictures else "not asked"
            tell("note", f"the manifest of {root} says what its pictures are; the prompt file is {asked}.")
        return ImageFolder(root, present, drawn, manifest)
    found = find_pictures(root, apart=_is_our_own)
    files = found.files
    if not files:
        raise no_pictures(root, found.left_out)
    tell_left_out(root, found.left_out)
    read_headers(root, files)
    if prompts:
        return ImageFolder(root, files, tuple(_rows_by_name(root, files, prompts)))
    if not any(file.parent == root for file in files):
        names = [file.relative_to(root) for file in files]
        rows = (PictureRow(str(name), case_number=case, label=name.parts[0]) for case, name in enumerate(names))
        return ImageFolder(root, files, tuple(rows))
    return ImageFolder(root, files)


def _with_classes(rows: tuple[PictureRow, ...], prompts: Sequence[PromptRow]) -> tuple[PictureRow, ...]:
    """Rows of a manifest without any class with those that a prompt file gives the same cases and prompts."""
    if any(row.label for row in rows):
        return rows
    classes = {(row.case_number, row.prompt): row.label for row in prompts}
    return tuple(replace(row, label=classes.get((row.case_number, row.prompt), "")) for row in rows)


def _is_our_own(folder: Path) -> bool:
    """Whether a folder keeps previews or detections of `salun generate`; anybody's class may have such a name."""
    try:
        return folder.name in _OWN_FOLDERS and read_manifest(folder.parent) is not None
    except UserError:
        return False


def _rows_by_name(root: Path, files: Sequence[Path], prompts: Sequence[PromptRow]) -> Iterator[PictureRow]:
    by_case = {row.case_number: row for row in prompts}
    for file in files:
        found = re.match(r"(\d+)(?:[_-](\d+))?", file.stem)
        row = by_case.get(int(found[1])) if found else None
        if row is None or found is None:
            raise UserError(
                f"{file.name} belongs to no row of the prompt file: names must start with a case_number of "
                "it, such as 12_0.png."
            )
        yield PictureRow(
            file=str(file.relative_to(root)),
            prompt=row.prompt,
            seed=row.seed,
            guidance=row.guidance or 0.0,
            case_number=row.case_number,
            sample=int(found[2] or 0),
            label=row.label,
        )


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a sequence into pieces of `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def decoded(files: Sequence[Path], batch_size: int, *, resize: int | None = None) -> Iterator[list[Image.Image]]:
    """Decode pictures batch by batch as 8-bit RGB; the next batch is decoded while this one is used.

    Args:
        files: Pictures.
        batch_size: Pictures at once.
        resize: Scale the shorter side to this length (Lanczos) and crop the centre square; None keeps the size.

    Raises:
        UserError: If a file is no picture.
    """
    pieces = list(batches(files, batch_size))
    with ThreadPoolExecutor(4) as pool:
        coming = [pool.submit(_decode, file, resize) for file in (pieces[0] if pieces else ())]
        for number in range(len(pieces)):
            pictures = [future.result() for future in coming]
            following = pieces[number + 1] if number + 1 < len(pieces) else ()
            coming = [pool.submit(_decode, file, resize) for file in following]
            yield pictures


def _decode(file: Path, resize: int | None) -> Image.Image:
    picture = read_picture(file)
    return picture if resize is None else square(picture, resize)


def blurred(picture: Image.Image) -> Image.Image:
    """A preview that shows colours and composition only.

    The picture is averaged down to a dozen cells before it is blurred up again, so no sharpening brings it back.
    """
    cells = upright_rgb(picture).resize((_PREVIEW_CELLS, _PREVIEW_CELLS), Image.Resampling.BOX)
    return cells.resize(picture.size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(max(picture.size) / 32))


def require_one_size(files: Sequence[Path]) -> tuple[int, int]:
    """The size that all pictures have, read from their headers.

    Raises:
        UserError: If two differ, or a file is no picture.
    """
    if not files:
        raise UserError("At least one picture is required, none is there.")
    first = read_header(files[0]).size
    for file in files:
        size = read_header(file).size
        if size != first:
            raise UserError(
                f"All pictures must have one size: {files[0].name} is {first[0]}×{first[1]}, {file.name} is "
                f"{size[0]}×{size[1]}. --resize N scales the shorter side of each to N and crops the centre."
            )
    return first
