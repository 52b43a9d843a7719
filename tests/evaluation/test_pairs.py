from pathlib import Path

import pytest
from PIL import Image

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.image_folder import ImageFolder, read_image_folder
from salun_diffusers.evaluation.manifest import Manifest, PictureRow
from salun_diffusers.evaluation.pairs import paired


def folders(root: Path, one: list[str], other: list[str]) -> tuple[ImageFolder, ImageFolder]:
    for side, names in (("a", one), ("b", other)):
        (root / side).mkdir()
        for name in names:
            Image.new("RGB", (4, 4)).save(root / side / name)
    return read_image_folder(root / "a"), read_image_folder(root / "b")


def names(pairs: tuple[ImageFolder, ImageFolder]) -> list[tuple[str, ...]]:
    return list(zip(*([file.name for file in side.files] for side in pairs), strict=True))


def test_names_say_it(tmp_path: Path) -> None:
    """Numbers in names count as numbers."""
    both = folders(tmp_path, ["0.png", "10.png", "2.png"], ["0.jpg", "2.jpg", "10.webp"])
    assert names(paired(*both)) == [("0.png", "0.jpg"), ("2.png", "2.jpg"), ("10.png", "10.webp")]


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (["0.png", "1.png"], ["1.png", "2.png"], "0.png of .*a has no partner in .*b"),
        (["0.png", "1.png"], ["img_0.png", "img_1.png"], "0.png of .*a has no partner"),
        (["0.png"], ["0.png", "1.png"], "1.png of .*b has no partner in .*a"),
        (["0.png", "0.jpg"], ["0.png", "0.jpg"], "have one partner"),
    ],
)
def test_names_that_do_not(tmp_path: Path, one: list[str], other: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        paired(*folders(tmp_path, one, other))


def test_manifests_say_it(tmp_path: Path) -> None:
    first, second = folders(tmp_path, ["0.png", "1.png"], ["7.png", "8.png"])
    Manifest((PictureRow("0.png", "a", 1), PictureRow("1.png", "a", 2)), {}).save(first.root)
    Manifest((PictureRow("7.png", "a", 2), PictureRow("8.png", "a", 1)), {}).save(second.root)
    both = paired(read_image_folder(first.root), read_image_folder(second.root))
    assert names(both) == [("0.png", "8.png"), ("1.png", "7.png")]
    assert [row.seed for row in both[1].rows] == [1, 2]
    Manifest((PictureRow("7.png", "a", 3), PictureRow("8.png", "a", 1)), {}).save(second.root)
    with pytest.raises(UserError, match=r"1.png of .*a has no partner in .*b, their manifests differ"):
        paired(read_image_folder(first.root), read_image_folder(second.root))
