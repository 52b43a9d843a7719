"""Folders of pictures: their files, what each should show, batches of decoded pixels, blurred previews."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageFilter

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.manifest import Manifest, PictureRow, read_manifest
from salun_diffusers.evaluation.prompt_files import PromptRow

T = TypeVar("T")
_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_OWN_FOLDERS = {"previews", "detections"}
_PREVIEW_CELLS = 12  # across and down


@dataclass(frozen=True)
class ImageFolder:
    """A folder of pictures.

    Args:
        root: The folder.
        files: Its pictures, in a fixed order; empty where only detections were kept.
        rows: What is known of each picture, in the same order; empty where nothing is.
        explicit: Whether only detections were kept.
        manifest: What the folder says of itself, or None.
    """

    root: Path
    files: tuple[Path, ...]
    rows: tuple[PictureRow, ...] = ()
    explicit: bool = False
    manifest: Manifest | None = None

    def __len__(self) -> int:
        return len(self.rows or self.files)

    def without(self, classes: Sequence[str]) -> ImageFolder:
        """The pictures that were not drawn for some classes.

        Raises:
            UserError: If nothing is known of the pictures, or nothing is left.
        """
        if not classes:
            return self
        if not any(row.label for row in self.rows):
            raise UserError(
                f"Leaving classes out needs to know them: {self.root} has no classes in a manifest or as sub-folders."
            )
        kept = [at for at, row in enumerate(self.rows) if row.label not in classes]
        if not kept:
            raise UserError(f"{self.root} has no pictures of other classes than {', '.join(classes)}.")
        files = tuple(self.files[at] for at in kept) if self.files else ()
        return ImageFolder(self.root, files, tuple(self.rows[at] for at in kept), self.explicit, self.manifest)


def read_image_folder(path: str | Path, prompts: Sequence[PromptRow] = ()) -> ImageFolder:
    """Find the pictures below a folder.

    What they should show comes from the folder's manifest, else from `prompts` by the number that each name starts
    with (``<case_number>_<n>.png``, as the field's scripts write them), else from sub-folders named after classes.

    Args:
        path: Any folder.
        prompts: Rows of the prompt file that the pictures were made from.

    Raises:
        UserError: If there is no such folder, no picture in it, one has no picture's header, or pictures of its
            manifest are missing.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"A folder of pictures is required; there is no folder {root}.")
    manifest = read_manifest(root)
    if manifest is not None:
        kept = [root / row.file for row in manifest.pictures]
        present = tuple(file for file in kept if file.is_file())
        if len(present) < len(kept) and not (manifest.explicit and not present):
            raise UserError(
                f"{root} is unfinished: {len(kept)} pictures are required by its manifest, found "
                f"{len(present)}; the command in the manifest goes on where it stopped."
            )
        _require_readable(present)
        return ImageFolder(root, present, manifest.pictures, manifest.explicit, manifest)
    files = tuple(
        file
        for file in sorted(root.rglob("*"), key=lambda file: _natural(str(file.relative_to(root))))
        if file.suffix.lower() in _ENDINGS
        and file.is_file()
        and not any(part.startswith(".") or part in _OWN_FOLDERS for part in file.relative_to(root).parts[:-1])
    )
    if not files:
        raise UserError(f"{root} must hold pictures ({', '.join(sorted(_ENDINGS))}); it has none.")
    _require_readable(files)
    if prompts:
        return ImageFolder(root, files, tuple(_rows_by_name(root, files, prompts)))
    if all(len(file.relative_to(root).parts) > 1 for file in files):
        names = [file.relative_to(root) for file in files]
        rows = (PictureRow(str(name), case_number=case, label=name.parts[0]) for case, name in enumerate(names))
        return ImageFolder(root, files, tuple(rows))
    return ImageFolder(root, files)


def _natural(name: str) -> list[tuple[int, str]]:
    """Order ``2.png`` before ``10.png``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


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
    try:
        with Image.open(file) as picture:
            rgb = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} cannot be read as a picture ({error}); remove it or copy it again.") from error
    if resize is None:
        return rgb
    scale = resize / min(rgb.size)
    scaled = rgb.resize(
        (max(resize, round(rgb.width * scale)), max(resize, round(rgb.height * scale))), Image.Resampling.LANCZOS
    )
    left, top = (scaled.width - resize) // 2, (scaled.height - resize) // 2
    return scaled.crop((left, top, left + resize, top + resize))


def blurred(picture: Image.Image) -> Image.Image:
    """A preview that shows colours and composition only.

    The picture is averaged down to a dozen cells before it is blurred up again, so no sharpening brings it back.
    """
    cells = picture.convert("RGB").resize((_PREVIEW_CELLS, _PREVIEW_CELLS), Image.Resampling.BOX)
    return cells.resize(picture.size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(max(picture.size) / 32))


def _size(file: Path) -> tuple[int, int]:
    """The size that a picture's header says."""
    try:
        with Image.open(file) as picture:
            return picture.size
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} cannot be read as a picture ({error}); remove it or copy it again.") from error


def _require_readable(files: Sequence[Path]) -> None:
    """Look at every header before any network is loaded."""
    for file in files:
        _size(file)


def require_one_size(files: Sequence[Path]) -> tuple[int, int]:
    """The size that all pictures have, read from their headers.

    Raises:
        UserError: If two differ, or a file is no picture.
    """
    if not files:
        raise UserError("At least one picture is required, none is there.")
    first = _size(files[0])
    for file in files:
        size = _size(file)
        if size != first:
            raise UserError(
                f"All pictures must have one size: {files[0].name} is {first[0]}×{first[1]}, {file.name} is "
                f"{size[0]}×{size[1]}. --resize N scales the shorter side of each to N and crops the centre."
            )
    return first
