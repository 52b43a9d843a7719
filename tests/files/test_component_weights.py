"""VAE and text encoder: old names are read as the libraries read them, what would be left at random is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.errors import UserError
from salun_diffusers.files.component_weights import check_components
from salun_diffusers.programs.erase import main
from salun_diffusers.programs.generate import main as generate

VAE, TEXT = "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
NEW_AND_OLD = ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn."))


def edit(file: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file({name: x.contiguous() for name, x in change(load_file(file)).items()}, file, metadata={"format": "pt"})


def aged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VAE as the files of Stable Diffusion 1.4 name it."""
    found = {}
    for name, tensor in tensors.items():
        for new, old in NEW_AND_OLD:
            name = name.replace(new, old)
        found[name] = tensor
    assert found.keys() != tensors.keys()
    return found


def of_2022(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder as transformers 4 saved it: under `text_model`, with a buffer that is none any more."""
    found = {"text_model." + name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    return found | {"text_model.embeddings.position_ids": torch.arange(16)[None]}


def without(tensors: dict[str, Tensor], end: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(end)}


def reshaped(tensors: dict[str, Tensor], end: str) -> dict[str, Tensor]:
    return {name: torch.ones(3) if name.endswith(end) else tensor for name, tensor in tensors.items()}


class TestAccepted:
    def test_networks_as_they_are_saved(self, tiny_pipeline, tiny_ddpm, sd14):
        for folder, variant in ((tiny_pipeline, None), (tiny_ddpm, None), (sd14, None), (sd14, "fp16")):
            check_components(folder, variant)

    def test_names_of_stable_diffusion_1_4(self, copied, tiny_pipeline, small_run, tmp_path):
        """What is drawn with them is what is drawn without, and a run goes through."""
        edit(copied / VAE, aged)
        edit(copied / TEXT, of_2022)
        check_components(copied)
        ours, theirs = (StableDiffusion(folder, device=torch.device("cpu")).pipe for folder in (copied, tiny_pipeline))
        for part in ("vae", "text_encoder"):
            wanted = getattr(theirs, part).state_dict()
            assert all(torch.equal(x, wanted[name]) for name, x in getattr(ours, part).state_dict().items())
        flags = {"pretrained_model_name_or_path": copied, "output_dir": tmp_path / "run", "mask": "random"}
        assert main(small_run(**flags)) == 0

    def test_tensors_that_nobody_needs(self, copied):
        edit(copied / VAE, lambda tensors: tensors | {"loss.discriminator.weight": torch.ones(2)})
        edit(copied / TEXT, lambda tensors: tensors | {"vision_model.weight": torch.ones(2)})
        check_components(copied)
        StableDiffusionPipeline.from_pretrained(copied, local_files_only=True)


class TestRefused:
    CASES = (
        (VAE, without, "decoder.conv_out.bias", r"vae does not hold .* decoder\.conv_out\.bias must be .* found none"),
        (VAE, reshaped, "decoder.conv_out.bias", r"must be of shape \(3,\), found \(4,\)"),
        (TEXT, without, "layers.0.mlp.fc1.weight", r"text_encoder does not hold .*mlp\.fc1\.weight is missing"),
        (TEXT, reshaped, "layers.0.mlp.fc1.bias", r"mlp\.fc1\.bias must be of shape \(16,\), found \(3,\)"),
    )

    @pytest.mark.parametrize(("file", "change", "end", "words"), [CASES[0], CASES[2], CASES[3]])
    def test_what_would_be_left_at_random(self, copied, file, change, end, words):
        edit(copied / file, lambda tensors: change(tensors, end))
        with pytest.raises(UserError, match=words) as told:
            check_components(copied)
        assert "\n" not in str(told.value)

    def test_another_shape_in_the_vae(self, copied):
        edit(copied / VAE, lambda tensors: {**tensors, "decoder.conv_out.bias": torch.ones(4)})
        with pytest.raises(UserError, match=self.CASES[1][3]):
            check_components(copied)

    def test_old_names_of_which_one_is_missing(self, copied):
        edit(copied / VAE, lambda tensors: without(aged(tensors), "decoder.mid_block.attentions.0.query.weight"))
        with pytest.raises(UserError, match=r"decoder\.mid_block\.attentions\.0\.to_q\.weight must be"):
            check_components(copied)

    @pytest.mark.parametrize("file", [VAE, TEXT])
    def test_by_the_programs_before_anything_is_drawn(self, copied, small_run, capsys, tmp_path, file):
        end = "decoder.conv_out.bias" if file == VAE else "layers.0.mlp.fc1.weight"
        edit(copied / file, lambda tensors: without(tensors, end))
        assert main(small_run(pretrained_model_name_or_path=copied, output_dir=tmp_path / "run")) == 2
        (tmp_path / "p.txt").write_text("a star\n")
        words = ["--pretrained_model_name_or_path", copied, "--prompts", tmp_path / "p.txt", "--output_dir",
                 tmp_path / "out"]  # fmt: skip
        assert generate([*map(str, words)]) == 2
        err = capsys.readouterr().err
        assert err.count(f"{file.split('/')[0]} does not hold the weights of its network") == 2
        assert err.count("\n") == 2 and not {"run", "out"} & {path.name for path in tmp_path.iterdir()}
