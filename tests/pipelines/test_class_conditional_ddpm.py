"""The pipeline in one file: labels, guidance, output, saving and loading."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Union, get_origin

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline

from salun_diffusers import ClassConditionalDDPMPipeline
from salun_diffusers.pipelines import class_conditional_ddpm

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pipe(tiny_ddpm: Path) -> ClassConditionalDDPMPipeline:
    pipe = ClassConditionalDDPMPipeline.from_pretrained(tiny_ddpm)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(count)]


def draw(pipe, labels, **settings):
    settings = {"num_inference_steps": 3, "output_type": "latent", "generator": generators(len(labels))} | settings
    return pipe(labels, **settings).images


class TestLabels:
    def test_by_id_and_by_name(self, pipe):
        """The third class is named 7: as a text it is a name, as a number an id."""
        assert pipe.get_label_ids(["dog", 0, "7", 2]) == [1, 0, 2, 2]
        assert pipe.get_label_ids("cat") == [0]
        assert torch.equal(draw(pipe, ["cat", "dog"]), draw(pipe, [0, 1]))

    @pytest.mark.parametrize("label", [3, -1, 7, "bird", "0"])
    def test_others_are_refused(self, pipe, label):
        """3 is the null class: it can be asked for by nobody."""
        with pytest.raises(ValueError, match=r"ids from 0 to 2 or names \(cat, dog, 7\)"):
            pipe(label)

    def test_names_must_fit_the_unet(self, pipe):
        with pytest.raises(ValueError, match="must give 3 different names"):
            ClassConditionalDDPMPipeline(pipe.unet, pipe.scheduler, {0: "a", 1: "b"})
        with pytest.raises(ValueError, match="must give 3 different names"):
            ClassConditionalDDPMPipeline(pipe.unet, pipe.scheduler, {0: "a", 1: "a", 2: "b"})

    def test_a_unet_without_classes_is_refused(self, pipe):
        from diffusers import UNet2DModel

        config = {**pipe.unet.config, "num_class_embeds": None}
        with pytest.raises(ValueError, match="num_class_embeds"):
            ClassConditionalDDPMPipeline(UNet2DModel.from_config(config), pipe.scheduler)


class TestDrawing:
    def test_a_picture_depends_on_its_own_generator_only(self, pipe):
        together = draw(pipe, ["cat", "dog", "cat"])
        alone = draw(pipe, ["dog"], generator=generators(2)[1:])
        torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-4)

    def test_guidance_is_a_straight_line(self, pipe):
        """One step from the same noise: the prediction at g = 3 lies at null + 3 (conditional - null)."""
        noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        timestep, ids = torch.tensor(999), torch.tensor([1])
        with torch.no_grad():
            conditional = pipe.unet(noise, timestep, ids).sample
            null = pipe.unet(noise, timestep, torch.tensor([3])).sample
        expected = pipe.scheduler
        expected.set_timesteps(1)
        wanted = expected.step(null + 3 * (conditional - null), expected.timesteps[0], noise).prev_sample
        drawn = draw(pipe, ["dog"], latents=noise, num_inference_steps=1, guidance_scale=3.0)
        torch.testing.assert_close(drawn, wanted, atol=1e-5, rtol=1e-4)

    def test_without_guidance_the_null_class_is_not_asked(self, pipe):
        rows = []
        pipe.unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
        draw(pipe, ["cat", "dog"], guidance_scale=1.0, num_inference_steps=1)
        draw(pipe, ["cat", "dog"], guidance_scale=2.0, num_inference_steps=1)
        assert rows == [2, 4]

    def test_output_types(self, pipe):
        raw = draw(pipe, ["cat"])
        floats = draw(pipe, ["cat"], output_type="pt")
        assert torch.equal(floats, (raw / 2 + 0.5).clamp(0, 1))
        array = draw(pipe, ["cat"], output_type="np")
        assert np.array_equal(array, floats.permute(0, 2, 3, 1).numpy())
        picture = draw(pipe, ["cat"], output_type="pil")[0]
        assert np.array_equal(np.asarray(picture), (array[0, :, :, 0] * 255).round().astype("uint8"))
        assert torch.equal(
            pipe(["cat"], output_type="latent", num_inference_steps=3, generator=generators(1), return_dict=False)[0],
            raw,
        )
        with pytest.raises(ValueError, match="output_type must be"):
            pipe("cat", output_type="jpg")

    def test_the_callback_may_change_the_course(self, pipe):
        seen = []

        def callback(pipeline, step, timestep, values):
            seen.append((step, int(timestep)))
            return {"latents": torch.zeros_like(values["latents"])}

        drawn = draw(pipe, ["cat"], callback_on_step_end=callback)
        assert seen == [(0, 999), (1, 666), (2, 332)]
        assert not drawn.any()

    def test_ddpm_draws_its_noise_from_the_generator(self, pipe):
        ancestral = ClassConditionalDDPMPipeline(
            pipe.unet, DDPMScheduler.from_config(pipe.scheduler.config), pipe.config.id2label
        )
        ancestral.set_progress_bar_config(disable=True)
        assert torch.equal(draw(ancestral, ["cat"]), draw(ancestral, ["cat"]))

    def test_generators_must_fit(self, pipe):
        with pytest.raises(ValueError, match="One generator per picture"):
            pipe(["cat", "dog"], generator=generators(3))


class TestFolder:
    def test_it_carries_its_code_and_loads_either_way(self, pipe, tiny_ddpm, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
        file = "class_conditional_ddpm.py"
        assert (tiny_ddpm / file).read_bytes() == Path(class_conditional_ddpm.__file__).read_bytes()
        trusted = DiffusionPipeline.from_pretrained(tiny_ddpm, trust_remote_code=True)
        trusted.set_progress_bar_config(disable=True)
        assert type(trusted) is not type(pipe)
        assert torch.equal(draw(trusted, ["cat", "7"]), draw(pipe, ["cat", "7"]))

    def test_its_annotations_are_what_old_diffusers_reads(self):
        """Up to 0.36 it knows classes and `Union`, no texts and no bars, and fails at the first argument it lacks."""
        arguments = inspect.signature(ClassConditionalDDPMPipeline.__init__).parameters.values()
        for argument in arguments:
            assert inspect.isclass(argument.annotation) or get_origin(argument.annotation) is Union, argument

    @pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16])
    def test_its_data_type_is_what_is_asked_for(self, tiny_ddpm, dtype):
        pipe = ClassConditionalDDPMPipeline.from_pretrained(tiny_ddpm, dtype=dtype)
        assert pipe.unet.dtype == (dtype or torch.float32)

    def test_saved_again_it_is_the_same(self, pipe, tiny_ddpm, tmp_path):
        pipe.save_pretrained(tmp_path)
        names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
        assert names == sorted(path.relative_to(tiny_ddpm) for path in tiny_ddpm.rglob("*") if path.is_file())
        assert json.loads((tmp_path / "model_index.json").read_text())["id2label"] == {"0": "cat", "1": "dog", "2": "7"}
        pipe.save_pretrained(tmp_path)  # Over itself.

    def test_other_folders_are_refused(self, tiny_pipeline):
        with pytest.raises(ValueError, match="StableDiffusionPipeline"):
            ClassConditionalDDPMPipeline.from_pretrained(tiny_pipeline)

    def test_the_file_in_pipelines_is_this_one(self):
        assert (ROOT / "pipelines" / "class_conditional_ddpm.py").read_text() == Path(
            class_conditional_ddpm.__file__
        ).read_text()
