"""Erasing a class of a class-conditional DDPM: the same program, with classes for prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_models import build_ddpm
from torch import Tensor

from salun_diffusers import ClassConditionalDDPMPipeline, EraseConfig, erase
from salun_diffusers.diffusion.families.ddpm import ClassConditionalDDPM
from salun_diffusers.diffusion.objectives import EraseBatch, PromptSwap, guided_noise_loss
from salun_diffusers.diffusion.presets.classes import CIFAR10, class_concept
from salun_diffusers.errors import UserError
from salun_diffusers.files.pipeline_folder import model_index
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.saliency import gradient_saliency
from salun_diffusers.programs.erase import main

TEN = {"id2label": {str(number): str(number) for number in range(10)}}
SMALL = {
    "num_forget_images": 6, "num_retain_images": 5, "num_inference_steps": 2, "guidance_scale": 2,
    "generation_batch_size": 4, "saliency_batch_size": 4, "train_batch_size": 2, "max_train_steps": 4,
    "learning_rate": 1e-3, "num_validation_images": 2, "retain_weight": 1,
}  # fmt: skip


@pytest.fixture
def command(tiny_ddpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.chdir(tmp_path)

    def words(**flags: object) -> list[str]:
        values = {"concept": "dog", "pretrained_model_name_or_path": tiny_ddpm, **SMALL} | flags
        return [word for name, value in values.items() for word in (f"--{name}", str(value))]

    return words


@pytest.fixture
def family(tiny_ddpm: Path) -> ClassConditionalDDPM:
    return ClassConditionalDDPM(tiny_ddpm, device=torch.device("cpu"))


class TestFamily:
    def test_classes_are_conditions_and_the_empty_prompt_is_the_null_class(self, family):
        assert family.encode(["cat", "7", "", "dog"])["class_labels"].tolist() == [0, 2, 3, 1]

    def test_a_loss_is_taken_in_what_the_network_predicts(self, family, tmp_path):
        """The network's answer is not touched, and the drawn noise is told as v."""
        folder = build_ddpm(tmp_path / "v", prediction_type="v_prediction")
        other = ClassConditionalDDPM(folder, device=torch.device("cpu"))
        clean, noise = torch.randn(2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        timesteps, classes = torch.tensor([10, 700]), other.encode(["cat", "dog"])
        noised = other.schedule.noised(clean, noise, timesteps)
        with torch.no_grad():
            answer = other.denoiser(noised, timesteps, **classes).sample
            assert torch.equal(other.predict(other.denoiser, noised, timesteps, classes), answer)
        alpha = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[timesteps].view(-1, 1, 1, 1)
        velocity = (noise - (1 - alpha).sqrt() * noised) / alpha.sqrt()
        torch.testing.assert_close(
            other.schedule.target(clean, noise, timesteps), velocity.float(), atol=1e-4, rtol=1e-4
        )

    def test_pictures_are_their_own_latents(self, family):
        pixels = torch.rand(2, 1, 8, 8)
        mean, deviation = family.encode_images(pixels)
        assert torch.equal(mean, pixels) and not deviation.any()

    def test_draws_do_not_depend_on_the_batch(self, family):
        together = family.generate(["cat", "dog"], [1, 2], num_inference_steps=3, guidance_scale=2.0)
        alone = family.generate(["dog"], [2], num_inference_steps=3, guidance_scale=2.0)
        torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-4)
        assert [picture.mode for picture in family.decode(together)] == ["L", "L"]


class TestParity:
    """Against the formulas of OPTML-Group/Unlearn-Saliency@a6e89fd, DDPM/runners/diffusion.py."""

    def setup_draws(self, family: ClassConditionalDDPM) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(5)
        clean, noise = torch.randn(2, 6, 1, 8, 8, generator=generator)
        timesteps = torch.randint(1000, (6,), generator=generator)
        return family.schedule.noised(clean, noise, timesteps), timesteps, noise, clean

    def test_the_mask(self, family):
        """Per batch: sum of squares over pixels, mean over the batch, of (1+w) cond - w null with w = 2; the gradient
        clipped to norm 1 before it is added; then |sum|, top int(0.5 N). The official loss is D = 64 times ours, which
        clipping undoes only where both norms exceed 1: at this size they do, as the test checks."""
        noised, timesteps, noise, _ = self.setup_draws(family)
        parameters = dict(family.denoiser.named_parameters())
        batches = [slice(0, 3), slice(3, 6)]
        total = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        for part in batches:
            labels, null = torch.full((3,), 1), torch.full((3,), 3)
            conditional = family.denoiser(noised[part], timesteps[part], labels).sample
            unconditional = family.denoiser(noised[part], timesteps[part], null).sample
            guided = 3.0 * conditional - 2.0 * unconditional
            loss = (noise[part] - guided).square().sum(dim=(1, 2, 3)).mean(dim=0)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            norm = torch.sqrt(sum(g.square().sum() for g in gradients if g is not None))
            assert norm > 64
            for tensor, gradient in zip(total.values(), gradients, strict=True):
                if gradient is not None:
                    tensor += gradient / (norm + 1e-6)
        flat = torch.cat([tensor.abs().flatten() for tensor in total.values()])
        ranks = torch.argsort(torch.argsort(-flat, stable=True))
        official = (ranks < int(0.5 * len(flat))).split([tensor.numel() for tensor in total.values()])

        def ours(part: slice) -> Tensor:
            batch = EraseBatch(
                noised[part],
                timesteps[part],
                noise[part],
                {"class_labels": torch.full((3,), 1)},
                empty_conditions={"class_labels": torch.full((3,), 3)},
            )
            return guided_noise_loss(family, family.denoiser, batch, 2.0)

        mask = SaliencyMask.from_saliency(gradient_saliency(parameters, batches, ours, max_grad_norm=1.0), 0.5)
        agree = sum(int((mask[n].flatten() == bits).sum()) for n, bits in zip(parameters, official, strict=True))
        assert agree >= len(flat) - 4  # Two additions may round otherwise and swap weights at the threshold.
        # Rows of other classes in the embedding have no gradient at all.
        assert not mask["class_embedding.weight"][[0, 2]].any()

    def test_the_training_loss(self, family):
        """L = mean (ε_θ(x_t, c) - sg ε_θ(x_t, c'))² + α · (retain error: sum over pixels, mean over pictures).

        Our retain weight is α times the number of pixels.
        """
        noised, timesteps, noise, _ = self.setup_draws(family)
        forget, anchor, retain = (torch.full((3,), label) for label in (1, 2, 0))
        alpha, pixels = 1e-3, 64
        student = family.denoiser(noised[:3], timesteps[:3], forget).sample
        teacher = family.denoiser(noised[:3], timesteps[:3], anchor).sample.detach()
        remaining = family.denoiser(noised[3:], timesteps[3:], retain).sample
        loss_remain = (noise[3:] - remaining).square().sum(dim=(1, 2, 3)).mean(dim=0)
        official = (teacher - student).square().mean() + alpha * loss_remain
        batch = EraseBatch(
            noised, timesteps, noise,
            {"class_labels": torch.cat([forget, retain])}, {"class_labels": torch.cat([anchor, retain])},
        )  # fmt: skip
        objective = PromptSwap(alpha * pixels, teacher="current", retain_target="noise")
        target = objective.target(family, family.denoiser, batch)
        prediction = family.predict(family.denoiser, noised, timesteps, batch.conditions)
        torch.testing.assert_close(objective(prediction, target).total, official)

    def test_the_preset_states_alpha_in_both_reductions(self):
        """1e-3 on a sum over 3 · 32 · 32 pixels is 3.072 on their mean."""
        assert CIFAR10.retain_weight == pytest.approx(1e-3 * 3 * 32 * 32)


class TestConcept:
    def concept(self, folder: Path, **settings):
        settings = {"concept": "dog", "pretrained_model_name_or_path": str(folder)} | settings
        return class_concept(EraseConfig(**settings), model_index(folder), {"sample_size": 8, "in_channels": 1})

    def test_becomes_the_next_class_and_the_last_the_first(self, tiny_ddpm):
        concept = self.concept(tiny_ddpm)
        assert (concept.forget_prompts, concept.anchor_prompts, concept.retain_prompts) == (
            ("dog",), ("7",), ("cat", "7"),
        )  # fmt: skip
        assert self.concept(tiny_ddpm, concept="7").anchor_prompts == ("cat",)

    def test_a_name_goes_before_an_id(self, tiny_ddpm):
        """The class named 7 has id 2; there is no id 7."""
        assert self.concept(tiny_ddpm, concept="7").forget_prompts == ("7",)
        assert self.concept(tiny_ddpm, concept="0").forget_prompts == ("cat",)

    def test_anchor(self, tiny_ddpm):
        assert self.concept(tiny_ddpm, anchor_prompt=("cat",)).anchor_prompts == ("cat",)

    @pytest.mark.parametrize(("base", "detector", "label"), [("digits", "digits", "digit:7"), ("mine", "none", "")])
    def test_only_the_embedded_digits_have_a_judge(self, base, detector, label):
        """Another model of grey digits has the same settings, but its pictures may be of any kind."""
        grey = {"sample_size": 32, "in_channels": 1}
        concept = class_concept(EraseConfig(concept="7", pretrained_model_name_or_path=base), TEN, grey)
        assert (concept.detector, concept.target_labels) == (detector, frozenset({label} - {""}))
        assert [prompt.expected for prompt in concept.retain_evaluation] == [
            f"digit:{number}" if label else "" for number in "012345689"
        ]
        assert concept.numbers.num_forget_images == 96

    @pytest.mark.parametrize(
        ("network", "made_for"),
        [
            ({"sample_size": 32, "in_channels": 1}, "the embedded digits' (10 classes of 32 x 32 x 1)"),
            ({"sample_size": 32, "in_channels": 3}, "CIFAR-10's of the official code (10 classes of 32 x 32 x 3)"),
            ({"sample_size": 64, "in_channels": 3}, "code, which this model is not (10 classes of 64 x 64 x 3)"),
            ({"sample_size": 28, "in_channels": 1}, "code, which this model is not (10 classes of 28 x 28 x 1)"),
            ({}, "code, which this model is not (10 classes of None x None x None)"),
        ],
    )
    def test_numbers_follow_classes_and_size_not_names(self, network, made_for):
        """A CIFAR-10 model that was saved without names has those of the digits: 5,000 pictures, not 96."""
        concept = class_concept(EraseConfig(concept="7"), TEN, network)
        assert concept.numbers_of.endswith(made_for)
        assert (concept.numbers == CIFAR10) is ("digits" not in made_for)
        assert concept.numbers.num_forget_images == (96 if "digits" in made_for else 5000)

    def test_the_plan_says_what_the_numbers_were_made_for(self, tmp_path, capsys):
        """The model's own files decide: its U-Net draws 32 x 32 x 3, its ten classes are called 0 to 9."""
        from diffusers import DDIMScheduler, UNet2DModel

        unet = UNet2DModel(
            sample_size=32, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4, attention_head_dim=4, num_class_embeds=11,
        )  # fmt: skip
        ClassConditionalDDPMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path / "cifar")
        words = ["--concept", "7", "--pretrained_model_name_or_path", str(tmp_path / "cifar"), "--dry_run"]
        assert main(words) == 0
        plan = capsys.readouterr().out
        assert "numbers   CIFAR-10's of the official code (10 classes of 32 x 32 x 3)" in plan
        assert "draw      5000 + 0 + 45000 latents" in plan and "retain weight 3.072" in plan


class TestRun:
    @pytest.mark.parametrize("recipe", ["frozen_teacher", "paper"])
    def test_end_to_end(self, command, tmp_path, tiny_ddpm, recipe):
        assert main(command(output_dir="run", recipe=recipe, anchor="cat")) == 0
        pipe = ClassConditionalDDPMPipeline.from_pretrained(tmp_path / "run" / "pipeline")
        pipe.set_progress_bar_config(disable=True)
        assert isinstance(pipe("dog", num_inference_steps=2).images[0], Image.Image)
        mask = SaliencyMask.load(tmp_path / "run" / "mask.safetensors")
        name = "unet/diffusion_pytorch_model.safetensors"
        before, after = load_file(tiny_ddpm / name), load_file(tmp_path / "run" / "pipeline" / name)
        assert any((after[key] != before[key]).any() for key in before)
        assert all(torch.equal(after[key][~mask[key]], before[key][~mask[key]]) for key in before)
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        assert report["receipt"]["outside_mask_identical"] is True
        assert json.loads((tmp_path / "run" / "config.json").read_text())["concept_prompts"]["anchor"] == ["cat"]

    def test_resumed_it_ends_with_the_same_bits(self, command, tmp_path, monkeypatch):
        assert main(command(output_dir="whole", checkpointing_steps=2)) == 0
        from salun_diffusers.diffusion import trainer

        real, calls = trainer._step, []

        def stop(*arguments, **keywords):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return real(*arguments, **keywords)

        monkeypatch.setattr(trainer, "_step", stop)
        assert main(command(output_dir="parts", checkpointing_steps=2)) == 130
        monkeypatch.setattr(trainer, "_step", real)
        assert main([*command(output_dir="parts", checkpointing_steps=2), "--resume_from_checkpoint", "latest"]) == 0
        name = "pipeline/unet/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    def test_from_python(self, tiny_ddpm):
        result = erase(EraseConfig(concept="dog", pretrained_model_name_or_path=str(tiny_ddpm), **SMALL))
        assert type(result.pipeline) is ClassConditionalDDPMPipeline
        assert result.folder is None

    def test_a_second_run_takes_up_what_the_first_one_drew(self, command, tmp_path, monkeypatch):
        """The sets and the pictures before: 6 + 5 + 0 latents, 2 pictures of 3 classes; then only those after."""
        drawn = []
        real = ClassConditionalDDPM.generate

        def counted(family, prompts, seeds, **how):
            drawn.extend(zip(prompts, seeds, strict=True))
            return real(family, prompts, seeds, **how)

        monkeypatch.setattr(ClassConditionalDDPM, "generate", counted)
        assert main(command(output_dir="alone")) == 0
        assert len(drawn) == 6 + 5 + 2 * 3 + 2 * 3
        for name in ("first", "second"):
            drawn.clear()
            assert main(command(output_dir=name, generated_data_dir="drawn")) == 0
        assert len(drawn) == 2 * 3
        alone, second = (
            load_file(tmp_path / run / "pipeline/unet/diffusion_pytorch_model.safetensors")
            for run in ("alone", "second")
        )
        assert all(torch.equal(alone[name], second[name]) for name in alone)

    def test_real_pictures_instead_of_generated_ones(self, command, tmp_path):
        for number, name in enumerate(("cat", "dog", "7")):
            (tmp_path / "data" / name).mkdir(parents=True)
            for item in range(3):
                Image.new("RGB", (20, 20), (40 * number, 40 * number, 40 * item)).save(
                    tmp_path / "data" / name / f"{item}.png"
                )
        assert main(command(output_dir="run", train_data="data")) == 0
        work = {path.name for path in (tmp_path / "run" / "work").iterdir()}
        assert "forget.safetensors" not in work


class TestBadInput:
    def test_generated_data_dir_is_a_file(self, command, capsys, tmp_path):
        (tmp_path / "drawn").write_text("x")
        assert main(command(generated_data_dir="drawn")) == 2
        assert "--generated_data_dir must be a folder" in capsys.readouterr().err

    @pytest.fixture
    def refused(self, command, capsys, tmp_path) -> Callable[..., str]:
        def attempt(*contents: str, **flags: object) -> str:
            before = sorted(path.name for path in tmp_path.iterdir())
            assert main(command(**flags)) == 2
            line = capsys.readouterr().err
            assert line.startswith("error: ")
            assert line.count("\n") == 1
            for content in contents:
                assert content in line
            assert sorted(path.name for path in tmp_path.iterdir()) == before
            return line

        return attempt

    def test_class_out_of_range(self, refused):
        refused("--concept must be one of the model's classes (cat, dog, 7)", "0 to 2", "'9'", concept="9")
        refused("'bird'", concept="bird")
        refused("--concept must be", concept="")

    def test_null_class(self, refused):
        refused("the null class, which stands for no class at all", concept="3")

    def test_anchor_unknown_or_the_same(self, refused):
        refused("--anchor_prompt must be one of", anchor_prompt="bird")
        refused("must differ", anchor_prompt="dog")

    def test_prompts_make_no_sense(self, refused):
        refused("knows classes, not prompts", forget_prompt="a dog")
        refused("knows classes, not prompts or kinds", kind="object")

    def test_one_class(self, refused, tmp_path):
        folder = build_ddpm(tmp_path / "one", names=("dog",))
        refused("The model has one class", pretrained_model_name_or_path=folder)

    def test_folder_of_another_kind(self, refused, tmp_path, tiny_ddpm):
        index = json.loads((tiny_ddpm / "model_index.json").read_text())
        (tmp_path / "other" / "unet").mkdir(parents=True)
        (tmp_path / "other" / "model_index.json").write_text(json.dumps(index | {"_class_name": "DiTPipeline"}))
        refused("is a DiTPipeline", pretrained_model_name_or_path=tmp_path / "other")

    def test_pictures_missing(self, refused, tmp_path):
        (tmp_path / "data" / "dog").mkdir(parents=True)
        refused("one folder of pictures per class", train_data="data")
        Image.new("L", (8, 8)).save(tmp_path / "data" / "dog" / "0.png")
        (tmp_path / "data" / "dog" / "1.png").write_text("no picture")
        refused("1.png cannot be read as a picture", train_data="data")
        (tmp_path / "data" / "dog" / "1.png").unlink()
        refused("lacks '7'", train_data="data")

    def test_train_data_for_a_pipeline_that_draws(self, tiny_pipeline, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["--concept", "circle", "--pretrained_model_name_or_path", str(tiny_pipeline),
                     "--train_data", "digits"]) == 2  # fmt: skip
        assert "--train_data is for class-conditional models" in capsys.readouterr().err


def test_an_unknown_class_raises_in_python(tiny_ddpm):
    with pytest.raises(UserError, match="model's classes"):
        erase(EraseConfig(concept="bird", pretrained_model_name_or_path=str(tiny_ddpm)))
