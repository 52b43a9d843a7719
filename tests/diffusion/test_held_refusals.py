"""erase(pipe, …): what cannot be erased is told in a sentence with the way out, and the pipeline stays as it was."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline
from held_pipes import QUICK, load, same, weights
from torch import nn

from salun_diffusers import EraseConfig, UserError, erase
from salun_diffusers.diffusion.held_weights import plain_weights, put_weights


@pytest.fixture
def pipe(tiny_pipeline):
    return load(tiny_pipeline)


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Erase, expect a sentence that holds all of some words, and nothing on disk."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def attempt(pipe, *contents, concept="disc", **settings):
        with pytest.raises(UserError) as error:
            erase(pipe, concept, **{**QUICK, **settings})
        for content in contents:
            assert content in str(error.value)
        assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)
        assert not [*tmp_path.iterdir()]

    return attempt


class Adapter(nn.Module):
    """A layer as peft puts it around another one."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"mine": nn.Linear(layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"mine": nn.Linear(2, layer.out_features, bias=False)})
        self.active_adapters, self.merged_adapters, self.disable_adapters = ["mine"], [], False

    @property
    def merged(self) -> bool:
        return bool(self.merged_adapters)

    def fuse(self) -> None:
        with torch.no_grad():
            self.base_layer.weight += self.lora_B["mine"].weight @ self.lora_A["mine"].weight
        self.merged_adapters = ["mine"]

    def forward(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        beside = 0 if self.merged or self.disable_adapters else self.lora_B["mine"](self.lora_A["mine"](x))
        return self.base_layer(x) + beside


@pytest.fixture
def adapted(pipe):
    torch.manual_seed(1)
    attention = pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2
    attention.to_q = Adapter(attention.to_q)
    return attention.to_q


class TestAdapters:
    def test_one_that_works_beside_the_weights(self, pipe, adapted, refused):
        refused(pipe, "An adapter works beside", "attn2.to_q", "pipe.fuse_lora()", "pipe.unload_lora_weights()")

    @pytest.mark.parametrize("way", ["fused", "switched off"])
    def test_one_that_does_not(self, pipe, adapted, way):
        """Fused but not yet taken off, or off: the network is that of its own weights."""
        adapted.fuse() if way == "fused" else setattr(adapted, "disable_adapters", True)
        before, names = weights(pipe.unet), [name for name, _ in pipe.unet.named_parameters()]
        result = erase(pipe, "disc", **QUICK)
        assert [name for name, _ in pipe.unet.named_parameters()] == names
        after = weights(pipe.unet)
        assert all(torch.equal(before[name], after[name]) for name in names if "lora_" in name)
        assert not torch.equal(before[f"{self.layer()}.base_layer.weight"], after[f"{self.layer()}.base_layer.weight"])
        assert f"{self.layer()}.weight" in result.mask and f"{self.layer()}.weight" in plain_weights(pipe.unet)
        result.undo()
        assert same(weights(pipe.unet), before)

    def test_erased_is_what_was_fused(self, pipe, adapted, tiny_pipeline):
        """The same as if it had been taken off."""
        adapted.fuse()
        plain = load(tiny_pipeline)
        put_weights(plain.unet, plain_weights(pipe.unet))
        erase(pipe, "disc", **QUICK)
        erase(plain, "disc", **QUICK)
        assert same(plain_weights(pipe.unet), plain_weights(plain.unet))

    @staticmethod
    def layer() -> str:
        return "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"

    def test_weights_that_are_not_of_its_configuration(self, pipe, refused):
        pipe.unet.encoder_hid_proj = nn.Linear(2, 2)
        refused(pipe, "does not hold just the weights", "encoder_hid_proj", "pipe.unload_ip_adapter()")


class TestDenoiser:
    def test_compiled(self, pipe, refused):
        pipe.unet = torch.compile(pipe.unet, backend="eager")
        refused(pipe, "compiled", "erase first and compile afterwards", "pipe.unet._orig_mod")

    def test_compiled_in_place(self, pipe, refused):
        pipe.unet.compile(backend="eager")
        refused(pipe, "compiled", "load it again")

    def test_quantized_by_its_name(self, pipe, refused):
        pipe.unet.is_quantized = True
        refused(pipe, "quantized", "without quantization_config")

    def test_quantized_weights(self, pipe, refused):
        layer = pipe.unet.conv_in
        layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
        refused(pipe, "conv_in.weight is torch.float8_e4m3fn", "erase, and quantize afterwards")

    def test_tensors_of_another_library(self, pipe, refused):
        class Packed(nn.Parameter):
            """As bitsandbytes and torchao have them."""

        pipe.unet.conv_in.weight = Packed(pipe.unet.conv_in.weight.detach())
        refused(pipe, "conv_in.weight is Packed")

    def test_weights_nowhere(self, pipe, refused):
        pipe.unet.to("meta")
        refused(pipe, "on the device `meta`", "from_pretrained")

    def test_other_parts_nowhere(self, pipe, refused):
        pipe.vae.to("meta")
        refused(pipe, "pipe.vae has some on the device `meta`")

    def test_layerwise_casting(self, pipe, refused):
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
        refused(pipe, "without hooks of diffusers", "layerwise_casting", "enable them afterwards")

    def test_group_offloading(self, pipe, refused, monkeypatch):
        # Older diffusers ask torch, which knows of none on a CPU.
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cpu"))
        pipe.unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
        refused(pipe, "group_offloading", "enable_model_cpu_offload() and")

    def test_spread_over_devices(self, pipe, refused):
        pipe.hf_device_map = {"unet": 0, "vae": 1}
        refused(pipe, "device_map", "pipe.reset_device_map()")


class TestPipeline:
    def test_of_no_family(self, pipe, refused):
        refused(DDPMPipeline(pipe.unet, pipe.scheduler), "the pipeline is a DDPMPipeline", "StableDiffusionPipeline")

    def test_that_is_known_but_not_handled(self, pipe, refused):
        from diffusers import StableDiffusionInpaintPipeline

        kept = dict(pipe.components)
        refused(StableDiffusionInpaintPipeline(**kept, requires_safety_checker=False), "an inpainting model")

    def test_without_a_unet(self, pipe, refused):
        class Mine(DiffusionPipeline):
            def __init__(self, vae: object) -> None:
                super().__init__()
                self.register_modules(vae=vae)

        refused(Mine(pipe.vae), "the pipeline is a Mine")

    @pytest.mark.parametrize("part", ["vae", "text_encoder"])
    def test_that_lacks_a_part(self, pipe, refused, part):
        setattr(pipe, part, None)
        refused(pipe, f"pipe.{part} is required", "load the whole pipeline")

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ("demo", "erase(EraseConfig(concept=…, pretrained_model_name_or_path='demo'))"),
            (nn.Linear(1, 1), "A diffusers pipeline or an EraseConfig is required, got Linear"),
            (None, "got NoneType"),
        ],
    )
    def test_that_is_none(self, refused, given, words):
        refused(given, words)

    def test_of_several_processes(self, pipe, refused, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        refused(pipe, "one process", "accelerate launch erase.py")


class TestSettings:
    @pytest.mark.parametrize(
        ("written", "meant"),
        [
            ("mask_ration", "mask_ratio"),
            ("learningrate", "learning_rate"),
            ("forget_prompts", "forget_prompt"),
            ("inplace", "in_place"),
        ],
    )
    def test_a_slip(self, pipe, refused, written, meant):
        refused(pipe, f"no setting {written!r}; the closest is {meant!r}", **{written: 1})

    def test_a_method_that_is_none(self, pipe, refused):
        refused(pipe, "method must be one of salun, ga, ft, relabel, ascent", "'uce'", method="uce")

    def test_method_and_objective(self, pipe, refused):
        refused(pipe, "method and objective are one setting", method="esd", objective="relabel")

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("pretrained_model_name_or_path", "demo", "the pipeline is loaded already"),
            ("variant", "fp16", "the pipeline is loaded already"),
            ("save_dtype", "float16", "keeps its data type"),
            ("resume_from_checkpoint", "latest", "writes no checkpoints"),
            ("dry_run", True, "the program plans"),
        ],
    )
    def test_what_belongs_to_a_folder(self, pipe, refused, name, value, reason):
        refused(pipe, f"erase(pipe, …) takes no {name}: ", reason, **{name: value})

    @pytest.mark.parametrize(
        ("given", "named"),
        [({"mask_ratio": 0.2}, "mask_ratio"), ({"device": "cpu"}, "device"), ({"in_place": False}, "in_place")],
    )
    def test_beside_a_configuration(self, given, named):
        with pytest.raises(UserError, match=rf"says everything itself, got {named} beside it"):
            erase(EraseConfig(concept="circle"), **given)

    def test_concept_beside_a_configuration(self):
        with pytest.raises(UserError, match="got concept beside it"):
            erase(EraseConfig(concept="circle"), "circle")

    def test_values_as_everywhere(self, pipe, refused):
        refused(pipe, "--mask_ratio must be above 0 and at most 1, got 30", "0.3 is 30 %", mask_ratio=30)
        refused(pipe, "--num_inference_steps must be at most 1000", num_inference_steps=1001)

    def test_retain_prompts_are_lines(self, pipe, refused):
        refused(pipe, "texts of one line each", retain_prompts=["a\nb"])
        refused(pipe, "texts of one line each", retain_prompts=[1])

    def test_an_unknown_concept_and_nothing_else(self, pipe, refused):
        refused(pipe, "--concept is required", concept="")
