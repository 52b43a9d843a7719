"""A denoiser whose weight file is another network's, an adapter's, or lacks something, is refused before anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from salun_diffusers.diffusion.families.ddpm import ClassConditionalDDPM
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.families.tensor_names import check_tensors
from salun_diffusers.errors import UserError
from salun_diffusers.programs.erase import main

CPU = torch.device("cpu")
TO_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    [file] = (folder / "unet").glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def rename(tensors: dict[str, Tensor], old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda t: t.pop("conv_out.bias"), r"conv_out\.bias must be of shape \(4,\), found none"),
            (lambda t: t.update(extra=torch.ones(2)), r"extra must be none, found of shape \(2,\)"),
            (lambda t: t.update({"conv_out.bias": torch.ones(5)}), r"must be of shape \(4,\), found of shape \(5,\)"),
            (lambda t: rename(t, TO_Q, TO_Q.replace("to_q", "to_q.base_layer")), "an adapter .* fuse it first"),
            (lambda t: t.update({TO_Q.replace("weight", "lora_A.default.weight"): torch.ones(1)}), "fuse it first"),
        ],
    )
    def test_weights_of_something_else(self, copied, change, words):
        edit(copied, change)
        with pytest.raises(UserError, match=words) as caught:
            StableDiffusion(copied, device=CPU)
        assert "\n" not in str(caught.value)

    def test_before_a_run_begins(self, copied, small_run, tmp_path, capsys):
        edit(copied, lambda tensors: tensors.pop("conv_out.bias"))
        assert main(small_run(pretrained_model_name_or_path=copied, output_dir=tmp_path / "run")) == 2
        assert "conv_out.bias" in capsys.readouterr().err and not (tmp_path / "run").exists()

    @pytest.mark.parametrize("content", [{"block_out_channels": []}, {"layers_per_block": -1}, {"act_fn": 3}, []])
    def test_a_configuration_of_nothing(self, copied, content):
        (copied / "unet" / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"describes no network|does not hold the weights"):
            check_tensors(copied, None)

    def test_a_class_that_diffusers_does_not_know(self, copied):
        index = json.loads((copied / "model_index.json").read_text())
        index["unet"] = ["diffusers", "os"]
        (copied / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="which diffusers does not know"):
            check_tensors(copied, None)


class TestAccepted:
    def test_networks_of_every_family(self, tiny_pipeline, tiny_ddpm):
        check_tensors(tiny_pipeline, None)
        check_tensors(tiny_ddpm, None)

    def test_names_of_old_attention_layers(self, tiny_ddpm, tmp_path):
        """Checkpoints of 2022 call them query, key, value and proj_attn; diffusers reads them, and so do we."""
        old = Path(shutil.copytree(tiny_ddpm, tmp_path / "old"))

        def age(tensors: dict[str, Tensor]) -> None:
            for name in list(tensors):
                for new, former in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."),
                                    (".to_out.0.", ".proj_attn.")):  # fmt: skip
                    if new in name:
                        rename(tensors, name, name.replace(new, former))
                        break

        edit(old, age)
        same, aged = (dict(ClassConditionalDDPM(f, device=CPU).denoiser.named_parameters()) for f in (tiny_ddpm, old))
        assert all(torch.equal(aged[name], same[name]) for name in same)


class TestPrompts:
    def test_a_token_of_several_vectors_is_written_out(self, tiny_pipeline):
        """As `pipe.encode_prompt` does: <x> stands for <x> <x>_1 where the tokenizer has both."""
        family = StableDiffusion(tiny_pipeline, device=CPU)
        family.pipe.tokenizer.add_tokens(["<x>", "<x>_1"])
        family.pipe.text_encoder.resize_token_embeddings(len(family.pipe.tokenizer))
        ours = family.encode(["a <x>"])["encoder_hidden_states"]
        theirs, _ = family.pipe.encode_prompt("a <x>", CPU, 1, False)
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, family.encode(["a star"])["encoder_hidden_states"])
        # Sixteen places hold <start>, fourteen tokens and <end>: of 8 times two vectors the last two are cut.
        assert family.cut_words("<x> " * 8).replace(" ", "") == "<x><x>_1"

    def test_a_tokenizer_without_a_limit_has_the_encoders(self, tiny_pipeline):
        family = StableDiffusion(tiny_pipeline, device=CPU)
        expected = family.encode(["a star"])["encoder_hidden_states"]
        family.pipe.tokenizer.model_max_length = int(1e30)
        assert torch.equal(family.encode(["a star"])["encoder_hidden_states"], expected)
        assert expected.shape[1] == 16


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"])
def test_a_scheduler_of_other_noise_is_told(copied, small_run, tmp_path, capsys, name):
    import diffusers

    getattr(diffusers, name)().save_pretrained(copied / "scheduler")
    index = json.loads((copied / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", name]
    (copied / "model_index.json").write_text(json.dumps(index))
    assert main(small_run(pretrained_model_name_or_path=copied, output_dir=tmp_path / "run")) == 2
    err = capsys.readouterr().err
    assert "noise of DDPM" in err and name in err and err.count("\n") == 1


class TestClassConditionalFolder:
    def test_carries_the_packages_own_code_not_the_strangers(self, tiny_ddpm, tmp_path):
        from salun_diffusers.files.pipeline_copy import copy_with_denoiser
        from salun_diffusers.files.pipeline_folder import OWN_CODE

        base = Path(shutil.copytree(tiny_ddpm, tmp_path / "base"))
        (base / OWN_CODE.name).write_text("raise SystemExit('ran')\n")
        copy_with_denoiser(base, tmp_path / "copy", lambda folder: None)
        assert (tmp_path / "copy" / OWN_CODE.name).read_bytes() == OWN_CODE.read_bytes()

    def test_takes_hub_ids_as_diffusers_does(self, tiny_ddpm, monkeypatch):
        from salun_diffusers.pipelines import class_conditional_ddpm as module

        asked = {}

        def download(name, **keywords):
            asked.update(keywords, name=name)
            return str(tiny_ddpm)

        monkeypatch.setattr(module, "snapshot_download", download)
        pipe = module.ClassConditionalDDPMPipeline.from_pretrained("someone/cats", revision="v1", use_safetensors=True)
        assert (asked["name"], asked["revision"]) == ("someone/cats", "v1") and len(pipe.labels) == 3
        assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in asked["allow_patterns"])
