"""LoRA as diffusers' own loaders read them: what is on file is what is added, whatever the layer, layout and rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from salun_diffusers.adapters.difference import Closeness, blank_denoiser, lora_between
from salun_diffusers.adapters.fused import Fused
from salun_diffusers.adapters.lora_folder import WEIGHTS, Layout, read_lora, write_lora
from salun_diffusers.adapters.lora_names import kohya_tensors, peft_tensors
from salun_diffusers.adapters.low_rank import Factors, LowRank, layers_of
from salun_diffusers.errors import UserError
from salun_diffusers.files.loading import load_folder

Pair = tuple[Path, Path]


@pytest.fixture(params=["1.x", "XL"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """A base and what was made of it."""
    names = {"1.x": ("tiny_pipeline", "moved"), "XL": ("sdxl", "moved_xl")}[request.param]
    return request.getfixturevalue(names[0]), request.getfixturevalue(names[1])


def loaded(folder: Path) -> Any:
    pipe = load_folder(DiffusionPipeline, folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def answer(unet: Any) -> torch.Tensor:
    """What a network says of some noise."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 16, unet.config.cross_attention_dim, generator=generator)
    beside = {"text_embeds": torch.randn(2, 12, generator=generator), "time_ids": torch.ones(2, 6)}
    noised = torch.randn(2, 4, 4, 4, generator=generator)
    return unet(noised, 5, states, added_cond_kwargs=beside).sample  # type: ignore[no-any-return]


def added(pipe: Any, lora: LowRank) -> torch.Tensor:
    """The answer with the changes added to the weights by hand."""
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    pipe.unet.load_state_dict(dict(Fused(before, lora)))
    said = answer(pipe.unet)
    pipe.unet.load_state_dict(before)
    return said


def of_any_rank(lora: LowRank) -> LowRank:
    """The same layers, each with one of three ranks."""
    return LowRank(
        {
            name: Factors(one.down[: (r := 1 + number % 3)].clone(), one.up[:, :r].clone())
            for number, (name, one) in enumerate(lora.items())
        }
    )


@pytest.mark.parametrize("layout", ["peft", "kohya"])
def test_stock_diffusers_adds_what_is_on_file(
    pair: Pair, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolutions, attention, projections and embeddings, of ranks that differ: none is dropped or scaled."""
    lora = of_any_rank(lora_between(*pair, 3, show=False)[0])
    pipe = loaded(pair[0])
    lora = readable(lora, layout)
    write_lora(tmp_path / "lora", lora, {}, layout)
    plain, wanted = answer(pipe.unet), added(pipe, lora)
    monkeypatch.setattr(
        "diffusers.loaders.lora_base.HF_HUB_OFFLINE", False
    )  # Where 0.35 wants the file's name as well.
    pipe.load_lora_weights(str(tmp_path / "lora"))
    assert torch.allclose(answer(pipe.unet), wanted, atol=2e-5)
    assert (wanted - plain).abs().max() > 0.05
    layers = [name for name, module in pipe.unet.named_modules() if hasattr(module, "lora_A")]
    assert set(layers) == set(lora)


def readable(lora: LowRank, layout: Layout) -> LowRank:
    """The layers whose names in a layout the installed diffusers knows: up to 0.40 it knew none but those in blocks."""
    from diffusers.loaders.lora_conversion_utils import _convert_unet_lora_key

    knows = _convert_unet_lora_key("lora_unet_conv_in.lora_down.weight").startswith("conv_in")
    if layout == "peft" or knows:
        return lora
    return LowRank({name: one for name, one in lora.items() if "block" in name})


def test_every_layer_that_can_be_changed_is(pair: Pair) -> None:
    lora, _ = lora_between(*pair, 2, show=False)
    assert set(lora) == set(layers_of(blank_denoiser(pair[0])))


def test_scales_fuses_and_comes_off(tiny_pipeline: Path, moved: Path, tmp_path: Path) -> None:
    lora, _ = lora_between(tiny_pipeline, moved, 4, show=False)
    write_lora(tmp_path / "lora", lora, {})
    pipe = loaded(tiny_pipeline)
    plain, whole = answer(pipe.unet), added(pipe, lora)
    half = added(pipe, LowRank({name: Factors(one.down, one.up / 2) for name, one in lora.items()}))
    pipe.load_lora_weights(str(tmp_path / "lora"), weight_name=WEIGHTS, adapter_name="erasure")
    pipe.set_adapters("erasure", 0.5)
    assert torch.allclose(answer(pipe.unet), half, atol=2e-5)
    pipe.set_adapters("erasure", 1.0)
    pipe.disable_lora()
    assert torch.equal(answer(pipe.unet), plain)
    pipe.enable_lora()
    pipe.fuse_lora()
    assert torch.allclose(answer(pipe.unet), whole, atol=2e-5)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert torch.allclose(answer(pipe.unet), plain, atol=2e-5)


def test_peft_gives_back_what_is_on_file(tiny_pipeline: Path, moved: Path, tmp_path: Path) -> None:
    lora = of_any_rank(lora_between(tiny_pipeline, moved, 3, show=False)[0])
    write_lora(tmp_path / "lora", lora, {})
    pipe = loaded(tiny_pipeline)
    pipe.load_lora_weights(str(tmp_path / "lora"), weight_name=WEIGHTS, adapter_name="erasure")
    given = get_peft_model_state_dict(pipe.unet, adapter_name="erasure")
    wanted = peft_tensors(lora)
    assert given.keys() == wanted.keys()
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)
    again = read_lora(tmp_path / "lora")
    assert peft_tensors(again).keys() == wanted.keys()
    assert all(torch.equal(peft_tensors(again)[name], wanted[name]) for name in wanted)


def test_kohya_has_one_alpha_and_scales_add_up() -> None:
    lora = LowRank(
        {"a.b": Factors(torch.ones(2, 3), torch.ones(4, 2)), "c": Factors(torch.ones(4, 3), torch.ones(5, 4))}
    )
    tensors = kohya_tensors(lora)
    assert {float(tensor) for name, tensor in tensors.items() if name.endswith("alpha")} == {float(lora.rank)}
    for layer, one in lora.items():
        called = f"lora_unet_{layer.replace('.', '_')}"
        up, down = tensors[f"{called}.lora_up.weight"], tensors[f"{called}.lora_down.weight"]
        scale = float(tensors[f"{called}.alpha"]) / len(down)  # As WebUI and ComfyUI have it.
        assert torch.allclose(scale * up @ down, one.change())


def test_names_that_webui_and_comfyui_know(sdxl: Path, moved_xl: Path) -> None:
    names = {name.split(".")[0] for name in kohya_tensors(lora_between(sdxl, moved_xl, 1, show=False)[0])}
    assert {
        "lora_unet_conv_in",
        "lora_unet_time_embedding_linear_1",
        "lora_unet_label_emb_0_0",  # The original's name: diffusers knows no other.
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0",
        "lora_unet_mid_block_resnets_0_time_emb_proj",
        "lora_unet_up_blocks_0_upsamplers_0_conv",
    } <= names


class TestBetween:
    def test_tells_what_it_lacks(self, tiny_pipeline: Path, moved: Path) -> None:
        lora, lacks = lora_between(tiny_pipeline, moved, 2, show=False)
        before, after = (loaded(folder).unet.state_dict() for folder in (tiny_pipeline, moved))
        whole = sum(float((after[name] - before[name]).double().square().sum()) for name in before)
        lacking = {
            name: float((after[name] - Fused(before, lora)[name]).double().square().sum()) for name in before
        }  # fmt: skip
        assert lacks.error == pytest.approx(sum(lacking.values()) / whole, rel=1e-4)
        beside = {name for name in before if name.removesuffix(".weight") not in lora or name.endswith(".bias")}
        assert set(lacks.left_out) == beside
        assert lacks.left_out_share == pytest.approx(sum(lacking[name] for name in beside) / whole, rel=1e-4)
        for row in lacks.layers:
            change = after[f"{row.layer}.weight"] - before[f"{row.layer}.weight"]
            assert row.share == pytest.approx(float(change.double().square().sum()) / whole, rel=1e-4)
            assert row.error * row.share == pytest.approx(lacking[f"{row.layer}.weight"] / whole, abs=1e-7)

    def test_a_higher_rank_lacks_less_and_a_full_one_norms_alone(self, tiny_pipeline: Path, moved: Path) -> None:
        found: list[Closeness] = [lora_between(tiny_pipeline, moved, rank, show=False)[1] for rank in (1, 4, 999)]
        assert found[0].error > found[1].error > found[2].error
        assert found[2].error == pytest.approx(found[2].left_out_share, abs=1e-9)

    def test_refuses_where_nothing_moved(self, tiny_pipeline: Path) -> None:
        with pytest.raises(UserError, match="no weight differs from"):
            lora_between(tiny_pipeline, tiny_pipeline, 4, show=False)

    def test_refuses_another_model(self, tiny_pipeline: Path, moved_xl: Path) -> None:
        with pytest.raises(UserError, match="the base of an erasure is required"):
            lora_between(tiny_pipeline, moved_xl, 4, show=False)


class TestReading:
    def lora(self, folder: Path) -> Path:
        one = LowRank({"a": Factors(torch.ones(2, 3), torch.ones(4, 2))})
        return write_lora(folder, one, {"made": "by hand"})

    def test_the_record_lies_beside(self, tmp_path: Path) -> None:
        file = self.lora(tmp_path / "lora")
        record = json.loads((tmp_path / "lora" / "lora.json").read_text())
        assert (record["made"], record["file"], record["bytes"]) == ("by hand", WEIGHTS, file.stat().st_size)

    def test_refuses_what_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="must hold a LoRA"):
            read_lora(tmp_path)

    @pytest.mark.parametrize("length", [0, 7, 40, 200])
    def test_refuses_what_is_cut_off(self, tmp_path: Path, length: int) -> None:
        file = self.lora(tmp_path / "lora")
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(UserError, match="damaged"):
            read_lora(tmp_path / "lora")

    @pytest.mark.parametrize(
        "change",
        [
            {"unet.a.lora_B.weight": None},
            {"unet.a.lora_A.weight": None},
            {"unet.a.lora_B.weight": torch.ones(4, 3)},
            {"unet.a.lora_B.weight": torch.ones(4, 2, 1, 1)},
            {"unet.a.lora_A.weight": torch.ones(2)},
            {"unet.a.lora_A.weight": torch.ones(2, 3, dtype=torch.int64)},
            {"unet.b.bias": torch.ones(3)},
        ],
    )
    def test_refuses_what_is_no_pair(self, tmp_path: Path, change: dict[str, torch.Tensor | None]) -> None:
        file = self.lora(tmp_path / "lora")
        tensors = {**load_file(file), **change}
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)
        with pytest.raises(UserError, match=r"no LoRA"):
            read_lora(tmp_path / "lora")
