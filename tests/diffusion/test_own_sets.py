"""Sets of the user's own pictures: encoded once, sampled at every draw, the same wherever a run stops."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import run_in, tiny_settings
from two_processes import run_two

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion import encoding, saliency_pass
from salun_diffusers.diffusion.batches import Draws, shuffled
from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.encoding import require_room
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.families.stable_diffusion_xl import StableDiffusionXL
from salun_diffusers.diffusion.global_batch import Share
from salun_diffusers.diffusion.latent_set import LatentSet, Views
from salun_diffusers.diffusion.latent_sets import EraseData
from salun_diffusers.diffusion.objectives import PromptSwap
from salun_diffusers.diffusion.own_sets import OwnSet, OwnSets, with_own_sets
from salun_diffusers.diffusion.request import accept
from salun_diffusers.errors import UserError
from salun_diffusers.pictures.own_pictures import OwnPicture
from salun_diffusers.programs.erase import main
from salun_diffusers.seeds import stream

CPU = torch.device("cpu")
UNET = "pipeline/unet/diffusion_pytorch_model.safetensors"
OWN = {"retain_prompts": None, "num_forget_images": None, "num_retain_images": None}


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures to forget and two classes of two to retain, all of 20 x 30 pixels of noise."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for name in ("forget/0", "forget/1", "forget/2", "keep/star/0", "keep/star/1", "keep/red_heart/0", "keep/square/0"):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 30, 3)).astype(np.uint8)).save(path)
    return root


@pytest.fixture
def command(small_run, own) -> Callable[..., list[str]]:
    def words(**flags: object) -> list[str]:
        chosen = {"forget_dir": own / "forget", "retain_dir": own / "keep", "center_crop": True}
        return small_run(**(OWN | chosen | flags))

    return words


@pytest.fixture
def run(command, tmp_path, capsys) -> Callable[..., Path]:
    def carry_out(name: str = "run", **flags: object) -> Path:
        assert main(command(output_dir=tmp_path / name, **flags)) == 0, capsys.readouterr().err
        return tmp_path / name

    return carry_out


def centre(path: Path, side: int) -> torch.Tensor:
    """A 20 x 30 picture as diffusers' script gives it to the VAE, by hand."""
    scaled = Image.open(path).resize((int(side * 30 / 20), side), Image.Resampling.LANCZOS)
    left = round((scaled.width - side) / 2)
    pixels = np.asarray(scaled.crop((left, 0, left + side, side)))
    return ((torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - 0.5) / 0.5).unsqueeze(0)


def weights(run: Path) -> bytes:
    return (run / UNET).read_bytes()


class TestPosterior:
    def drawn_set(self) -> LatentSet:
        """Two pictures, the second of which may be mirrored: rows 1 and 2."""
        views = Views(
            torch.arange(1.0, 4.0).view(3, 1, 1, 1), torch.zeros(3, 6), torch.tensor([0, 1]), torch.tensor([1, 2])
        )
        return LatentSet(torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1, 1), torch.tensor([0, 0]), ("x",), views)

    def test_a_draw_is_mean_plus_deviation_times_noise(self):
        items, generator = torch.tensor([1, 0, 1, 1, 0]), stream(0, "draws")
        found = self.drawn_set().draw(items, generator).latents.flatten()
        again = stream(0, "draws")
        hand, noise = torch.rand(5, generator=again), torch.randn(5, 1, 1, 1, generator=again).flatten()
        for item, latent, coin, epsilon in zip(items, found, hand, noise, strict=True):
            mean, deviation = (10, 1) if item == 0 else (20, 2) if coin < 0.5 else (30, 3)
            assert latent == mean + deviation * epsilon

    def test_each_view_is_as_likely_and_each_draw_a_new_one(self):
        drawn = self.drawn_set().draw(torch.ones(4000, dtype=torch.int64), stream(1, "x")).latents.flatten()
        first = drawn[drawn < 25 - 0.001]
        assert 0.45 < (drawn < 25).float().mean() < 0.55
        assert len(drawn.unique()) > 3900 and abs(float(first.mean()) - 20) < 0.5

    def test_generated_latents_ask_for_no_numbers(self):
        generator = stream(0, "x")
        before = generator.get_state()
        plain = LatentSet(torch.arange(3.0).view(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64), ("x",))
        assert plain.draw(torch.tensor([2, 0]), generator).latents.flatten().tolist() == [2, 0]
        assert torch.equal(generator.get_state(), before)

    def test_beside_generated_latents(self, tmp_path):
        plain = LatentSet(torch.full((2, 1, 1, 1), 7.0), torch.tensor([0, 0]), ("x",))
        for both, generated in ((self.drawn_set() + plain, [2, 3]), (plain + self.drawn_set(), [0, 1])):
            both.save(tmp_path / "set")
            loaded = LatentSet.load(tmp_path / "set")
            assert len(both) == 4 and loaded.sha256 == both.sha256
            assert loaded.draw(torch.tensor(generated), stream(0, "a")).latents.flatten().tolist() == [7, 7]
            others = torch.tensor([item for item in range(4) if item not in generated])
            assert set(loaded.draw(others, stream(0, "a")).latents.flatten().tolist()) & {7.0} == set()

    def test_training_sees_it(self, sdxl):
        """x_t = √ᾱ (μ + σ ε) + √(1-ᾱ) n, with another ε in every step, and no matter how a step is cut up."""
        family = StableDiffusionXL(sdxl, device=CPU)
        shape = (3, 4, 4, 4)
        sizes = torch.tensor([[20.0 + row, 30, row, 4, 16, 16] for row in range(3)])
        views = Views(torch.full(shape, 5.0), sizes, torch.arange(3), torch.ones(3, dtype=torch.int64))
        forget = LatentSet(torch.randn(shape, generator=stream(0, "m")), torch.zeros(3).long(), ("a star",), views)
        plain = LatentSet(torch.zeros(shape), torch.zeros(3).long(), ("a heart",))
        conditions = [family.encode([word]) for word in ("a star", "a circle", "a heart", "")]
        data = EraseData(forget, plain, LatentSet.empty(("a circle",)), *conditions)
        settings = tiny_settings()
        draws = Draws(family, data, PromptSwap(1.0, teacher="base", retain_target="base"), settings, [])
        whole = draws.batch(Share(0, 2, range(2), 1.0))
        parts = [draws.batch(Share(0, 2, range(row, row + 1), 1.0)) for row in (0, 1)]
        assert torch.equal(whole.noised[:2], torch.cat([part.noised[:1] for part in parts]))
        other = draws.batch(Share(3, 2, range(2), 1.0))
        samples = []
        for step, batch in ((0, whole), (3, other)):
            items = shuffled(3, 2, step * 2, seed=settings.seed, name="forget")
            sample = forget.draw(items, stream(settings.seed, "posterior", "forget", step)).latents
            generator = stream(settings.seed, "draw", step)
            timesteps = family.schedule.sample(4, generator)
            noise = torch.randn((4, *shape[1:]), generator=generator)
            expected = family.schedule.noised(sample, noise[:2], timesteps[:2])
            assert torch.equal(batch.noised[:2], expected)
            own = torch.tensor([[16.0, 16, 0, 0, 16, 16]]).expand(2, 6)
            for told in (batch.conditions, batch.anchor_conditions, batch.empty_conditions):
                assert torch.equal(told["time_ids"], torch.cat([sizes[items], own]))
            samples.append((sample - forget.latents[items]) / 5)
        assert not torch.equal(*samples)

    @pytest.mark.parametrize("at_once", [3, 1])
    def test_so_does_the_saliency(self, sdxl, tmp_path, monkeypatch, at_once):
        """A sample of each picture's posterior, and its sizes, however many are in memory at once."""
        family, shape, seen = StableDiffusionXL(sdxl, device=CPU), (3, 4, 4, 4), []
        sizes = torch.tensor([[20.0 + row, 30, row, 4, 16, 16] for row in range(3)])
        views = Views(torch.full(shape, 5.0), sizes, torch.arange(3), torch.ones(3, dtype=torch.int64))
        forget = LatentSet(torch.randn(shape, generator=stream(0, "m")), torch.zeros(3).long(), ("a star",), views)
        conditions = [family.encode([word]) for word in ("a star", "a circle", "a heart", "")]
        data = EraseData(forget, forget, LatentSet.empty(("a circle",)), *conditions)
        loss = saliency_pass.guided_noise_loss
        monkeypatch.setattr(saliency_pass, "guided_noise_loss", lambda *words: seen.append(words[2]) or loss(*words))
        settings = tiny_settings(saliency_batch_size=3, saliency_micro_batch_size=at_once)
        parameters = dict(family.denoiser.named_parameters())
        with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
            saliency_pass.forget_saliency(run_in(tmp_path, accelerator), family, parameters, data, settings)
        sample = forget.draw(torch.arange(3), stream(settings.seed, "posterior", "saliency", 0)).latents
        generator = stream(settings.seed, "saliency", 0)
        timesteps = family.schedule.sample(3, generator)
        noise = torch.randn(shape, generator=generator)
        assert torch.equal(torch.cat([one.noised for one in seen]), family.schedule.noised(sample, noise, timesteps))
        for name in ("conditions", "empty_conditions"):
            assert torch.equal(torch.cat([getattr(one, name)["time_ids"] for one in seen]), sizes)


class TestStableDiffusion:
    def test_a_folder_as_of_stable_diffusion_1_4(self, run, sd14, own):
        """Both sets are the user's; the VAE's posterior, scaled, is what is kept of a picture, and no pixels."""
        folder = run(pretrained_model_name_or_path=sd14)
        vae = StableDiffusion(sd14, device=CPU).pipe.vae
        for name, files in (
            ("forget", [f"forget/{n}" for n in range(3)]),
            ("retain", ["keep/red_heart/0", "keep/square/0", "keep/star/0", "keep/star/1"]),
        ):
            kept = LatentSet.load(folder / "work" / f"{name}.safetensors")
            assert len(kept) == len(files)
            for row, file in enumerate(files):
                with torch.no_grad():
                    posterior = vae.encode(centre(own / f"{file}.png", 16)).latent_dist
                torch.testing.assert_close(kept.latents[row], 0.18215 * posterior.mean[0], atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(kept.views.deviations[row], 0.18215 * posterior.std[0], atol=1e-5, rtol=1e-4)
        assert {path.suffix for path in folder.rglob("*") if path.is_file()} & {".jpg", ".png", ".webp"} == {".png"}
        assert all(path.parent.name == "samples" for path in folder.rglob("*.png"))

    def test_records_say_what_they_were(self, run, own):
        folder = run()
        prompts = json.loads((folder / "config.json").read_text())["concept_prompts"]
        assert prompts["forget"] == ["a photo of a circle"] and prompts["anchor"] == ["a photo of a heart"]
        assert prompts["retain"] == [f"an image of a {name}" for name in ("red heart", "square", "star")]
        told = json.loads((folder / "report.json").read_text())["config"]["own_pictures"]
        assert told == json.loads((folder / "config.json").read_text())["own_pictures"]
        assert {name: (one["pictures"], one["generated_beside"], one["captions"]) for name, one in told.items()} == {
            "forget": (3, 0, 1), "retain": (4, 0, 3),
        }  # fmt: skip
        assert len(told["forget"]["sha256"]) == 64 and told["forget"]["sha256"] != told["retain"]["sha256"]
        # Nor is there a latent that was drawn for them: only pictures of the report were.
        drawn = [load_file(path)["latent"] for path in (folder / "work" / "drawn").rglob("*.safetensors")]
        assert sum(latent.dim() == 4 for latent in drawn) == 7

    def test_captions_are_prompts(self, run, own, tmp_path):
        pictures = tmp_path / "captioned"
        pictures.mkdir()
        lines = []
        for number, caption in enumerate(("a red circle", "a photo of a circle", "a red circle")):
            (pictures / f"{number}.png").write_bytes((own / "forget" / f"{number}.png").read_bytes())
            lines.append(json.dumps({"file_name": f"{number}.png", "text": caption}))
        (pictures / "metadata.jsonl").write_text("\n".join(lines))
        folder = run(forget_dir=pictures)
        prompts = json.loads((folder / "config.json").read_text())["concept_prompts"]
        assert prompts["forget"] == ["a red circle", "a photo of a circle"]
        assert prompts["anchor"] == ["a red heart", "a photo of a heart"]
        assert LatentSet.load(folder / "work" / "forget.safetensors").prompt_index.tolist() == [0, 1, 0]

    def test_mixed_with_generated_latents(self, run, own):
        """Half of each set is the user's: three and four are drawn beside three and four; anchor latents as ever."""
        folder = run(generated_share=0.5, num_anchor_images=2, retain_prompts=None)
        sets = {
            name: LatentSet.load(folder / "work" / f"{name}.safetensors") for name in ("forget", "anchor", "retain")
        }
        assert [len(one) for one in sets.values()] == [6, 2, 8]
        assert not sets["forget"].views.deviations[3:].any() and sets["forget"].views.deviations[:3].all()
        assert not sets["anchor"].has_pictures
        assert sets["retain"].prompts[sets["retain"].prompt_index[0]] == "an image of a red heart"
        assert not sets["retain"].prompts[sets["retain"].prompt_index[4]].startswith("an image of a")

    def test_as_many_as_are_asked_for(self, run):
        folder = run(num_forget_images=2, num_retain_images=4, generated_share=0.5)
        page = " ".join((folder / "report.html").read_text().split())
        told = (
            "trained on pictures of the user's: 1 to forget beside 1 generated latents, 2 to retain beside 2 generated"
        )
        assert told in page.replace("&#39;", "'")
        own = json.loads((folder / "report.json").read_text())["config"]["own_pictures"]
        assert [(one["pictures"], one["of"], one["generated_beside"]) for one in own.values()] == [(1, 3, 1), (2, 4, 2)]

    def test_a_set_without_a_folder_is_generated(self, run, retain_file):
        folder = run(retain_dir=None, num_retain_images=5, retain_prompts=retain_file)
        assert LatentSet.load(folder / "work" / "forget.safetensors").has_pictures
        retain = LatentSet.load(folder / "work" / "retain.safetensors")
        assert len(retain) == 5 and not retain.has_pictures

    def test_mirrored_pictures(self, run, own, tiny_pipeline):
        folder = run(random_flip=True)
        kept = LatentSet.load(folder / "work" / "forget.safetensors")
        assert (len(kept), len(kept.latents)) == (3, 6)
        vae = StableDiffusion(tiny_pipeline, device=CPU).pipe.vae
        with torch.no_grad():
            mirrored = vae.encode(centre(own / "forget" / "1.png", 16).flip(-1)).latent_dist.mean * 0.18215
        torch.testing.assert_close(kept.latents[3], mirrored[0], atol=1e-4, rtol=1e-3)
        assert weights(folder) == weights(run("again", random_flip=True)) != weights(run("plain"))

    def test_neither_order_nor_batch_decides(self, run):
        sets = [load_file(run(f"run{size}", generation_batch_size=size) / "work/forget.safetensors") for size in (1, 4)]
        assert all(torch.equal(sets[0][name], sets[1][name]) for name in sets[0])

    def test_explicit_ones_leave_nothing(self, run):
        folder = run(forget_prompt="a nude circle")
        assert not [*(folder / "work").rglob("*.safetensors")]
        assert not [*folder.rglob("forget.safetensors")]


class TestAnchorsOfCaptions:
    @pytest.mark.parametrize(
        ("caption", "expected"),
        [
            ("Two  GARBAGE trucks", "a photo of a gas pump"), ("a Garbage Truck in snow", "a gas pump in snow"),
            ("boats by van gogh", "boats"), ("Van Gogh", "a painting"), ("by Van Gogh", "a photo of a gas pump"),
        ],
    )  # fmt: skip
    def test_have_the_words_exchanged(self, caption, expected):
        """Those in which a forget prompt differs from its anchor; else an anchor prompt, in turn."""
        numbers = tiny_settings()
        concept = Concept(
            "x", ("a photo of a garbage truck", "a painting by Van Gogh"), ("a photo of a gas pump", "a painting"),
            ("a dog",), (), (), numbers,
        )  # fmt: skip
        first = OwnPicture("0", lambda: Image.new("RGB", (8, 8)), "a word" if expected == "a painting" else caption)
        both = OwnSet((first, dataclasses.replace(first, caption=caption)), 0, 2)
        _, found = with_own_sets(OwnSets({"forget": both}), concept, False)
        assert found.anchor_prompts[-1] == expected


class TestStops:
    def test_a_stopped_encoding_goes_on_where_it_was(self, command, run, tmp_path, monkeypatch, capsys):
        whole, moments, asked = run("whole", random_flip=True), encoding._moments, []

        def stopping(family, picture, view):
            asked.append(picture.name)
            if len(asked) == 5:
                raise KeyboardInterrupt
            return moments(family, picture, view)

        monkeypatch.setattr(encoding, "_moments", stopping)
        words = command(output_dir=tmp_path / "cut", random_flip=True)
        assert main(words) == 130
        asked.clear()
        monkeypatch.setattr(encoding, "_moments", lambda *task: asked.append(task) or moments(*task))
        assert main([*words, "--resume_from_checkpoint", "latest"]) == 0
        assert len(asked) == 2 * 7 - 4
        assert weights(tmp_path / "cut") == weights(whole)

    @pytest.mark.parametrize(
        ("flags", "spoil", "expected"),
        [
            ({}, False, False), ({"center_crop": None}, False, True), ({"random_flip": True}, False, True),
            ({"resolution": 24}, False, True), ({}, True, True),
        ],
    )  # fmt: skip
    def test_what_decides_a_set(self, command, run, own, tmp_path, capsys, flags, spoil, expected):
        """A finished run is taken up, and done anew where a picture or a flag that decides is another."""
        folder, pictures = run(), tmp_path / "copy"
        pictures.mkdir()
        for number in range(3):
            shown = Image.open(own / "forget" / f"{number}.png")
            if spoil and number == 1:
                shown.putpixel((4, 4), (1, 2, 3))
            shown.save(pictures / f"{number}.bmp")  # Same content, other file.
        capsys.readouterr()
        words = command(output_dir=folder, forget_dir=pictures, resume_from_checkpoint="latest", **flags)
        assert main(words) == 0
        error = capsys.readouterr().err
        assert ("encoding, forget" in error) == expected == ("fine-tuning" in error)

    @pytest.mark.slow  # Two more imports of torch.
    def test_two_processes_encode_what_one_does(self, command, tmp_path, run):
        program = tmp_path / "program.py"
        program.write_text(
            "import sys\nfrom salun_diffusers.programs.erase import main\nsys.exit(main(sys.argv[1:]))\n"
        )
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            alone = run("alone", random_flip=True, train_batch_size=None)
        finally:
            torch.set_num_threads(threads)
        run_two(program, *command(output_dir=tmp_path / "two", random_flip=True, train_batch_size=None))
        for name in ("forget", "retain"):
            one, two = (load_file(folder / "work" / f"{name}.safetensors") for folder in (alone, tmp_path / "two"))
            assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
        ours, theirs = (load_file(folder / UNET) for folder in (alone, tmp_path / "two"))
        far = sum(int(((ours[name] - theirs[name]).abs() > 1e-4).sum()) for name in ours)
        assert far < 1e-3 * sum(tensor.numel() for tensor in ours.values())


class TestXL:
    def test_is_told_the_size_of_each_picture(self, sdxl, own, run, monkeypatch):
        """Original height and width, corner of the cut, and the size wanted; of generated latents the model's own."""
        seen: list[torch.Tensor] = []
        predict = StableDiffusionXL.predict

        def spied(family, denoiser, noised, timesteps, conditions):
            seen.append(conditions["time_ids"])
            return predict(family, denoiser, noised, timesteps, conditions)

        monkeypatch.setattr(StableDiffusionXL, "predict", spied)
        folder = run(pretrained_model_name_or_path=sdxl, num_anchor_images=2)
        asked = torch.cat(seen).unique(dim=0).tolist()
        assert asked == [[16, 16, 0, 0, 16, 16], [20, 30, 0, 4, 16, 16]]
        kept = LatentSet.load(folder / "work" / "forget.safetensors")
        family = StableDiffusionXL(sdxl, device=CPU)
        with torch.no_grad():
            posterior = family.pipe.vae.encode(centre(own / "forget" / "0.png", 16)).latent_dist
        torch.testing.assert_close(kept.latents[0], 0.13025 * posterior.mean[0], atol=1e-4, rtol=1e-3)

    def test_a_vae_with_statistics_of_its_latents(self, sdxl):
        """As the pipeline decodes: z = x · std / s + mean, so x = (z - mean) · s / std, and back again."""
        family = StableDiffusionXL(sdxl, device=CPU)
        mean, deviation = [0.5, -1.0, 2.0, 0.0], [2.0, 3.0, 0.5, 1.0]
        family.pipe.vae.register_to_config(latents_mean=mean, latents_std=deviation)
        pixels = torch.rand(1, 3, 16, 16, generator=stream(0, "p")) * 2 - 1
        found, spread = family.encode_images(pixels)
        with torch.no_grad():
            posterior = family.pipe.vae.encode(pixels).latent_dist
        by_channel = [torch.tensor(one).view(1, 4, 1, 1) for one in (mean, deviation)]
        torch.testing.assert_close(found, (posterior.mean - by_channel[0]) * 0.13025 / by_channel[1])
        torch.testing.assert_close(spread, posterior.std * 0.13025 / by_channel[1])
        seen: list[torch.Tensor] = []
        decode = family.pipe.vae.decode
        family.pipe.vae.decode = lambda latents: seen.append(latents) or decode(latents)
        family.decode(found)
        torch.testing.assert_close(seen[0], posterior.mean, atol=1e-5, rtol=1e-5)


class TestClasses:
    @pytest.fixture
    def words(self, tiny_ddpm, own, tmp_path) -> Callable[..., list[str]]:
        keep = tmp_path / "keep"
        for name, source in (("cat", "star"), ("7", "square")):
            (keep / name).mkdir(parents=True)
            (keep / name / "0.png").write_bytes((own / "keep" / source / "0.png").read_bytes())

        def command(**flags: object) -> list[str]:
            chosen = {
                "concept": "dog", "pretrained_model_name_or_path": tiny_ddpm, "forget_dir": own / "forget",
                "retain_dir": keep, "num_inference_steps": 2, "train_batch_size": 2, "max_train_steps": 2,
                "num_validation_images": 1, "num_anchor_images": 0, "saliency_batch_size": 2, **flags,
            }  # fmt: skip
            return [word for name, value in chosen.items() for word in (f"--{name}", str(value))]

        return command

    def test_a_ddpm(self, words, tmp_path):
        """Its "latents" are the pictures themselves, and stay in memory."""
        assert main(words(output_dir=tmp_path / "run")) == 0
        told = json.loads((tmp_path / "run" / "config.json").read_text())
        assert told["concept_prompts"] == {"forget": ["dog"], "anchor": ["7"], "retain": ["7", "cat"]}
        assert told["own_pictures"]["retain"]["pictures"] == 2
        left = [*(tmp_path / "run" / "work").rglob("*.safetensors")]
        assert {load_file(path)["latent"].shape for path in left if "drawn" in path.parts} == {(1, 8, 8)}
        assert len(left) == 6  # The report's three pictures, before and after.

    def test_of_another_class(self, words, tmp_path, capsys):
        (tmp_path / "keep" / "cat").rename(tmp_path / "keep" / "bird")
        assert main(words(output_dir=tmp_path / "run")) == 2
        assert "must be of the model's other classes (cat, 7); found 'bird'" in capsys.readouterr().err


class TestPlan:
    def test_says_what_there_is_and_what_is_drawn(self, command, capsys):
        assert main(command(generated_share=0.5, num_anchor_images=1, dry_run=True)) == 0
        plan = capsys.readouterr().out
        assert "pictures  forget 3 of 3 own pictures and 3 generated latents" in plan
        assert "draw      3 + 1 + 4 latents" in plan
        # Eight latents of two steps, each with and without its prompt.
        assert "latent sets 32," in plan

    def test_anchor_latents_keep_their_proportion(self, command, tmp_path, monkeypatch):
        config = EraseConfig(
            concept="disc", forget_prompt=("a circle",), anchor_prompt=("a heart",),
            forget_dir=command()[command().index("--forget_dir") + 1],
            pretrained_model_name_or_path=command()[command().index("--pretrained_model_name_or_path") + 1],
        )  # fmt: skip
        settings = accept(config).settings
        assert (settings.num_forget_images, settings.num_anchor_images, settings.num_retain_images) == (3, 3, 800)

    def test_a_data_set_of_classes_is_both_sets(self, own, tiny_pipeline, monkeypatch):
        """The pictures of the concept's class are forgotten, all others retained."""
        shown = Image.new("RGB", (8, 8))
        pictures = [
            OwnPicture(f"{n}", lambda n=n: shown.resize((8 + n, 8)), label=name)
            for n, name in enumerate(("gas_pump", "church", "garbage truck", "church"))
        ]
        monkeypatch.setattr("salun_diffusers.diffusion.own_reading.data_set_pictures", lambda *_: pictures)
        config = EraseConfig(
            concept="Garbage Truck", forget_prompt=("an image of a garbage truck",), recipe="paper",
            anchor_prompt=("a gas pump",), dataset_name="somebody/pictures",
            pretrained_model_name_or_path=str(tiny_pipeline),
        )  # fmt: skip
        request = accept(config)
        assert [request.own.pictures_of(name) for name in ("forget", "retain")] == [1, 3]
        assert request.concept.retain_prompts == ("an image of a gas pump", "an image of a church")
        with pytest.raises(UserError, match="--concept must name the one to forget: church, garbage truck, gas_pump"):
            accept(EraseConfig(**{**vars(config), "concept": "truck"}))

    def test_too_many_for_memory(self, tiny_pipeline):
        picture = OwnPicture("0", lambda: Image.new("RGB", (8, 8)), "x", sha256="0", size=(8, 8))
        many = OwnSets({"forget": OwnSet((picture,) * 10_000_000, 0, 10_000_000)})
        with pytest.raises(
            UserError, match=r"10,000,000 pictures need 4.8 GiB, at most 4 are kept: 8,388,608 pictures"
        ):
            require_room(StableDiffusion(tiny_pipeline, device=CPU), many)


class TestRefused:
    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ({"generated_share": 0.5}, "--generated_share mixes generated latents with own pictures"),
            ({"random_flip": True}, "--random_flip is for own pictures"),
            ({"caption_column": "text"}, "--caption_column is for own pictures"),
            ({"image_column": "picture"}, "--image_column goes with --dataset_name"),
            ({"forget_dir": "{own}/forget", "dataset_name": "x"}, "both name the forget set"),
            ({"forget_dir": "{own}/forget", "train_data": "digits"}, "--train_data gives all sets already"),
            ({"forget_dir": "{own}/nothing"}, "there is no folder"),
            ({"forget_dir": "{own}/forget", "retain_dir": "{own}/forget"}, "must not be --forget_dir or lie in it"),
            ({"forget_dir": "{own}/keep", "retain_dir": "{own}/keep/star"}, "must not be --forget_dir or lie in it"),
            ({"forget_dir": "{own}/forget", "output_dir": "{own}/forget/run"}, "must lie apart"),
            ({"retain_dir": "{own}/keep", "output_dir": "{own}"}, "must lie apart"),
            ({"forget_dir": "{own}/forget", "num_forget_images": 4}, "takes 4 pictures beside a generated share of 0; "
             "there are 3"),
            ({"forget_dir": "{own}/forget", "num_forget_images": 1, "generated_share": 0.9}, "leaves no own picture"),
            ({"retain_dir": "{own}/forget"}, "Captions are required for pictures to retain"),
            ({"forget_dir": "{own}/forget", "caption_column": "words"}, "has neither"),
            ({"forget_dir": "{own}/keep/star", "retain_dir": "{own}/copy"}, "The same picture is to be forgotten"),
            ({"retain_dir": "{own}/circle"}, "is to be forgotten and to be retained"),
        ],
    )  # fmt: skip
    def test_in_one_line_before_a_model_is_loaded(self, refused, own, flags, words, monkeypatch, request):
        monkeypatch.setattr("salun_diffusers.diffusion.families.unet_family.UNetFamily.__init__", _fail)
        if "copy" in str(flags.get("retain_dir")):
            (own / "copy" / "star").mkdir(parents=True, exist_ok=True)
            Image.open(own / "keep" / "star" / "1.png").save(own / "copy" / "star" / "renamed.bmp")
        if "circle" in str(flags.get("retain_dir")):
            (own / "circle" / "circle").mkdir(parents=True, exist_ok=True)
            Image.open(own / "keep" / "star" / "1.png").save(own / "circle" / "circle" / "0.png")
        filled = {
            name: str(value).format(own=own) if isinstance(value, str) else value for name, value in flags.items()
        }
        prompts = {"forget_prompt": "an image of a circle"}
        refused(words, **(OWN | prompts | filled))

    def test_before_a_model_is_fetched(self, refused, own, monkeypatch):
        monkeypatch.setattr("salun_diffusers.diffusion.request.find_model", _fail)
        monkeypatch.setattr("salun_diffusers.diffusion.request.check_unfetched", lambda _: None)
        flags = {"pretrained_model_name_or_path": "somebody/model", "forget_dir": own / "forget"}
        refused("takes 9 pictures", **(OWN | flags | {"num_forget_images": 9}))

    def test_one_caption_for_all_that_is_retained(self, run, own, tmp_path):
        (tmp_path / "one.txt").write_text("a square\n")
        folder = run(retain_dir=own / "keep" / "star", retain_prompts=tmp_path / "one.txt")
        assert json.loads((folder / "config.json").read_text())["concept_prompts"]["retain"] == ["a square"]

    def test_a_folder_of_all_classes(self, run, own):
        """The folder to forget may lie among those to retain, as in Imagenette's."""
        folder = run(forget_dir=own / "keep" / "star", retain_dir=own / "keep")
        told = json.loads((folder / "config.json").read_text())
        assert told["concept_prompts"]["retain"] == ["an image of a red heart", "an image of a square"]
        assert told["own_pictures"]["forget"]["pictures"] == 2


def _fail(*_: object, **__: object) -> None:
    raise AssertionError("a model was asked for")
