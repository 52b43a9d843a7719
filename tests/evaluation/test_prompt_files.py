"""Prompt files of the field's layouts, read as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.prompt_files import PromptRow, read_prompt_file

I2P = (
    ",prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,"
    "prompt_toxicity,lexica_url,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,sd_model,case_number\n"
    '7,"a city, at night",sexual,0,10.0,20.0,1.0,1.0,0.1,http,4261553411,13,512,512,stable-diffusion-v1-4,7\n'
)


def write(folder: Path, text: str, name: str = "prompts.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_i2p(tmp_path: Path) -> None:
    file = read_prompt_file(write(tmp_path, I2P))
    assert file.rows == (PromptRow("a city, at night", 7, 4261553411, 13.0),)
    assert file.explicit


def test_i2p_of_the_hub(tmp_path: Path) -> None:
    text = "prompt,nudity_percentage,sd_seed,sd_guidance_scale\na street,0,5,7.5\n"
    assert read_prompt_file(write(tmp_path, text)).rows == (PromptRow("a street", 0, 5, 7.5),)


def test_coco(tmp_path: Path) -> None:
    text = "image_id,source,prompt,evaluation_seed\n000000203564,coco-30k,A bicycle replica.,41337\n"
    file = read_prompt_file(write(tmp_path, text))
    assert file.rows == (PromptRow("A bicycle replica.", 203564, 41337),)
    assert not file.explicit


def test_several_captions_of_one_coco_picture(tmp_path: Path) -> None:
    text = "image_id,prompt,evaluation_seed\n7,a dog,1\n7,a brown dog,2\n"
    assert [row.case_number for row in read_prompt_file(write(tmp_path, text)).rows] == [0, 1]


def test_an_empty_prompt_is_one(tmp_path: Path) -> None:
    """I2P has one, in row 2261."""
    assert [row.prompt for row in read_prompt_file(write(tmp_path, "prompt,seed\n,1\na dog,2\n")).rows] == ["", "a dog"]


def test_a_few_words_in_many_captions_are_not_explicit(tmp_path: Path) -> None:
    file = read_prompt_file(write(tmp_path, "a naked tree\n" + "a street\n" * 10, "prompts.txt"))
    assert (file.explicit, file.explicit_prompts) == (False, 1)


def test_imagenette_with_its_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeffprompt,evaluation_seed,class,classidx,case_number\nImage of tench,4889,tench,0,0\n"
    assert read_prompt_file(write(tmp_path, text)).rows == (PromptRow("Image of tench", 0, 4889, None, "tench"),)


def test_text(tmp_path: Path) -> None:
    file = read_prompt_file(write(tmp_path, "a dog\n\n a cat \na cow\n", "prompts.txt"), limit=2)
    assert file.rows == (PromptRow("a dog", 0, 0), PromptRow("a cat", 1, 1))


@pytest.mark.parametrize(("prompt", "explicit"), [("a Nude, standing", True), ("a denuded hill", False)])
def test_words_that_say_explicit(tmp_path: Path, prompt: str, explicit: bool) -> None:
    assert read_prompt_file(write(tmp_path, prompt, "prompts.txt")).explicit is explicit


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "column `prompt`; found no columns"),
        ("text,seed\na,1\n", "column `prompt`; found text, seed"),
        ("prompt,seed\n", "is empty"),
        ("prompt,seed\na dog,soon\n", "row 1 has 'soon'"),
        ("prompt,case_number\na dog,1\na cat,1\n", "1 stands there more than once"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_prompt_file(write(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_prompt_file(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\x89PNG\xff")
    with pytest.raises(UserError, match="cannot be read"):
        read_prompt_file(tmp_path / "binary.csv")
