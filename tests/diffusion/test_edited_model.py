"""A base with what another eraser wrote put into it: exactly those weights, and what is drawn with them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from eraser_outputs import VALUE, answers, attention, eraseflow, esd, kohya, lora, mace, moved, saved, text_of, unet_of
from torch import Tensor

from salun_diffusers import UserError
from salun_diffusers.diffusion.base_model import FolderModel, Loading
from salun_diffusers.diffusion.edited_model import EditedModel
from salun_diffusers.diffusion.eraser_edit import EraserEdit
from salun_diffusers.diffusion.presets.text_space import TextEncoderSpace
from salun_diffusers.files.loading import dtype_argument
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.patch import WeightPatch

_KEYWORDS: dict[type, dict[str, Any]] = {
    StableDiffusionPipeline: {"requires_safety_checker": False},
    StableDiffusionXLPipeline: {"add_watermarker": False},
}
PLAIN = Loading(torch.device("cpu"), torch.float32, "scheduler", 0)


def model(base: Path, file: Path, variant: str | None = None) -> EditedModel:
    return EditedModel(FolderModel(base, variant), file)


@cache
def loaded(base: Path) -> Any:
    """A pipeline as diffusers loads it, once."""
    kind = StableDiffusionXLPipeline if (base / "text_encoder_2").is_dir() else StableDiffusionPipeline
    without = {"safety_checker": None} if kind is StableDiffusionPipeline else {"add_watermarker": False}
    pipe: Any = kind.from_pretrained(base, local_files_only=True, **without, **{dtype_argument(): torch.float32})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def fresh(base: Path) -> Any:
    """A pipeline with networks of its own."""
    pipe = loaded(base)
    return type(pipe)(**{name: copy.deepcopy(part) for name, part in pipe.components.items()}, **_KEYWORDS[type(pipe)])


def pipe_of(edited: EditedModel) -> Any:
    """The base with the file put into it."""
    pipe = fresh(edited.folder)
    pipe.set_progress_bar_config(disable=True)
    edited.edit.put_into(pipe)
    return pipe


def by_hand(base: Path, component: str, values: dict[str, Tensor]) -> Any:
    """The base with some weights set by `load_state_dict`, as the field's scripts do it."""
    pipe = fresh(base)
    pipe.set_progress_bar_config(disable=True)
    network = getattr(pipe, component)
    own = network.state_dict()
    short = {name.removeprefix("text_model."): name for name in own}
    named = {short[name.removeprefix("text_model.")]: tensor for name, tensor in values.items()}
    assert not network.load_state_dict(named, strict=False).unexpected_keys
    return pipe


def same(one: Any, other: Any) -> None:
    """Every weight of both networks, to the bit."""
    for component in ("unet", "text_encoder", "text_encoder_2"):
        if hasattr(one, component):
            mine, theirs = (getattr(pipe, component).state_dict() for pipe in (one, other))
            assert mine.keys() == theirs.keys()
            for name, tensor in mine.items():
                assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="module")
def drawn(tiny_pipeline: Path) -> Tensor:
    """What the base draws."""
    return answers(by_hand(tiny_pipeline, "unet", {}))


def _uce(base: Path, file: Path) -> dict[str, Tensor]:
    values = moved(unet_of(base), lambda name: "attn2.to_k" in name or "attn2.to_v" in name)
    saved(values, file)
    return values


def _oce(base: Path, file: Path) -> dict[str, Tensor]:
    values = moved(unet_of(base), lambda name: name.endswith(VALUE))
    saved(values, file)
    return values


def _whole(base: Path, file: Path) -> dict[str, Tensor]:
    values = moved(unet_of(base))
    saved(values, file)
    return values


def _original(base: Path, file: Path) -> dict[str, Tensor]:
    from single_files import _unet

    values = moved(unet_of(base))
    unet = loaded(base).unet
    saved({f"model.diffusion_model.{_unet(name, unet)}": tensor for name, tensor in values.items()}, file)
    return values


def _double(base: Path, file: Path) -> dict[str, Tensor]:
    values = {name: tensor.double() for name, tensor in moved(unet_of(base)).items()}
    saved(values, file)
    return values


@pytest.mark.parametrize("write", [esd, _uce, _oce, _whole, _original, _double], ids=lambda write: write.__name__)
def test_weights_of_a_unet_stand_in_for_the_base_s(tiny_pipeline, tmp_path, drawn, write: Callable[..., Any]):
    values = write(tiny_pipeline, tmp_path / "file.safetensors")
    pipe = pipe_of(model(tiny_pipeline, tmp_path / "file.safetensors"))
    expected = by_hand(tiny_pipeline, "unet", values)
    same(pipe, expected)
    assert torch.equal(answers(pipe), answers(expected))
    assert not torch.allclose(answers(pipe), drawn, atol=1e-3)


def test_with_another_text_encoder_it_is_known_how_many_words_there_are(tiny_pipeline, tmp_path, monkeypatch):
    """What lies near a word is not; but a star is a word like any other to Stable Diffusion with such a file, too."""
    edited = model(tiny_pipeline, saved(moved(text_of(tiny_pipeline)), tmp_path / "te.safetensors"))
    assert edited.text_space().of_a_toy and edited.text_space().similarities("star", ["heart"]) == {}
    monkeypatch.setattr(TextEncoderSpace, "of_a_toy", False)
    assert not edited.text_space().of_a_toy


def test_weights_of_a_unet_in_a_folder(tiny_pipeline, tmp_path):
    """By way of the family, as attacks and erasures load it."""
    values = _whole(tiny_pipeline, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    family = model(tiny_pipeline, tmp_path / "unet").family("StableDiffusionPipeline", PLAIN)
    same(family.pipe, by_hand(tiny_pipeline, "unet", values))
    assert family.denoiser is family.pipe.unet


def test_a_text_encoder_stands_in_for_the_base_s(tiny_pipeline, tmp_path, drawn):
    """As a file, and as the folder of a `CLIPTextModel`."""
    values = moved(text_of(tiny_pipeline), lambda name: "layers" in name)
    saved(values, tmp_path / "te.safetensors")
    folder = by_hand(tiny_pipeline, "text_encoder", values).text_encoder
    folder.save_pretrained(tmp_path / "hirm")
    expected = by_hand(tiny_pipeline, "text_encoder", values)
    for path in (tmp_path / "te.safetensors", tmp_path / "hirm"):
        pipe = pipe_of(model(tiny_pipeline, path))
        same(pipe, expected)
        assert torch.equal(answers(pipe), answers(expected))
        assert not torch.allclose(answers(pipe), drawn, atol=1e-3)


@pytest.mark.parametrize("component", ["unet", "text_encoder", "text_encoder_2"])
def test_each_network_of_xl(sdxl, tmp_path, component):
    own = unet_of(sdxl) if component == "unet" else text_of(sdxl, component)
    values = moved(own, lambda name: "attn" in name)
    saved(values, tmp_path / "file.safetensors")
    pipe = pipe_of(model(sdxl, tmp_path / "file.safetensors"))
    same(pipe, by_hand(sdxl, component, values))


def test_values_are_cast_to_the_loaded_type(sd14, tmp_path):
    """The base's variant is fp16, the eraser's file fp32; `generate` on a GPU loads everything in half precision."""
    values = _uce(sd14, tmp_path / "uce.safetensors")
    pipe: Any = StableDiffusionPipeline.from_pretrained(
        sd14, local_files_only=True, safety_checker=None, variant="fp16"
    ).to(torch.bfloat16)
    EraserEdit.of(tmp_path / "uce.safetensors", sd14, "fp16").put_into(pipe)
    for name, value in values.items():
        assert torch.equal(pipe.unet.state_dict()[name], value.bfloat16())


@pytest.fixture(scope="module")
def pairs(tiny_pipeline: Path) -> dict[str, tuple[Tensor, Tensor]]:
    return lora(tiny_pipeline, attention)


@pytest.fixture(scope="module")
def expected(tiny_pipeline: Path, pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """W + B·A, set by hand."""
    weights = unet_of(tiny_pipeline)
    return {f"{layer}.weight": weights[f"{layer}.weight"] + up @ down for layer, (down, up) in pairs.items()}


class TestLoras:
    @pytest.mark.parametrize("write", ["mace", "eraseflow", "kohya"])
    def test_are_loaded_beside_the_weights(self, tiny_pipeline, tmp_path, drawn, pairs, expected, write):
        path = {
            "mace": lambda: mace(pairs, tmp_path / "mace"),
            "eraseflow": lambda: eraseflow(pairs, tmp_path / "eraseflow"),
            "kohya": lambda: kohya(pairs, tmp_path / "kohya.safetensors", 2.0),
        }[write]()
        edited = model(tiny_pipeline, path)
        pipe, wanted = pipe_of(edited), by_hand(tiny_pipeline, "unet", expected)
        torch.testing.assert_close(answers(pipe), answers(wanted), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(answers(pipe), drawn, atol=1e-2)
        assert list(pipe.get_list_adapters()["unet"]) == ["eraser"]
        weights = unet_of(tiny_pipeline) | expected
        for name, tensor in edited.tensors().items():
            torch.testing.assert_close(tensor, weights[name])

    def test_are_what_diffusers_makes_of_them(self, tiny_pipeline, tmp_path, pairs):
        """`load_lora_weights` of the file itself, whose names need no help."""
        path = eraseflow(pairs, tmp_path / "eraseflow")
        theirs = by_hand(tiny_pipeline, "unet", {})
        theirs.load_lora_weights(str(path), weight_name="pytorch_lora_weights.safetensors")
        assert torch.equal(answers(pipe_of(model(tiny_pipeline, path))), answers(theirs))

    def test_of_a_text_encoder_are_added_to_it(self, tiny_pipeline, tmp_path):
        layer, text = "encoder.layers.0.mlp.fc1", text_of(tiny_pipeline)
        down, up = torch.randn(2, 16), torch.randn(16, 2)
        called = f"lora_te_text_model_{layer.replace('.', '_')}"
        tensors = {f"{called}.lora_down.weight": down, f"{called}.lora_up.weight": up,
                   f"{called}.alpha": torch.tensor(1.0)}  # fmt: skip
        pipe = pipe_of(model(tiny_pipeline, saved(tensors, tmp_path / "te.safetensors")))
        weight = text[f"text_model.{layer}.weight"] + 0.5 * (up @ down)
        torch.testing.assert_close(_text(pipe)[f"{layer}.weight"], weight)


def _text(pipe: Any) -> dict[str, Tensor]:
    return {name.removeprefix("text_model."): tensor for name, tensor in pipe.text_encoder.state_dict().items()}


class TestPatches:
    def test_are_applied(self, tiny_pipeline, tmp_path, drawn):
        values = {**unet_of(tiny_pipeline), **moved(unet_of(tiny_pipeline), lambda name: "attn" in name)}
        WeightPatch.between(unet_of(tiny_pipeline), values).save(tmp_path / "patch.safetensors")
        edited = model(tiny_pipeline, tmp_path / "patch.safetensors")
        pipe = pipe_of(edited)
        same(pipe, by_hand(tiny_pipeline, "unet", values))
        assert all(torch.equal(tensor, values[name]) for name, tensor in edited.tensors().items())

    def test_of_another_base_are_refused(self, tiny_pipeline, tmp_path):
        values = moved(unet_of(tiny_pipeline))
        WeightPatch.between(values, moved(values)).save(tmp_path / "patch.safetensors")
        with pytest.raises(UserError, match="The patch needs the base weights"):
            pipe_of(model(tiny_pipeline, tmp_path / "patch.safetensors"))


class TestModels:
    def test_are_told_apart_by_base_and_file(self, tiny_pipeline, sd14, tmp_path):
        esd(tiny_pipeline, tmp_path / "one.safetensors")
        _uce(tiny_pipeline, tmp_path / "two.safetensors")
        names = {
            FolderModel(tiny_pipeline).identity(),
            *(model(tiny_pipeline, tmp_path / f"{name}.safetensors").identity() for name in ("one", "two")),
            model(sd14, tmp_path / "one.safetensors").identity(),
        }
        assert len(names) == 4
        esd(tiny_pipeline, tmp_path / "again.safetensors")
        assert model(tiny_pipeline, tmp_path / "again.safetensors").identity() in names

    def test_leave_the_base_as_it_is(self, tiny_pipeline, tmp_path):
        before = FolderModel(tiny_pipeline).identity()
        _whole(tiny_pipeline, tmp_path / "file.safetensors")
        pipe_of(model(tiny_pipeline, tmp_path / "file.safetensors"))
        assert FolderModel(tiny_pipeline).identity() == before

    def test_have_the_weights_that_they_draw_with(self, tiny_pipeline, tmp_path):
        values = esd(tiny_pipeline, tmp_path / "esd.safetensors")
        edited = model(tiny_pipeline, tmp_path / "esd.safetensors")
        weights = unet_of(tiny_pipeline) | {name: tensor.float() for name, tensor in values.items()}
        assert all(torch.equal(tensor, weights[name]) for name, tensor in edited.tensors().items())
        assert edited.at(tiny_pipeline) is edited and edited.at(tmp_path) == FolderModel(tmp_path)

    def test_say_what_a_written_denoiser_changes(self, tiny_pipeline, tmp_path):
        """Compared is with base and file together: one weight more than those of the file."""
        values = esd(tiny_pipeline, tmp_path / "esd.safetensors")
        edited = model(tiny_pipeline, tmp_path / "esd.safetensors")
        unet = pipe_of(edited).unet
        unet.state_dict()["conv_out.bias"][0] += 1
        edited.write(tmp_path / "made", unet)
        mask = SaliencyMask.full({name: tensor.shape for name, tensor in unet_of(tiny_pipeline).items()})
        assert edited.receipt(tmp_path / "made", mask).moved == 1
        patch = edited.patch(tmp_path / "made")
        assert list(patch.places) == ["conv_out.bias"] and patch.number_moved == 1
        assert torch.equal(unet_of(tmp_path / "made")[next(iter(values))], next(iter(values.values())).float())

    def test_of_more_than_a_denoiser_are_not_written_as_one(self, tiny_pipeline, tmp_path):
        path = saved(moved(text_of(tiny_pipeline)), tmp_path / "te.safetensors")
        edited = model(tiny_pipeline, path)
        with pytest.raises(UserError, match="cannot be erased from"):
            edited.write(tmp_path / "made", pipe_of(edited).unet)
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_with_values_that_are_no_numbers_are_refused(self, tiny_pipeline, tmp_path, value):
        values = _oce(tiny_pipeline, tmp_path / "oce.safetensors")
        next(iter(values.values()))[0, 0] = value
        saved(values, tmp_path / "oce.safetensors")
        with pytest.raises(UserError, match="are no numbers as float32"):
            pipe_of(model(tiny_pipeline, tmp_path / "oce.safetensors"))
