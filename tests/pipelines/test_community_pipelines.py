"""The files of pipelines/: loaded as diffusers loads what it does not know, exact at both ends, on their base only."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForText2Image, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.utils import dynamic_modules_utils
from held_pipes import QUICK, load, same, weights
from safetensors.torch import load_file, save_file
from tiny_models import build_pipeline

from salun_diffusers.errors import UserError
from salun_diffusers.masks.patch import WeightPatch, patch_folder

PIPELINES = Path(__file__).parents[2] / "pipelines"
UNET = "unet/diffusion_pytorch_model.safetensors"
PROMPT = "a photo of a circle"


@pytest.fixture(autouse=True)
def own_modules(monkeypatch, tmp_path_factory):
    """diffusers copies such a file to a folder of its own and imports it from there; here that is the test's."""
    place = tmp_path_factory.mktemp("modules")
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(place))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        monkeypatch.delitem(sys.modules, name)


def custom(name: str, folder: Path, **how):
    pipe = load(folder, custom_pipeline=str(PIPELINES / f"{name}.py"), trust_remote_code=True, **how)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def patched(base: Path, place: Path) -> tuple[Path, Path]:
    """An erased copy of a base and the patch between them: every second weight of most tensors moved, by a tenth."""
    tensors = load_file(base / UNET)
    moved = {}
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        moved[name] = tensor.clone()
        if number % 5:
            moved[name].view(-1)[::2] *= 0.9
            moved[name].view(-1)[::2] += 0.01
            moved[name].view(-1)[:8:2] = -0.0  # Whose sign no sum keeps.
    patch = WeightPatch.between(tensors, moved)
    patch.save(place / "patch.safetensors")
    patch_folder(base, place / "erased", patch.apply)
    return place / "erased", place / "patch.safetensors"


@pytest.fixture(scope="session")
def pair(tiny_pipeline, tmp_path_factory) -> tuple[Path, Path]:
    return patched(tiny_pipeline, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def half(tiny_pipeline, tmp_path_factory) -> Path:
    """The same base, stored in float16."""
    folder = tmp_path_factory.mktemp("half") / "base"
    load(tiny_pipeline, dtype=torch.float16).save_pretrained(folder)
    return folder


def drawn(pipe) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return np.asarray(pipe(PROMPT, num_inference_steps=2, generator=torch.Generator().manual_seed(3)).images[0])


@pytest.mark.parametrize("name", ["erased_stable_diffusion", "erasure_comparison"])
def test_they_need_no_package_of_ours(name):
    tree = ast.walk(ast.parse((PIPELINES / f"{name}.py").read_text()))
    found = {name.name for node in tree if isinstance(node, ast.Import) for name in node.names}
    assert not [name for name in found if name.startswith("salun")]
    assert "salun_diffusers import" not in (PIPELINES / f"{name}.py").read_text()


class TestErased:
    def test_exact_at_both_ends_and_between_in_between(self, tiny_pipeline, pair):
        erased, patch = pair
        pipe, base, wanted = custom("erased_stable_diffusion", tiny_pipeline), load(tiny_pipeline), load(erased)
        before, after = weights(base.unet), weights(wanted.unet)
        pictures = drawn(base), drawn(wanted)
        assert (pictures[0] != pictures[1]).any() and pipe.erasure_scale == 0
        pipe.load_erasure(patch)
        assert pipe.erasure_scale == 1 and same(weights(pipe.unet), after)
        assert (drawn(pipe) == pictures[1]).all()
        pipe.set_erasure_scale(0.25)
        for name, tensor in pipe.unet.state_dict().items():
            assert torch.equal(tensor, torch.lerp(before[name], after[name], 0.25))
        pipe.set_erasure_scale(0)
        assert same(weights(pipe.unet), before)
        pipe.set_erasure_scale(0.7)
        pipe.set_erasure_scale(1)
        assert same(weights(pipe.unet), after)
        pipe.unload_erasure()
        assert same(weights(pipe.unet), before) and (drawn(pipe) == pictures[0]).all()
        pipe.unload_erasure()  # Nothing happens.
        pipe.load_erasure(patch.parent, scale=0.5)
        assert pipe.erasure_scale == 0.5 and not same(weights(pipe.unet), before)

    def test_of_a_base_in_float16(self, half, tmp_path):
        erased, patch = patched(half, tmp_path)
        pipe = custom("erased_stable_diffusion", half, dtype=torch.float16)
        before = weights(pipe.unet)
        pipe.load_erasure(patch)
        assert same(weights(pipe.unet), weights(load(erased, dtype=torch.float16).unet))
        pipe.set_erasure_scale(0.5)
        assert all(tensor.dtype == torch.float16 for tensor in pipe.unet.state_dict().values())
        pipe.unload_erasure()
        assert same(weights(pipe.unet), before)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_loaded_in_less_than_it_is_stored_in(self, tiny_pipeline, pair, dtype):
        """As most people load float32 files; the patch goes on what they hold."""
        erased, patch = pair
        pipe = custom("erased_stable_diffusion", tiny_pipeline, dtype=dtype)
        before = weights(pipe.unet)
        pipe.load_erasure(patch)
        assert same(weights(pipe.unet), weights(load(erased, dtype=dtype).unet))
        pipe.unload_erasure()
        assert same(weights(pipe.unet), before)

    def test_of_a_snapshot_with_two_variants(self, sd14, tmp_path):
        erased, patch = patched(sd14, tmp_path)
        pipe = custom("erased_stable_diffusion", sd14, variant="fp16", dtype=torch.float16, safety_checker=None)
        pipe.load_erasure(patch)
        assert same(weights(pipe.unet), weights(load(erased, dtype=torch.float16, safety_checker=None).unet))

    def test_of_files_that_lie_elsewhere(self, tiny_pipeline, pair, tmp_path):
        shutil.copytree(tiny_pipeline, tmp_path / "moved")
        pipe = custom("erased_stable_diffusion", tmp_path / "moved", dtype=torch.float16)
        shutil.rmtree(tmp_path / "moved")
        with pytest.raises(ValueError, match="goes on the U-Net with SHA-256"):
            pipe.load_erasure(pair[1])
        pipe.load_erasure(pair[1], base_weights=tiny_pipeline / "unet")
        assert same(weights(pipe.unet), weights(load(pair[0], dtype=torch.float16).unet))

    def test_what_adapters_wrap_is_still_found(self, tiny_pipeline, pair):
        """peft puts a layer around each that it adapts, which has the same weights."""
        pipe = custom("erased_stable_diffusion", tiny_pipeline)
        pipe.load_erasure(pair[1])
        inner = pipe.unet.conv_in
        pipe.unet.conv_in = torch.nn.Sequential(inner)
        pipe.unload_erasure()
        pipe.unet.conv_in = inner
        assert same(weights(pipe.unet), weights(load(tiny_pipeline).unet))

    def test_saved_it_is_a_plain_pipeline(self, tiny_pipeline, pair, tmp_path):
        pipe = custom("erased_stable_diffusion", tiny_pipeline)
        pipe.load_erasure(pair[1])
        pipe.save_pretrained(tmp_path)
        again = AutoPipelineForText2Image.from_pretrained(tmp_path)
        assert type(again) is StableDiffusionPipeline
        assert same(weights(again.unet), weights(load(pair[0]).unet))

    def test_other_pipelines_around_its_parts_draw_the_same_network(self, tiny_pipeline, pair):
        pipe = custom("erased_stable_diffusion", tiny_pipeline)
        other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
        pipe.load_erasure(pair[1])
        assert other.unet is pipe.unet and same(weights(other.unet), weights(load(pair[0]).unet))


@pytest.fixture
def damaged(pair, tmp_path):
    """A patch with something wrong."""

    def write(change) -> Path:
        file = tmp_path / "damaged.safetensors"
        if isinstance(change, bytes):
            file.write_bytes(change)
        else:
            patch = WeightPatch.load(pair[1])
            tensors = {f"places.{name}": bits for name, bits in patch.places.items()}
            tensors |= {f"changes.{name}": bits for name, bits in patch.changes.items()}
            told = {"format": "salun_diffusers.patch", "version": "1", "base_sha256": patch.base_sha256,
                    "erased_sha256": patch.erased_sha256}  # fmt: skip
            change(tensors, told)
            save_file(tensors, file, metadata=told)
        return file

    return write


def drop(tensors, told):
    del tensors[next(name for name in tensors if name.startswith("changes."))]


def shorten(tensors, told):
    name = next(name for name in tensors if name.startswith("changes."))
    tensors[name] = tensors[name][:-1].clone()


def retype(tensors, told):
    name = next(name for name in tensors if name.startswith("changes."))
    tensors[name] = tensors[name].to(torch.int16)


def shrink(tensors, told):
    name = next(name for name in tensors if name.startswith("places."))
    tensors[name] = tensors[name][:-1].clone()


def flip(tensors, told):
    next(tensor for name, tensor in tensors.items() if name.startswith("changes.")).view(-1)[0] ^= 1


class TestErasedRefuses:
    @pytest.fixture
    def pipe(self, tiny_pipeline):
        return custom("erased_stable_diffusion", tiny_pipeline)

    def refused(self, pipe, words: str, *given, **how) -> None:
        before = weights(pipe.unet)
        with pytest.raises(ValueError, match=words) as error:
            pipe.load_erasure(*given, **how)
        assert "\n" not in str(error.value)
        assert same(weights(pipe.unet), before) and pipe.erasure_scale == 0

    def test_another_base(self, pair, tmp_path):
        other = custom("erased_stable_diffusion", build_pipeline(tmp_path / "other", seed=1))
        self.refused(other, "load the base that the patch was made for", pair[1])

    def test_the_erased_model(self, pair):
        self.refused(custom("erased_stable_diffusion", pair[0]), "is the erased one already", pair[1])

    def test_a_base_that_was_changed(self, tiny_pipeline, pair):
        """Its files are the right ones, what it draws with is not."""
        pipe = custom("erased_stable_diffusion", tiny_pipeline)
        pipe.unet.conv_in.weight.data.view(-1)[0] += 1
        self.refused(pipe, "load the base that the patch was made for", pair[1])

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (b"", "damaged or no safetensors file"),
            (b"\x08\0\0\0\0\0\0\0{}      ", "is not a patch of salun_diffusers"),
            (lambda _, told: told.update(format="x"), "is not a patch of salun_diffusers"),
            (lambda _, told: told.update(version="9"), "is not a patch of salun_diffusers"),
            (lambda _, told: told.update(version="2", sha256="x"), "the hash over its contents is another"),
            (lambda _, told: told.pop("base_sha256"), "do not pair up"),
            (drop, "do not pair up"),
            (shorten, "another data type"),
            (retype, "another data type"),
            (shrink, "another size"),
            (flip, "does not give the weights that it promises"),
        ],
    )
    def test_a_damaged_file(self, pipe, damaged, change, words):
        self.refused(pipe, words, damaged(change))

    def test_a_truncated_file(self, pipe, pair, damaged):
        self.refused(pipe, "damaged or no safetensors file", damaged(pair[1].read_bytes()[:-5]))

    def test_no_file(self, pipe, tmp_path):
        self.refused(pipe, "A patch file is required, there is no file", tmp_path)

    @pytest.mark.parametrize("scale", [float("nan"), float("inf"), "1", True, None])
    def test_a_scale_that_is_no_number(self, pipe, pair, scale):
        self.refused(pipe, "must be a finite number", pair[1], scale=scale)

    def test_a_scale_beyond_the_data_type(self, half, tmp_path):
        pipe = custom("erased_stable_diffusion", half, dtype=torch.float16)
        self.refused(pipe, "beyond the range of torch.float16", patched(half, tmp_path)[1], scale=1e9)

    def test_a_scale_of_nothing(self, pipe):
        with pytest.raises(ValueError, match="No erasure is loaded"):
            pipe.set_erasure_scale(0.5)

    def test_two_at_once(self, tiny_pipeline, pair):
        pipe = custom("erased_stable_diffusion", tiny_pipeline)
        pipe.load_erasure(pair[1])
        with pytest.raises(ValueError, match="unload_erasure"):
            pipe.load_erasure(pair[1])

    def test_weights_that_somebody_else_changed(self, tiny_pipeline, pair):
        """By a fused LoRA, say: what is there is neither end nor between, and would be lost."""
        pipe = custom("erased_stable_diffusion", tiny_pipeline)
        pipe.load_erasure(pair[1])
        next(iter(pipe._erasure.parameters.values())).data += 1
        with pytest.raises(ValueError, match="was changed since its erasure was loaded"):
            pipe.set_erasure_scale(0.5)

    def test_adapters_that_were_there_before(self, pipe, pair):
        """peft calls the layer that it wraps `base_layer`."""
        pipe.unet.conv_in.base_layer = torch.nn.Conv2d(1, 1, 1)
        self.refused(pipe, "load the erasure first", pair[1])

    def test_weights_on_no_device(self, pipe, pair):
        pipe.unet.conv_in.to("meta")
        with pytest.raises(ValueError, match="must be at hand"):
            pipe.load_erasure(pair[1])

    def test_xl(self, tiny_pipeline, pair):
        pipe = custom("erased_stable_diffusion", tiny_pipeline)
        pipe.unet.register_to_config(addition_embed_type="text_time")
        self.refused(pipe, "this U-Net is XL's", pair[1])


class TestComparison:
    def test_before_and_after(self, tiny_pipeline, pair):
        pipe = custom("erasure_comparison", tiny_pipeline)
        pipe.load_erased(pair[0])
        out = pipe(PROMPT, seed=3, num_inference_steps=2)
        before, after = map(np.asarray, out.images)
        assert (before == drawn(load(tiny_pipeline))).all() and (after == drawn(load(pair[0]))).all()
        assert same(weights(pipe.unet), weights(load(tiny_pipeline).unet))
        page = np.asarray(out.side_by_side)
        assert page.shape == (16 + 16, 2 * 16 + 16, 3)
        assert (page[16:, :16] == before).all() and (page[16:, 32:] == after).all()

    def test_in_float16(self, tiny_pipeline, pair):
        pipe = custom("erasure_comparison", tiny_pipeline, dtype=torch.float16)
        before = weights(pipe.unet)
        pipe.load_erased(pair[0])
        with pipe._swapped():
            assert same(weights(pipe.unet), weights(load(pair[0], dtype=torch.float16).unet))
        assert same(weights(pipe.unet), before)

    def test_the_base_is_back_whatever_happens(self, tiny_pipeline, pair):
        pipe = custom("erasure_comparison", tiny_pipeline)
        pipe.load_erased(pair[0])
        calls = []

        def stop(pipe, step, timestep, values):
            calls.append(step)
            if len(calls) == 2:  # In the second picture.
                raise KeyboardInterrupt
            return values

        with pytest.raises(KeyboardInterrupt):
            pipe(PROMPT, num_inference_steps=1, callback_on_step_end=stop)
        assert same(weights(pipe.unet), weights(load(tiny_pipeline).unet))

    def test_a_snapshot_of_the_hubs_layout(self, sd14, tmp_path):
        erased, _ = patched(sd14, tmp_path)
        pipe = custom("erasure_comparison", sd14, safety_checker=None)
        pipe.load_erased(erased)
        assert pipe._erased

    def test_refuses(self, tiny_pipeline, pair, tmp_path):
        pipe = custom("erasure_comparison", tiny_pipeline)
        with pytest.raises(ValueError, match="load_erased"):
            pipe(PROMPT)
        with pytest.raises(ValueError, match="there is none in"):
            pipe.load_erased(tmp_path)
        other = build_pipeline(tmp_path / "other", seed=1)
        with pytest.raises(ValueError, match="is of another base: its vae has other weights"):
            pipe.load_erased(other)
        shutil.copytree(pair[0], tmp_path / "config")
        told = json.loads((tmp_path / "config" / "unet" / "config.json").read_text()) | {"sample_size": 99}
        (tmp_path / "config" / "unet" / "config.json").write_text(json.dumps(told))
        with pytest.raises(ValueError, match="its U-Net has sample_size 99"):
            pipe.load_erased(tmp_path / "config")
        shutil.copytree(pair[0], tmp_path / "cut")
        (tmp_path / "cut" / UNET).write_bytes((pair[0] / UNET).read_bytes()[:-5])
        with pytest.raises(ValueError, match="damaged or no safetensors file"):
            pipe.load_erased(tmp_path / "cut")
        with pytest.raises(ValueError, match="no safetensors weights of variant fp16"):
            pipe.load_erased(pair[0], variant="fp16")
        pipe.load_erased(pair[0])
        with pytest.raises(ValueError, match="One prompt"):
            pipe([PROMPT])
        with pytest.raises(ValueError, match="generator is the comparison's own"):
            pipe(PROMPT, generator=None)


class TestSalUn:
    def test_erase_and_undo(self, tiny_pipeline, tmp_path):
        pipe = custom("salun_stable_diffusion", tiny_pipeline)
        before = weights(pipe.unet)
        result = pipe.erase("disc", **QUICK)
        assert result.pipe is pipe and result.report.concept == "disc"
        assert result.patch.number_moved > 0 and not same(weights(pipe.unet), before)
        pipe.save_pretrained(tmp_path)
        again = load(tmp_path)
        assert type(again) is StableDiffusionPipeline and same(weights(again.unet), weights(pipe.unet))
        result.undo()
        assert same(weights(pipe.unet), before)

    def test_a_request_that_cannot_be(self, tiny_pipeline):
        with pytest.raises(UserError, match="the closest is 'mask_ratio'"):
            custom("salun_stable_diffusion", tiny_pipeline).erase("disc", mask_ration=0.3)

    def test_without_the_package_the_line_that_installs_it(self, tiny_pipeline, monkeypatch):
        pipe = custom("salun_stable_diffusion", tiny_pipeline)
        monkeypatch.setitem(sys.modules, "salun_diffusers", None)
        with pytest.raises(ImportError, match=r"pip install salun-diffusers$"):
            pipe.erase("disc")
