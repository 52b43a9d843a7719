"""Places that cannot be written, or must not be, are told before anything heavy, by every program that writes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from salun_diffusers.__main__ import main as salun
from salun_diffusers.errors import UserError
from salun_diffusers.files.output_places import require_outside_components, require_writable
from salun_diffusers.files.run_folder import identity_of
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.patch import WeightPatch
from salun_diffusers.programs.erase import main

pytestmark = pytest.mark.usefixtures("empty_folder")

# Flags of each program but the one in question, that flag, and the first heavy thing it would do.
PROGRAMS: dict[str, tuple[str, str, str]] = {
    "erase": ("", "--output_dir", "diffusion.base_model.identity_of"),
    "erase, latents": ("", "--generated_data_dir", "diffusion.base_model.identity_of"),
    "generate": ("--pretrained_model_name_or_path BASE --prompts p.txt", "--output_dir",
                 "evaluation.drawing_pipeline.load_pipeline"),
    "patch make": ("BASE BASE", "", "masks.patch.stored_weights"),
    "patch apply": ("BASE p.safetensors", "", "masks.patch.stored_weights"),
    "patch stack": ("p.safetensors p.safetensors", "", "masks.patch.load_file"),
    "export single-file": ("BASE", "", "files.original_layout.stored_tensors"),
    "train-ddpm": ("", "--output_dir", "diffusion.ddpm_training.load_pictures"),
    "train-classifier": ("--dataset digits", "--output_dir", "classification.datasets.load_pools"),
    "unlearn-classifier": ("--model BASE --forget_class 1", "--output_dir", "classification.models.load_classifier"),
    "evaluate fid": ("--images a --reference b", "--output_dir", "evaluation.feature_extractors.make_extractor"),
    "evaluate fid, features": ("--images a --reference b", "--cache_dir",
                               "evaluation.feature_extractors.make_extractor"),
    "evaluate nudity": ("--images a", "--output_dir", "evaluation.nudity.NudeNet.boxes"),
    "evaluate objects": ("--images classes --forget a --classifier demo", "--output_dir",
                         "evaluation.objects.ObjectClassifier"),
    "evaluate alignment": ("--images a --before b", "--output_dir", "evaluation.alignment.pixel_distances"),
    "compare": ("a", "--output_dir", "programs.compare.read_runs"),
}  # fmt: skip


@pytest.fixture
def words(tiny_pipeline: Path, small_run: Callable[..., list[str]], noise_folder: Callable[..., Path]):
    """The command line of a program that would write to a place."""

    def command(title: str, place: Path) -> list[str]:
        given, flag, _ = PROGRAMS[title]
        Path("p.txt").write_text("a star\n")
        for number, name in enumerate("ab"):
            if not Path(name).exists():
                shutil.copytree(noise_folder(100 if "fid" in title else 3, seed=number), name)
                shutil.copytree(name, Path("classes") / name)
        if not Path("p.safetensors").exists():
            WeightPatch({}, {}, "0" * 64, "0" * 64).save("p.safetensors")
        told = [str(tiny_pipeline) if word == "BASE" else word for word in given.split()]
        if title.startswith("erase"):
            told = small_run()
        return [*title.split(",")[0].split(), *told, *([flag] if flag else []), str(place)]

    return command


@pytest.mark.parametrize("title", PROGRAMS)
@pytest.mark.parametrize("why", ["is a file", "may not be written to"])
def test_told_before_anything_heavy(title, why, words, capsys, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and allowed(path, mode))

    def heavy(*_: object, **__: object) -> None:
        raise AssertionError("something heavy was done")

    monkeypatch.setattr(f"salun_diffusers.{PROGRAMS[title][2]}", heavy)
    place = tmp_path / ("file" if why == "is a file" else "locked") / "deep" / "out"
    assert salun(words(title, place)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert f"{place.parents[1]} {why}" in err and "must be a folder that can be written" in err
    assert not place.exists()


def test_what_can_be_written_is_not_made(tmp_path):
    require_writable(tmp_path / "a" / "b", "--output_dir")
    assert [*tmp_path.iterdir()] == []


def test_a_link_to_nowhere_is_no_folder(tmp_path):
    for name, target in (("dangling", "nowhere"), ("circle", "circle")):
        link = tmp_path / name
        link.symlink_to(tmp_path / target)
        for place in (link, link / "deep" / "out"):
            with pytest.raises(UserError, match=f"{name} is a link to nowhere"):
                require_writable(place, "--output_dir")
    (tmp_path / "folder").mkdir()
    (tmp_path / "good").symlink_to(tmp_path / "folder")
    require_writable(tmp_path / "good" / "out", "--output_dir")


class TestInsideTheBase:
    @pytest.mark.parametrize("flag", ["output_dir", "generated_data_dir"])
    @pytest.mark.parametrize("place", ["unet/out", "vae/deep/out"])
    def test_a_component_is_no_place_for_outputs(self, refused, copied, flag, place):
        refused(f"--{flag} must lie outside of the base's components", str(copied / place.split("/")[0]),
                pretrained_model_name_or_path=copied, **{flag: copied / place})  # fmt: skip

    @pytest.mark.parametrize("title", ["generate", "patch make"])
    def test_nor_for_those_of_other_programs(self, title, words, tiny_pipeline, copied, capsys, tmp_path):
        told = [word.replace(str(tiny_pipeline), str(copied)) for word in words(title, copied / "vae" / "new")]
        assert salun(told) == 2
        assert "must lie outside of the base's components" in capsys.readouterr().err

    def test_by_way_of_a_link(self, copied, tmp_path):
        (tmp_path / "link").symlink_to(copied / "unet")
        with pytest.raises(UserError, match="must lie outside"):
            require_outside_components(tmp_path / "link" / "out", copied, "--output_dir")
        shutil.move(copied / "vae", tmp_path / "vae")
        (copied / "vae").symlink_to(tmp_path / "vae")
        with pytest.raises(UserError, match="must lie outside"):
            require_outside_components(tmp_path / "vae", copied, "--output_dir")

    def test_a_component_that_is_not_there_yet(self, sd14, tmp_path):
        base = Path(shutil.copytree(sd14, tmp_path / "base"))
        shutil.rmtree(base / "safety_checker")
        with pytest.raises(UserError, match="must lie outside"):
            require_outside_components(base / "safety_checker", base, "--output_dir")

    def test_beside_model_index_the_base_stays_what_it_is(self, copied, small_run, tmp_path, capsys):
        """Runs, latents and other folders there change nothing: the run is taken up again, and its receipt holds."""
        before = identity_of(copied)
        flags = {"pretrained_model_name_or_path": copied, "output_dir": copied / "out",
                 "generated_data_dir": copied / "latents"}  # fmt: skip
        assert main(small_run(**flags)) == 0
        (copied / "notes" / "unet").mkdir(parents=True)
        (copied / "notes" / "unet" / "config.json").write_text("{}")
        assert identity_of(copied) == before
        capsys.readouterr()
        assert main(small_run(**flags, resume_from_checkpoint="latest")) == 0
        assert "fine-tuning" not in capsys.readouterr().err
        assert not {"out", "latents", "notes"} & {path.name for path in (copied / "out" / "pipeline").iterdir()}
        mask = copied / "out" / "mask.safetensors"
        assert SaliencyMask.load(mask).number_selected > 0
        assert salun(["verify", str(copied), str(copied / "out" / "pipeline"), "--mask", str(mask)]) == 0
