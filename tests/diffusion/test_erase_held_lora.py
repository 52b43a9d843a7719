"""erase(pipe, …, adapter="lora"): the LoRA is on the pipeline, whose weights are what they were; undo takes it off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from held_pipes import QUICK, load, same, weights
from peft import get_peft_model_state_dict

from salun_diffusers import EraseConfig, UserError, erase
from salun_diffusers.adapters.fused import Fused
from salun_diffusers.adapters.lora_folder import read_lora
from salun_diffusers.adapters.lora_names import peft_tensors
from salun_diffusers.diffusion.erase import EraseResult
from salun_diffusers.diffusion.held_weights import plain_weights

LORA: dict[str, Any] = {**QUICK, "adapter": "lora", "rank": 2}


@pytest.fixture
def pipe(tiny_pipeline: Path) -> Any:
    made = load(tiny_pipeline)
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipe: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    return pipe("a photo of a circle", num_inference_steps=2, generator=generator, output_type="np").images


def test_in_place_and_back(pipe: Any, tmp_path: Path) -> None:
    before, plain = weights(pipe.unet), drawn(pipe)
    result = erase(pipe, "disc", **LORA, output_dir=tmp_path / "run")
    assert result.pipe is pipe and result.patch is None and result.adapter is not None
    assert same(plain_weights(pipe.unet), before)
    given, wanted = get_peft_model_state_dict(pipe.unet, adapter_name="erasure"), peft_tensors(result.adapter)
    assert given.keys() == wanted.keys() and all(torch.equal(given[name], wanted[name]) for name in wanted)
    erased = drawn(pipe)
    assert abs(erased - plain).max() > 1e-4
    pipe.set_adapters("erasure", 0.0)
    assert abs(drawn(pipe) - plain).max() < 1e-5
    assert read_lora(tmp_path / "run" / "adapter").keys() == result.adapter.keys()
    result.save_adapter(tmp_path / "saved")
    fresh = peft_tensors(read_lora(tmp_path / "saved"))
    assert all(torch.equal(fresh[name], wanted[name]) for name in wanted)
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "without “disc”, a LoRA" in card and 'pipe.load_lora_weights("FOLDER"' in card
    with pytest.raises(UserError, match="nothing is overwritten"):
        result.save_adapter(tmp_path / "saved")
    with pytest.raises(UserError, match=r"save_adapter\(\) writes that one"):
        result.save(tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    result.undo()
    assert same(weights(pipe.unet), before)  # By the names of the class: nothing is around the layers any more.
    assert (drawn(pipe) == plain).all()
    with pytest.raises(UserError, match="undo\\(\\) takes the LoRA 'erasure' off"):
        result.undo()


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_a_copy_in_half_precision_and_beside_another_lora(tiny_pipeline: Path, tmp_path: Path) -> None:
    pipe = load(tiny_pipeline, dtype=torch.float16)
    before = weights(pipe.unet)
    result = erase(pipe, "disc", **LORA, in_place=False)
    assert same(weights(pipe.unet), before) and result.pipe is not pipe
    assert result.adapter is not None
    assert {one.up.dtype for one in result.adapter.values()} == {torch.float16}
    result.save_adapter(tmp_path / "mine")
    result.pipe.load_lora_weights(str(tmp_path / "mine"), weight_name="pytorch_lora_weights.safetensors",
                                  adapter_name="mine")  # fmt: skip
    result.undo()
    assert result.pipe.get_list_adapters() == {"unet": ["mine"]}


@pytest.mark.slow
def test_of_a_folder(tiny_pipeline: Path) -> None:
    settings = {name: value for name, value in LORA.items() if name not in ("forget_prompt", "anchor_prompt")}
    settings |= {"retain_prompts": None, "forget_prompt": ("a photo of a circle",), "anchor_prompt": ("a heart",)}
    result = erase(EraseConfig(concept="disc", pretrained_model_name_or_path=str(tiny_pipeline), **settings))
    base = load(tiny_pipeline).unet.state_dict()
    assert same(plain_weights(result.pipe.unet), base) and result.adapter is not None and result.folder is None
    name = next(f"{layer}.weight" for layer, one in result.adapter.items() if one.up.abs().max() > 0)
    assert not torch.equal(Fused(base, result.adapter)[name], base[name])
    assert json.dumps(result.report.config["adapter"]) == '"lora"'


def test_there_is_none_to_save_without_it(pipe: Any, tmp_path: Path) -> None:
    nothing: Any = None
    with pytest.raises(UserError, match="this erasure has none"):
        EraseResult(pipe, nothing, nothing, None).save_adapter(tmp_path / "lora")


def test_a_class_conditional_pipeline_loads_none(tiny_ddpm: Path) -> None:
    from salun_diffusers import ClassConditionalDDPMPipeline

    pipe = ClassConditionalDDPMPipeline.from_pretrained(tiny_ddpm)
    with pytest.raises(UserError, match="whose class loads LoRA"):
        erase(pipe, "dog", adapter="lora")
