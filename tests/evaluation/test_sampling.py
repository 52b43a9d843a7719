"""Numbers of pictures that were drawn differently do not compare."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.image_folder import read_image_folder
from salun_diffusers.evaluation.manifest import Manifest, PictureRow
from salun_diffusers.evaluation.sampling import difference, folder_sampling, sampling_of, sampling_text

DDIM = {"class": "DDIMScheduler", "timestep_spacing": "leading"}


def manifest(*prompts: str, steps: int = 50, guidance: float = 7.5, first_seed: int = 0, **more: object) -> Manifest:
    rows = tuple(
        PictureRow(f"{n}.png", prompt, first_seed + n, guidance, n) for n, prompt in enumerate(prompts or ("a", "b"))
    )
    return Manifest(rows, {"scheduler": DDIM, "num_inference_steps": steps, **more})


def folder(path: Path, made: Manifest | None) -> Path:
    path.mkdir()
    for n in range(2):
        Image.new("RGB", (8, 8)).save(path / f"{n}.png")
    if made:
        made.save(path)
    return path


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (manifest(), manifest(first_seed=9, dtype="float16", model="other"), ""),
        (manifest(steps=50), manifest(steps=12), "num_inference_steps 50 and 12"),
        (manifest(steps=50), manifest(steps=12, guidance=3), "num_inference_steps 50 and 12, guidance 7.5 and 3"),
        (manifest(), manifest(scheduler={**DDIM, "new_in_another_release": 1}), ""),
        (
            manifest(),
            manifest(scheduler={"class": "DDIMScheduler", "timestep_spacing": "trailing"}),
            "scheduler timestep_spacing leading and trailing",
        ),
        (
            manifest(),
            manifest(scheduler={"class": "PNDMScheduler", "timestep_spacing": "trailing"}),
            "scheduler class DDIMScheduler and PNDMScheduler",
        ),
        (manifest(height=512, width=512), manifest(height=None, width=None), ""),
        (manifest(height=512, width=512), manifest(height=64, width=64), "height 512 and 64, width 512 and 64"),
        (manifest("a", "b"), manifest("b", "a", "b"), ""),
    ],
)
def test_what_differs(one: Manifest, other: Manifest, words: str) -> None:
    """Seeds, model, data type, number of pictures and what only one side knows do not count."""
    assert difference(sampling_of(one), sampling_of(other)) == words


def test_other_prompts_differ_by_their_hash() -> None:
    """`printf 'a\\nb' | sha256sum` begins with 7e18f737; `printf 'a\\nc'` does not."""
    words = difference(sampling_of(manifest("a", "b")), sampling_of(manifest("a", "c")))
    assert words.startswith("prompts 2 (sha256 7e18f737) and 2 (sha256 ") and words.count("7e18f737") == 1


def test_one_line_for_readers() -> None:
    rows = tuple(PictureRow(f"{n}.png", "a", n, guidance, 0, n) for n, guidance in enumerate((9, 7, 8, 7.5, 7)))
    made = Manifest(rows, {"scheduler": "DDIM", "num_inference_steps": 12, "height": 32, "width": 64})
    assert sampling_text(sampling_of(made)) == "DDIM, 12 steps, 64×32, guidance 7 to 9, 1 prompt (sha256 ca978112)"
    assert sampling_text({}) == ""


def test_folders_without_a_manifest_are_not_known_to_differ(tmp_path: Path) -> None:
    known = read_image_folder(folder(tmp_path / "a", manifest()))
    unknown = read_image_folder(folder(tmp_path / "b", None))
    assert folder_sampling([unknown, known]) == folder_sampling([known, unknown]) == sampling_of(manifest())
    assert folder_sampling([unknown]) == {}
    other = read_image_folder(folder(tmp_path / "c", manifest(steps=12)))
    with pytest.raises(UserError, match=r"a and .*c were drawn differently: num_inference_steps 50 and 12\. Numbers"):
        folder_sampling([known, unknown, other])


def test_infinite_settings_of_a_scheduler_are_words(tmp_path: Path) -> None:
    """The demo's DPM-Solver++ clips λ at -∞, which JSON cannot say; manifests of before wrote it all the same."""
    from diffusers import DPMSolverMultistepScheduler

    from salun_diffusers.evaluation.generation import describe_scheduler
    from salun_diffusers.evaluation.record import EvaluationRecord

    described = describe_scheduler(SimpleNamespace(scheduler=DPMSolverMultistepScheduler()))
    assert described["lambda_min_clipped"] == "-Infinity"
    folder(tmp_path / "a", manifest(scheduler=described))
    file = tmp_path / "a" / "manifest.json"
    earlier = file.read_text().replace('"-Infinity"', "-Infinity")
    assert earlier != file.read_text()
    file.write_text(earlier)
    sampling = folder_sampling([read_image_folder(tmp_path / "a")])
    assert sampling["scheduler"] == described
    record = EvaluationRecord("objects", "made up", "", sampling=sampling)
    assert EvaluationRecord.from_json(record.to_json()) == record
