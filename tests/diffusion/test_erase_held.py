"""erase(pipe, …): what the program makes of a folder, made of an object, in whatever state it is."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline
from held_pipes import QUICK, RETAIN, SMALL, TEXTS, load, same, weights
from tiny_models import build_pipeline

import salun_diffusers
from salun_diffusers import ClassConditionalDDPMPipeline, EraseConfig, UserError, erase
from salun_diffusers.diffusion.held_states import offloading
from salun_diffusers.files.stored_weights import bit_patterns, weights_sha256
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.packed_bits import unpack
from salun_diffusers.masks.patch import WeightPatch
from salun_diffusers.programs.erase import main


@pytest.fixture
def pipe(tiny_pipeline):
    made = load(tiny_pipeline)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def by_program(tmp_path, monkeypatch):
    """Erase a folder by the program; returns the run folder."""
    monkeypatch.chdir(tmp_path)

    def run(folder, concept="disc", **flags):
        retain = tmp_path / "retain.txt"
        retain.write_text("".join(f"{line}\n" for line in RETAIN))
        values = {"concept": concept, "pretrained_model_name_or_path": folder, "output_dir": tmp_path / "run", **SMALL}
        values |= {} if concept == "dog" else {**TEXTS, "retain_prompts": retain}
        words = [word for name, value in (values | flags).items() for word in (f"--{name}", str(value))]
        assert main(words) == 0
        return tmp_path / "run"

    return run


class TestIsTheProgram:
    """Same seed, same weights, bit for bit."""

    def test_of_stable_diffusion(self, pipe, tiny_pipeline, by_program, tmp_path):
        """And the same pictures, before and after."""
        run = by_program(tiny_pipeline)
        before = weights(pipe.unet)
        result = erase(pipe, "disc", **SMALL, **TEXTS, retain_prompts=RETAIN, output_dir=tmp_path / "held")
        drawn, wanted = (
            {file.name: file.read_bytes() for file in (folder / "samples").iterdir()} for folder in (result.folder, run)
        )
        assert drawn == wanted
        assert any(drawn[name] != drawn[name.replace("after", "before")] for name in drawn)
        assert result.pipe is pipe
        assert same(weights(pipe.unet), weights(load(run / "pipeline").unet))
        assert not same(weights(pipe.unet), before)
        assert result.mask.recipe["base_sha256"] != SaliencyMask.load(run / "mask.safetensors").recipe["base_sha256"]
        assert all(torch.equal(result.mask[name], SaliencyMask.load(run / "mask.safetensors")[name]) for name in before)

    def test_of_xl(self, sdxl, by_program):
        run = by_program(sdxl)
        pipe = load(sdxl, dtype=torch.float32)  # The text encoder's configuration asks for less.
        erase(pipe, "disc", **SMALL, **TEXTS, retain_prompts=RETAIN)
        assert same(weights(pipe.unet), weights(load(run / "pipeline").unet))

    def test_of_a_class_conditional_model(self, tiny_ddpm, by_program):
        run = by_program(tiny_ddpm, "dog")
        pipe = ClassConditionalDDPMPipeline.from_pretrained(tiny_ddpm)
        erase(pipe, "dog", **SMALL)
        erased = ClassConditionalDDPMPipeline.from_pretrained(run / "pipeline")
        assert same(weights(pipe.unet), weights(erased.unet))

    def test_of_the_layout_of_stable_diffusion_1_4(self, sd14, by_program):
        run = by_program(sd14)
        pipe = load(sd14, safety_checker=None, dtype=torch.float32)
        erase(pipe, "disc", **SMALL, **TEXTS, retain_prompts=RETAIN)
        assert same(weights(pipe.unet), weights(load(run / "pipeline", safety_checker=None, dtype=torch.float32).unet))

    def test_of_its_fp16_weights(self, sd14, by_program):
        run = by_program(sd14, variant="fp16")
        pipe = load(sd14, safety_checker=None, variant="fp16", dtype=torch.float16)
        erase(pipe, "disc", **SMALL, **TEXTS, retain_prompts=RETAIN)
        erased = load(run / "pipeline", safety_checker=None, variant="fp16", dtype=torch.float16)
        assert pipe.unet.dtype == pipe.vae.dtype == torch.float16
        assert same(weights(pipe.unet), weights(erased.unet))

    @pytest.mark.parametrize("method", ["esd", "ga", "l1_sparse"])
    def test_by_another_method(self, pipe, tiny_pipeline, by_program, method):
        run = by_program(tiny_pipeline, objective={"ga": "ascent"}.get(method, method), mask="full")
        result = erase(pipe, "disc", method=method, mask="full", **SMALL, **TEXTS, retain_prompts=RETAIN)
        assert same(weights(pipe.unet), weights(load(run / "pipeline").unet))
        assert result.mask.density == 1


class TestAsItIs:
    """Whatever was done to a pipeline: saved as it is and erased by the program, its denoiser is the same."""

    def compared(self, pipe, by_program, tmp_path, **flags):
        pipe.save_pretrained(tmp_path / "saved")
        run = by_program(tmp_path / "saved", **flags)
        erase(pipe, "disc", **{**SMALL, **TEXTS, **flags}, retain_prompts=RETAIN)
        assert same(weights(pipe.unet), weights(load(run / "pipeline").unet))

    def test_scheduler_swapped(self, pipe, by_program, tmp_path):
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        pipe("a star", num_inference_steps=3, output_type="latent")
        swapped, steps = pipe.scheduler, pipe.scheduler.timesteps.clone()
        self.compared(pipe, by_program, tmp_path)
        assert pipe.scheduler is swapped and torch.equal(pipe.scheduler.timesteps, steps)

    def test_scheduler_of_which_nobody_asked_the_noise(self, pipe):
        """A scheduler of flow matching has none."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        pipe.scheduler = FlowMatchEulerDiscreteScheduler()
        with pytest.raises(UserError, match=r"alphas_cumprod\) is required, the pipeline has FlowMatchEuler"):
            erase(pipe, "disc", **QUICK)

    def test_lora_fused_and_taken_off(self, pipe, by_program, tmp_path):
        with torch.no_grad():
            for name, module in pipe.unet.named_modules():
                if name.endswith("to_q"):
                    rank = torch.randn(module.weight.shape[0], 2) @ torch.randn(2, module.weight.shape[1])
                    module.weight += 0.1 * rank
        self.compared(pipe, by_program, tmp_path)

    def test_textual_inversion(self, pipe, by_program, tmp_path):
        width = pipe.text_encoder.config.hidden_size
        pipe.load_textual_inversion({"<mine>": torch.randn(2, width)}, token="<mine>")
        assert pipe.maybe_convert_prompt("a <mine>", pipe.tokenizer) == "a <mine> <mine>_1"
        self.compared(pipe, by_program, tmp_path, forget_prompt="a photo of a <mine>")

    def test_v_prediction(self, by_program, tmp_path):
        pipe = load(build_pipeline(tmp_path / "v", prediction_type="v_prediction"))
        self.compared(pipe, by_program, tmp_path)

    def test_a_pipeline_around_the_same_network(self, pipe, tiny_pipeline, by_program):
        run = by_program(tiny_pipeline)
        from_picture = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        result = erase(from_picture, "disc", **SMALL, **TEXTS, retain_prompts=RETAIN)
        assert type(result.pipe) is StableDiffusionImg2ImgPipeline
        assert result.report.base == str(tiny_pipeline), "not unet, the last part of where its network lies"
        assert same(weights(pipe.unet), weights(load(run / "pipeline").unet))

    def test_a_subclass_of_the_users(self, pipe):
        kind = type("MyPipeline", (type(pipe),), {})
        mine = kind(**pipe.components, requires_safety_checker=False)
        assert type(erase(mine, "disc", **QUICK).pipe) is kind

    @pytest.mark.parametrize("way", ["model", "sequential"])
    def test_offloaded(self, pipe, tiny_pipeline, by_program, way):
        run = by_program(tiny_pipeline)
        getattr(pipe, f"enable_{way}_cpu_offload")(device="cpu")
        result = erase(pipe, "disc", **SMALL, **TEXTS, retain_prompts=RETAIN)
        assert offloading(pipe) == way
        assert pipe.unet.conv_in.weight.is_meta == (way == "sequential")
        pipe.remove_all_hooks()
        assert same(weights(pipe.unet), weights(load(run / "pipeline").unet))
        getattr(pipe, f"enable_{way}_cpu_offload")(device="cpu")
        result.undo()
        assert offloading(pipe) == way
        pipe.remove_all_hooks()
        assert same(weights(pipe.unet), weights(load(tiny_pipeline).unet))

    def test_draws_under_offloading_as_without(self, pipe, tiny_pipeline, by_program):
        """accelerate's sequential offloading cannot be drawn with on a CPU, whatever the pipeline."""
        run = by_program(tiny_pipeline)
        pipe.enable_model_cpu_offload(device="cpu")
        erase(pipe, "disc", **SMALL, **TEXTS, retain_prompts=RETAIN)
        drawn = pipe("a star", num_inference_steps=1, output_type="latent", generator=torch.manual_seed(0)).images
        plain = load(run / "pipeline")
        wanted = plain("a star", num_inference_steps=1, output_type="latent", generator=torch.manual_seed(0)).images
        assert torch.equal(drawn, wanted)

    @pytest.mark.parametrize("way", ["model", "sequential"])
    def test_a_copy_of_an_offloaded_one(self, pipe, tiny_pipeline, way):
        getattr(pipe, f"enable_{way}_cpu_offload")(device="cpu")
        result = erase(pipe, "disc", in_place=False, **QUICK)
        for one in (pipe, result.pipe):
            assert offloading(one) == way
            if way == "model":
                assert torch.isfinite(one("a star", num_inference_steps=1, output_type="latent").images).all()
            one.remove_all_hooks()
        assert same(weights(pipe.unet), weights(load(tiny_pipeline).unet))
        assert not same(weights(result.pipe.unet), weights(pipe.unet))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_in_half_precision(self, tiny_pipeline, dtype):
        """Trained in fp32 (a step of fp16 would vanish), back in its type, the frozen weights as they were."""
        pipe = load(tiny_pipeline, dtype=dtype)
        before, parts = weights(pipe.unet), {name: weights(getattr(pipe, name)) for name in ("vae", "text_encoder")}
        result = erase(pipe, "disc", **QUICK, mask_ratio=0.25)
        after = weights(pipe.unet)
        assert {tensor.dtype for tensor in after.values()} == {dtype}
        moved = {name: bit_patterns(after[name]) != bit_patterns(before[name]) for name in after}
        assert sum(int(places.sum()) for places in moved.values()) > 1000
        assert not any((moved[name] & ~result.mask[name]).any() for name in moved)
        assert all(same(weights(getattr(pipe, name)), parts[name]) for name in parts)
        assert result.report.receipt.violations == 0
        result.undo()
        assert same(weights(pipe.unet), before)

    def test_layers_in_several_types(self, pipe):
        pipe.unet.to(torch.bfloat16)
        pipe.unet.conv_in.to(torch.float32)
        before = {name: tensor.dtype for name, tensor in pipe.unet.state_dict().items()}
        erase(pipe, "disc", **QUICK)
        assert {name: tensor.dtype for name, tensor in pipe.unet.state_dict().items()} == before

    def test_memory_format_and_objects(self, pipe):
        pipe.unet.to(memory_format=torch.channels_last)
        tensors = {name: tensor.data_ptr() for name, tensor in pipe.unet.named_parameters()}
        parts = {name: id(part) for name, part in pipe.components.items()}
        erase(pipe, "disc", **QUICK)
        assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        assert {name: tensor.data_ptr() for name, tensor in pipe.unet.named_parameters()} == tensors
        assert {name: id(part) for name, part in pipe.components.items()} == parts

    @pytest.mark.parametrize("within", [torch.no_grad, torch.inference_mode])
    def test_called_where_no_gradients_are_wanted(self, pipe, within):
        before = weights(pipe.unet)
        with within():
            erase(pipe, "disc", **QUICK)
            assert not torch.is_grad_enabled()
        assert not same(weights(pipe.unet), before)


class TestLeavesAlone:
    def test_random_numbers(self, pipe):
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(5)
        wanted = torch.rand(3), np.random.rand(3), random.random()
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(5)
        erase(pipe, "disc", **QUICK)
        got = torch.rand(3), np.random.rand(3), random.random()
        assert torch.equal(got[0], wanted[0]) and (got[1] == wanted[1]).all() and got[2] == wanted[2]

    def test_modes_and_gradients(self, pipe, tiny_pipeline):
        """A user may be in the middle of a training of his own; what is drawn is drawn in evaluation all the same."""
        evaluated = load(tiny_pipeline)
        erase(evaluated, "disc", **QUICK)
        pipe.unet.train().requires_grad_(False)
        pipe.unet.mid_block.eval()
        pipe.text_encoder.train()
        for module in pipe.text_encoder.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.5
        pipe.vae.decoder.train()
        parts = ("unet", "vae", "text_encoder")

        def state():
            modes = [module.training for name in parts for module in getattr(pipe, name).modules()]
            return modes, [tensor.requires_grad for name in parts for tensor in getattr(pipe, name).parameters()]

        before = state()
        erase(pipe, "disc", **QUICK)
        assert state() == before
        assert all(tensor.grad is None for tensor in pipe.unet.parameters())
        assert same(weights(pipe.unet), weights(evaluated.unet))

    def test_nothing_on_disk(self, pipe, tmp_path, monkeypatch):
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(scratch))
        monkeypatch.chdir(tmp_path)
        seen: list[int] = []

        def look(stage, done, total, values):
            seen.append(max((path.stat().st_size for path in scratch.rglob("*") if path.is_file()), default=0))

        erase(pipe, "disc", callback=look, **QUICK)
        size = sum(tensor.nbytes for tensor in pipe.unet.state_dict().values())
        assert 0 < max(seen) < size // 2, "the weights were written"
        with pytest.raises(UserError):
            erase(pipe, "", **QUICK)
        assert [*tmp_path.rglob("*")] == [scratch]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    @pytest.mark.parametrize("when", ["latents, forget", "fine-tuning", "after, forget"])
    def test_a_pipeline_whose_erasure_stopped(self, pipe, tmp_path, monkeypatch, error, when):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        pipe.enable_model_cpu_offload(device="cpu")
        before = weights(pipe.unet)

        def stop(stage, done, total, values):
            if stage == when:
                raise error("enough")

        with pytest.raises(error) as stopped:
            erase(pipe, "disc", callback=stop, **QUICK)
        assert "--resume" not in str(stopped.value)
        assert same(weights(pipe.unet), before) and offloading(pipe) == "model"
        assert not [*tmp_path.iterdir()]


class TestResult:
    def test_a_copy_shares_what_is_not_erased(self, pipe, tiny_pipeline):
        result = erase(pipe, "disc", in_place=False, **QUICK)
        assert same(weights(pipe.unet), weights(load(tiny_pipeline).unet))
        assert not same(weights(result.pipe.unet), weights(pipe.unet))
        assert type(result.pipe) is type(pipe)
        assert result.pipe.vae is pipe.vae and result.pipe.text_encoder is pipe.text_encoder
        assert result.pipe.scheduler is not pipe.scheduler and result.pipe.components["unet"] is result.pipe.unet
        assert result.undo() is result.pipe
        assert same(weights(result.pipe.unet), weights(pipe.unet))

    def test_patch_and_undo(self, pipe, tmp_path):
        before = weights(pipe.unet)
        result = erase(pipe, "disc", **QUICK)
        after = weights(pipe.unet)
        result.patch.save(tmp_path / "patch.safetensors")
        patch = WeightPatch.load(tmp_path / "patch.safetensors")
        assert same(patch.apply(before), after)
        assert (patch.base_sha256, patch.erased_sha256) == (weights_sha256(before), weights_sha256(after))
        places = {name: unpack(bits, after[name].shape) for name, bits in patch.places.items()}
        assert not any((places[name] & ~result.mask[name]).any() for name in places)
        assert result.undo() is pipe
        assert same(weights(pipe.unet), before)
        with pytest.raises(UserError, match="they are those of the base"):
            result.undo()

    def test_undo_after_a_change_of_the_users(self, pipe):
        result = erase(pipe, "disc", **QUICK)
        with torch.no_grad():
            pipe.unet.conv_in.bias += 1
        changed = weights(pipe.unet)
        with pytest.raises(UserError, match="another model"):
            result.undo()
        assert same(weights(pipe.unet), changed)

    def test_report(self, pipe):
        result = erase(pipe, "disc", **QUICK)
        assert result.report.concept == "disc" and result.report.load == "" and result.folder is None
        assert result.report.config["retain_prompts"] == RETAIN and result.report.config["output_dir"] is None
        assert result.report.base == str(pipe.config["_name_or_path"])
        assert result.report.receipt.violations == 0

    def test_a_folder_if_it_is_wanted(self, pipe, tmp_path):
        result = erase(pipe, "disc", output_dir=tmp_path / "run", save_patch=True, **QUICK)
        names = {path.name for path in (tmp_path / "run").iterdir()}
        assert result.folder == tmp_path / "run"
        assert {"report.html", "report.json", "mask.safetensors", "patch.safetensors", "samples"} <= names
        assert not {"pipeline", *(name for name in names if name.startswith("checkpoint"))} & names
        assert "salun-" not in (tmp_path / "run" / "report.html").read_text()

    def test_two_after_another(self, pipe):
        before = weights(pipe.unet)
        first = erase(pipe, "disc", **QUICK)
        second = erase(pipe, "heart", **{**QUICK, "forget_prompt": "a heart", "anchor_prompt": "a square"})
        second.undo()
        first.undo()
        assert same(weights(pipe.unet), before)

    def test_undo_of_a_folder(self, tiny_pipeline, retain_file):
        quick = {**QUICK, "forget_prompt": ("a circle",), "anchor_prompt": ("a heart",),
                 "retain_prompts": str(retain_file)}  # fmt: skip
        torch.manual_seed(5)
        wanted = torch.rand(3)
        torch.manual_seed(5)
        result = erase(EraseConfig(concept="disc", pretrained_model_name_or_path=str(tiny_pipeline), **quick))
        assert torch.equal(torch.rand(3), wanted)
        assert result.pipe is result.pipeline
        with pytest.raises(UserError, match="load the base again"):
            result.undo()


def test_the_callback_hears_of_every_stage(pipe):
    heard: list[tuple[str, int, int, dict[str, float]]] = []
    erase(pipe, "disc", callback=lambda *about: heard.append(about), **QUICK)
    stages = [stage for stage, *_ in heard]
    assert [*dict.fromkeys(stages)] == [
        "before, forget", "before, retain", "latents, forget", "latents, retain", "saliency", "targets",
        "fine-tuning", "after, forget", "after, retain",
    ]  # fmt: skip
    tuning = [about for about in heard if about[0] == "fine-tuning"]
    assert [(done, total) for _, done, total, _ in tuning] == [(1, 2), (2, 2)]
    assert all(values["loss"] >= 0 for *_, values in tuning)
    heard.clear()
    erase(copy.deepcopy(pipe), "disc", **QUICK)
    assert heard == []


def test_free_text_is_left_to_the_concepts(pipe, monkeypatch):
    """What is made of words alone, `find_concept` decides: here as in the program."""
    from salun_diffusers.diffusion import request

    asked = []

    def find(config, *kind):
        asked.append(config)
        raise UserError("no such thing")

    monkeypatch.setattr(request, "find_concept", find)
    with pytest.raises(UserError, match="no such thing"):
        salun_diffusers.erase(pipe, "Van Gogh")
    assert "Van Gogh" in asked[0].concept and asked[0].forget_prompt == ()


def test_the_embedded_models_are_known_in_memory(monkeypatch):
    """Their presets have numbers and detectors of their own."""
    from salun_diffusers.diffusion import erase_held
    from salun_diffusers.files.pipeline_folder import EMBEDDED

    requests = []

    def stop(request, command):
        requests.append(request)
        raise UserError("enough")

    monkeypatch.setattr(erase_held, "run_erasure", stop)
    with pytest.raises(UserError, match="enough"):
        erase(load(EMBEDDED["demo"]), "red", forget_prompt="a red circle", anchor_prompt="a circle",
              retain_prompts=["a star"])  # fmt: skip
    with pytest.raises(UserError, match="enough"):
        erase(ClassConditionalDDPMPipeline.from_pretrained(EMBEDDED["digits"]), "7")
    demo, digits = requests
    assert demo.config.pretrained_model_name_or_path == "demo" and demo.concept.numbers_of == ""
    assert digits.config.pretrained_model_name_or_path == "digits" and digits.concept.detector == "digits"
