"""Which models are looked at, what they are made of, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from salun_diffusers.errors import UserError
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.studio.records import read_record
from salun_diffusers.studio.shown import Where, shown


@pytest.fixture
def copy_of_run(erased_run, tmp_path) -> Path:
    """To be spoilt."""
    return Path(shutil.copytree(erased_run, tmp_path / "copy"))


def rewrite(file: Path, **changes: object) -> None:
    """Change fields of a JSON file; None takes one away."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


class TestFound:
    def test_a_run(self, erased_run, tiny_pipeline):
        with shown([str(erased_run)], Where()) as found:
            (one,) = found.erased
        assert (found.base, found.base_name) == (tiny_pipeline, str(tiny_pipeline))
        assert (one.name, one.folder, one.masked, one.explicit) == ("disc", erased_run / "pipeline", True, False)
        assert found.prompts[:3] == ("a photo of a circle", "a photo of a square", "a star") and len(found.prompts) == 7
        assert one.record.report is not None and one.record.number("num_inference_steps", 200) == 2
        told = json.loads((erased_run / "report.json").read_text())["mask"]["blocks"]
        assert [(row.name, row.density, row.moved) for row in one.blocks] == [
            (row["name"], row["density"], row["moved"]) for row in told
        ]

    def test_the_pipeline_of_a_run_is_the_run(self, erased_run):
        with shown([str(erased_run / "pipeline")], Where()) as found:
            assert found.erased[0].name == "disc" and found.erased[0].masked

    def test_a_run_of_a_variant(self, copied, copy_of_run):
        """Weight files of result and base are of the run's variant; flags win."""
        for folder in (copied, copy_of_run / "pipeline"):
            for file in [*folder.rglob("*.safetensors")]:
                file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
        rewrite(copy_of_run / "config.json", variant="fp16")
        rewrite(copy_of_run / "report.json", base=str(copied))
        with shown([str(copy_of_run)], Where()) as found:
            assert found.erased[0].variant == found.where.base_variant == "fp16" and found.erased[0].receipt.holds
        with pytest.raises(UserError, match="fp32"), shown([str(copy_of_run)], Where(variant="fp32")):
            pass

    def test_a_folder_without_a_run(self, erased_run, tiny_pipeline, tmp_path):
        alone = shutil.copytree(erased_run / "pipeline", tmp_path / "alone")
        with shown([str(alone)], Where(base=str(tiny_pipeline))) as found:
            (one,) = found.erased
        assert (one.name, one.masked, one.record.report, found.prompts) == ("alone", False, None, ())
        assert 0 < one.receipt.moved < one.receipt.weights

    def test_a_patch_is_put_onto_the_base_for_the_while(self, erased_run, tiny_pipeline):
        with shown([str(erased_run / "patch.safetensors"), str(erased_run)], Where(str(tiny_pipeline))) as found:
            patched, run = found.erased
            assert patched.receipt.moved == run.receipt.moved
            weights = "unet/diffusion_pytorch_model.safetensors"
            assert (patched.folder / weights).read_bytes() == (run.folder / weights).read_bytes()
        assert patched.name == "patch" and not patched.folder.exists()

    def test_models_of_one_name_are_numbered(self, erased_run, copy_of_run):
        with shown([str(erased_run), str(copy_of_run)], Where()) as found:
            assert [one.name for one in found.erased] == ["disc (1)", "disc (2)"]

    def test_a_run_without_a_report_goes_by_its_settings(self, copy_of_run, tiny_pipeline):
        (copy_of_run / "report.json").unlink()
        with shown([str(copy_of_run)], Where()) as found:
            assert (found.base, found.erased[0].name) == (tiny_pipeline, "disc")
            assert found.erased[0].record.report is None


class TestExplicit:
    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"explicit_concept": True}, True),
            ({"explicit_concept": False, "concept": "nudity"}, False),
            # Of runs that did not say it.
            ({"explicit_concept": None}, False),
            ({"explicit_concept": None, "concept": "Nudity"}, True),
            ({"explicit_concept": None, "concept_prompts": {"forget": ["a naked man"]}}, True),
            ({"explicit_concept": None, "concept_prompts": {"concepts": ["heart", "sexual"]}}, True),
            ({"explicit_concept": "no", "concept": 3, "concept_prompts": [1]}, False),
        ],
    )
    def test_by_the_record(self, copy_of_run, changes, expected):
        rewrite(copy_of_run / "config.json", **changes)
        assert read_record(RunFolder(copy_of_run)).explicit is expected

    @pytest.mark.parametrize(("word", "expected"), [("auto", True), ("yes", True), ("no", False)])
    def test_by_the_flag(self, copy_of_run, word, expected):
        rewrite(copy_of_run / "config.json", explicit_concept=True)
        with shown([str(copy_of_run)], Where(explicit=word)) as found:
            assert found.erased[0].explicit is expected

    def test_a_run_writes_it_down(self, erased_run):
        assert json.loads((erased_run / "config.json").read_text())["explicit_concept"] is False


class TestNumbers:
    @pytest.mark.parametrize("value", ["12", True, -1, 201, [3], None])
    def test_of_a_record_are_taken_as_they_are_allowed(self, copy_of_run, value):
        rewrite(copy_of_run / "config.json", num_inference_steps=value)
        assert read_record(RunFolder(copy_of_run)).number("num_inference_steps", 200) is None

    def test_texts(self, copy_of_run):
        rewrite(copy_of_run / "config.json", scheduler=["DDIMScheduler"])
        assert read_record(RunFolder(copy_of_run)).text("scheduler") is None


class TestRefused:
    def refused(self, words: list[str], where: Where | None = None) -> str:
        with pytest.raises(UserError) as told, shown(words, where or Where()):
            pass
        assert "\n" not in str(told.value)
        return str(told.value)

    def test_nothing_there(self, tmp_path, tiny_pipeline):
        line = self.refused([str(tmp_path / "nowhere")], Where(base=str(tiny_pipeline)))
        assert "A run folder, a pipeline folder, a patch file or a hub id is required, there is no" in line

    def test_a_folder_of_something_else(self, tmp_path):
        assert "is neither a run nor a pipeline" in self.refused([str(tmp_path)])

    def test_a_run_whose_pipeline_is_gone(self, copy_of_run):
        shutil.rmtree(copy_of_run / "pipeline")
        assert "is a run without its pipeline" in self.refused([str(copy_of_run)])

    def test_nobody_says_what_the_base_is(self, erased_run, tmp_path):
        alone = shutil.copytree(erased_run / "pipeline", tmp_path / "alone")
        assert "--base is required: nothing beside" in self.refused([str(alone)])

    def test_a_base_that_is_gone(self, copy_of_run):
        rewrite(copy_of_run / "report.json", base="/nowhere/at/all")
        line = self.refused([str(copy_of_run)])
        assert line.startswith(f"the base that {copy_of_run} names (another place of it: --base) cannot be used:")
        assert self.refused([str(copy_of_run)], Where(base="/nowhere")).startswith("--base cannot be used:")

    def test_two_bases(self, erased_run, copy_of_run, other_base):
        rewrite(copy_of_run / "report.json", base=str(other_base))
        assert "All models must be made of one base" in self.refused([str(erased_run), str(copy_of_run)])

    def test_another_base_of_the_same_shape(self, erased_run, other_base):
        line = self.refused([str(erased_run)], Where(base=str(other_base)))
        assert "is not made of" in line and "weights outside the mask differ" in line and "--base" in line

    def test_a_base_of_another_kind(self, erased_run):
        line = self.refused([str(erased_run)], Where(base="digits"))
        assert "do not belong together. Name by --base what it was made of." in line

    def test_what_differs_beside_the_denoiser(self, erased_run, tiny_pipeline, tmp_path):
        alone = shutil.copytree(erased_run / "pipeline", tmp_path / "alone")
        rewrite(alone / "scheduler" / "scheduler_config.json", beta_end=0.5)
        line = self.refused([str(alone)], Where(base=str(tiny_pipeline)))
        assert "Files beside the denoiser differ from the base: scheduler/scheduler_config.json (changed)." in line

    def test_a_patch_of_another_base(self, erased_run, other_base):
        line = self.refused([str(erased_run / "patch.safetensors")], Where(base=str(other_base)))
        assert "The patch needs the base weights with SHA-256" in line

    @pytest.mark.parametrize("content", ["{", "[]", '{"format": "another"}'])
    def test_a_report_that_is_none(self, copy_of_run, content):
        (copy_of_run / "report.json").write_text(content)
        assert "report.json" in self.refused([str(copy_of_run)])

    @pytest.mark.parametrize("changes", [{"concept": 3}, {"base": None}, {"comparisons": 1}, {"mask": []},
                                         {"verdict_reason": {}}])  # fmt: skip
    def test_a_report_with_a_value_of_another_type(self, copy_of_run, changes):
        rewrite(copy_of_run / "report.json", **changes)
        assert "report.json cannot be read as a report" in self.refused([str(copy_of_run)])

    def test_a_mask_that_is_damaged(self, copy_of_run):
        data = bytearray((copy_of_run / "mask.safetensors").read_bytes())
        data[-1] ^= 1
        (copy_of_run / "mask.safetensors").write_bytes(data)
        assert "the bits have been altered" in self.refused([str(copy_of_run)])
