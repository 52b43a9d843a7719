"""The one walk: links, hidden files, endings, order, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from salun_diffusers.errors import UserError
from salun_diffusers.pictures.picture_files import find_pictures, local_folder, read_headers, tell_left_out


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def names(root: Path) -> list[str]:
    return [str(file.relative_to(root)) for file in find_pictures(root).files]


def test_links_are_followed(tmp_path: Path) -> None:
    """Folders and files, two links to one folder, and links to links; a dangling one is no picture."""
    save(tmp_path / "store" / "dog" / "1.png")
    save(tmp_path / "set" / "cat" / "0.png")
    root = tmp_path / "set"
    (root / "dog").symlink_to(tmp_path / "store" / "dog")
    (root / "hound").symlink_to(root / "dog")
    (root / "cat" / "1.png").symlink_to(tmp_path / "store" / "dog" / "1.png")
    (root / "cat" / "2.png").symlink_to(tmp_path / "absent.png")
    found = find_pictures(root)
    assert names(root) == ["cat/0.png", "cat/1.png", "dog/1.png", "hound/1.png"]
    assert found.left_out == {"no file behind the name": 1}


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    save(tmp_path / "a" / "0.png")
    save(tmp_path / "b" / "1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    assert set(names(tmp_path)) == {"a/0.png", "a/b/1.png", "b/1.png", "b/a/0.png"}


def test_hidden_files_and_those_of_systems(tmp_path: Path) -> None:
    for name in ("0.png", "._0.png", ".hidden.png", ".ipynb_checkpoints/0.png", "__MACOSX/0.png", "cat/._1.png"):
        save(tmp_path / name)
    assert names(tmp_path) == ["0.png"]
    assert find_pictures(tmp_path).left_out == {"hidden or the system's": 5}


def test_the_folder_itself_may_be_hidden(tmp_path: Path) -> None:
    save(tmp_path / ".cache" / "0.png")
    assert names(tmp_path / ".cache") == ["0.png"]


def test_every_ending_that_can_be_decoded(tmp_path: Path) -> None:
    for ending in ("PNG", "jpg", "JPEG", "jfif", "gif", "tif", "tiff", "webp", "bmp", "tga", "ppm"):
        save(tmp_path / f"0.{ending}")
    assert len(find_pictures(tmp_path).files) == 11
    assert len(read_headers(tmp_path, find_pictures(tmp_path).files)) == 11


def test_what_is_left_out_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "0.png")
    for name in ("a.txt", "b.TXT", "c.svg", "Makefile"):
        (tmp_path / name).touch()
    for _ in range(2):
        tell_left_out(tmp_path, find_pictures(tmp_path).left_out)
    line = f"note: {tmp_path}: 4 left out (1 ending (none), 1 ending .svg, 2 ending .txt).\n"
    assert capsys.readouterr().err == line


def test_frames_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "0.png")
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "1.gif", save_all=True, append_images=frames[1:])
    for _ in range(2):
        read_headers(tmp_path, find_pictures(tmp_path).files)
    assert capsys.readouterr().err == (
        f"note: {tmp_path}: 1 of 2 pictures have several frames; of each the first counts.\n"
    )


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "cat" / "0.png")
    own = Path.iterdir

    def refuse(folder: Path):
        if folder.name == "cat":
            raise PermissionError(13, "Permission denied")
        return own(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"cat cannot be read \(Permission denied\)"):
        find_pictures(tmp_path)


@pytest.mark.parametrize("name", ["absent", "~nobody-has-this-name/x", "x" * 300, "a\0b"])
def test_no_folder(name: str) -> None:
    with pytest.raises(UserError, match="A folder of pictures is required"):
        local_folder(name, "A folder of pictures")
