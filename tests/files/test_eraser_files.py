"""What other erasers write, recognised by headers and compared with a base."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
import torch
from eraser_outputs import KEY, VALUE, attention, eraseflow, esd, kohya, lora, saved, text_of, unet_of
from safetensors.torch import load_file, save_file

from salun_diffusers import UserError
from salun_diffusers.adapters.eraser_lora import fit_lora, read_pairs
from salun_diffusers.files.eraser_files import EraserFile, read_eraser_file, split_sum
from salun_diffusers.files.eraser_fit import Placed, fit_weights


def placed(base: Path, path: Path, variant: str | None = None) -> Placed:
    return fit_weights(read_eraser_file(path), base, variant)


def told(act) -> str:
    """The one line that an act ends with."""
    with pytest.raises(UserError) as refusal:
        act()
    line = str(refusal.value)
    assert "\n" not in line
    return line


class TestSums:
    def test_are_a_base_and_a_file_with_or_without_spaces(self, tiny_pipeline, tmp_path):
        file = saved({"w": torch.ones(1)}, tmp_path / "esd.safetensors")
        for name in (f"{tiny_pipeline}+{file}", f"{tiny_pipeline} + {file}", f"{tiny_pipeline}  +{file} "):
            assert split_sum(name) == (str(tiny_pipeline), file)
        assert split_sum(f"demo+{file}") == ("demo", file)
        assert split_sum(f"CompVis/stable-diffusion-v1-4 + {file}") == ("CompVis/stable-diffusion-v1-4", file)

    def test_a_plus_in_a_path_that_is_there_is_no_sum(self, tmp_path):
        folder = tmp_path / "a+b"
        folder.mkdir()
        assert split_sum(str(folder)) is None
        assert split_sum("demo") is None

    def test_a_plus_may_be_a_part_of_either_half(self, tmp_path):
        base, file = tmp_path / "a+b", saved({"w": torch.ones(1)}, tmp_path / "c+d" / "e+f.safetensors")
        base.mkdir()
        assert split_sum(f"{base}+{file}") == (str(base), file)
        beside = saved({"w": torch.ones(1)}, tmp_path / "f.safetensors")
        assert split_sum(f"demo + {beside}") == ("demo", beside)

    def test_of_two_readings_that_with_a_base_is_taken(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "one+two").mkdir()
        for name in ("file", "two+file"):
            saved({"w": torch.ones(1)}, tmp_path / name)
        assert split_sum("one+two+file") == ("one+two", Path("file"))

    @pytest.mark.parametrize(
        ("name", "words"),
        [("demo+gone.safetensors", "there is no gone.safetensors"), ("demo+", "one half missing"),
         ("+gone", "one half missing")],
    )  # fmt: skip
    def test_without_a_file_are_refused(self, name, words):
        assert words in told(lambda: split_sum(name))

    def test_a_home_is_found(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        file = saved({"w": torch.ones(1)}, tmp_path / "uce.safetensors")
        assert split_sum("demo+~/uce.safetensors") == ("demo", file)


class TestWeights:
    @pytest.mark.parametrize("prefix", ["", "unet.", "model.", "module.unet."])
    def test_of_a_unet_find_their_places_behind_any_prefix(self, tiny_pipeline, tmp_path, prefix):
        values = esd(tiny_pipeline, tmp_path / "esd.safetensors", prefix)
        found = placed(tiny_pipeline, tmp_path / "esd.safetensors")
        assert found.keys() == {"unet"}
        assert {name: tensor.name for name, tensor in found["unet"].items()} == {
            name: f"{prefix}{name}" for name in values
        }
        assert {tensor.dtype for tensor in found["unet"].values()} == {"BF16"}

    @pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
    @pytest.mark.parametrize("model", ["tiny_pipeline", "sdxl"])
    def test_in_the_original_layout_are_translated(self, request, tmp_path, prefix, model):
        """By the names of the way there, which the tests have written on their own."""
        from single_files import _unet

        base = request.getfixturevalue(model)
        weights, unet = unet_of(base), _network(base)
        saved({f"{prefix}{_unet(name, unet)}": tensor for name, tensor in weights.items()}, tmp_path / "u.safetensors")
        found = placed(base, tmp_path / "u.safetensors")["unet"]
        assert {name: tensor.name for name, tensor in found.items()} == {
            name: f"{prefix}{_unet(name, unet)}" for name in weights
        }

    @pytest.mark.parametrize("prefix", ["", "text_encoder.", "cond_stage_model.transformer."])
    def test_of_a_text_encoder_find_their_places(self, tiny_pipeline, tmp_path, prefix):
        tensors = {f"{prefix}{name}": tensor for name, tensor in text_of(tiny_pipeline).items()}
        position = {f"{prefix}text_model.embeddings.position_ids": torch.arange(16)[None]}
        saved(tensors | position, tmp_path / "te.safetensors")
        found = placed(tiny_pipeline, tmp_path / "te.safetensors")
        assert found.keys() == {"text_encoder"}
        assert sorted(f"{prefix}text_model.{name}" for name in found["text_encoder"]) == sorted(tensors)

    def test_of_a_wrapped_text_encoder_are_taken_once(self, tiny_pipeline, tmp_path):
        """AdvUnlearn's wrapper has everything twice, by the names of its parts."""
        text = text_of(tiny_pipeline)
        wrapped = {f"text_encoder.{name}": tensor for name, tensor in text.items()}
        for name, tensor in text.items():
            twice = name.removeprefix("text_model.")
            wrapped[twice.replace("embeddings.", "embedding.", 1) if twice.startswith("emb") else twice] = (
                tensor.clone()
            )
        saved(wrapped, tmp_path / "te.safetensors")
        found = placed(tiny_pipeline, tmp_path / "te.safetensors")["text_encoder"]
        assert len(found) == len(text)
        assert all(tensor.name.startswith("text_encoder.text_model.") for tensor in found.values())

    @pytest.mark.parametrize("which", ["text_encoder", "text_encoder_2"])
    def test_go_to_the_encoder_whose_shapes_they_have(self, sdxl, tmp_path, which):
        saved(text_of(sdxl, which), tmp_path / "te.safetensors")
        assert placed(sdxl, tmp_path / "te.safetensors").keys() == {which}

    def test_of_both_networks_in_one_file(self, tiny_pipeline, tmp_path):
        both = {f"unet.{name}": t for name, t in unet_of(tiny_pipeline).items() if name.endswith(VALUE)}
        both |= {f"text_encoder.{name}": tensor for name, tensor in text_of(tiny_pipeline).items()}
        saved(both, tmp_path / "both.safetensors")
        assert placed(tiny_pipeline, tmp_path / "both.safetensors").keys() == {"unet", "text_encoder"}

    @pytest.mark.parametrize("component", ["unet", "text_encoder", "text_encoder_2"])
    def test_in_a_folder_of_one_component(self, sdxl, component):
        found = placed(sdxl, sdxl / component)
        assert found.keys() == {component}

    def test_are_compared_with_the_variant_of_the_base(self, sd14, tmp_path):
        esd(sd14, tmp_path / "esd.safetensors")
        assert placed(sd14, tmp_path / "esd.safetensors", "fp16").keys() == {"unet"}
        assert "of variant bf16" in told(lambda: placed(sd14, tmp_path / "esd.safetensors", "bf16"))


class TestLoras:
    def test_of_any_names_are_the_same_pairs(self, tiny_pipeline, tmp_path):
        from eraser_outputs import mace

        pairs = lora(tiny_pipeline, attention)
        peft = {
            f"unet.{layer}.lora_{half}.weight": tensor
            for layer, two in pairs.items()
            for half, tensor in zip("AB", two, strict=True)
        }
        for path, scale in (
            (mace(pairs, tmp_path / "mace"), 1.0),
            (eraseflow(pairs, tmp_path / "eraseflow"), 1.0),
            (kohya(pairs, tmp_path / "kohya.safetensors", 1.0), 0.5),
            (saved(peft, tmp_path / "peft.safetensors"), 1.0),
        ):
            found = read_pairs(fit_lora(read_eraser_file(path), tiny_pipeline)["unet"])
            assert found.keys() == pairs.keys()
            for layer, (down, up) in pairs.items():
                assert torch.equal(found[layer].down, down) and torch.equal(found[layer].up, up * scale), path

    def test_by_the_names_of_the_original_code(self, sdxl, tmp_path):
        from single_files import _unet

        pairs, unet = lora(sdxl, attention), _network(sdxl)
        old = {
            f"lora_unet_{_unet(f'{layer}.', unet)[:-1].replace('.', '_')}.lora_{half}.weight": t
            for layer, two in pairs.items()
            for half, t in zip(("down", "up"), two, strict=True)
        }
        found = fit_lora(read_eraser_file(saved(old, tmp_path / "xl.safetensors")), sdxl)
        assert found["unet"].keys() == pairs.keys()

    @pytest.mark.parametrize(
        ("name", "ending"),
        [("text_encoder.text_model.encoder.layers.0.self_attn.to_q", "lora_linear_layer"),
         ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", "lora_linear_layer"),
         ("text_encoder.encoder.layers.0.self_attn.q_proj", "lora"),
         ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "lora_"),
         ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", "lora_")],
    )  # fmt: skip
    def test_of_a_text_encoder(self, tiny_pipeline, tmp_path, name, ending):
        dot = "" if ending == "lora_" else "."
        tensors = {
            f"{name}.{ending}{dot}down.weight": torch.ones(2, 16),
            f"{name}.{ending}{dot}up.weight": torch.ones(16, 2),
        }
        found = fit_lora(read_eraser_file(saved(tensors, tmp_path / "te.safetensors")), tiny_pipeline)
        assert list(found["text_encoder"]) == ["encoder.layers.0.self_attn.q_proj"]


def _network(base: Path):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base / "unet"))


class TestRefused:
    @pytest.fixture
    def line(self, tiny_pipeline, tmp_path):
        """What a file with some tensors is answered with."""

        def attempt(tensors: dict[str, torch.Tensor], base: Path = tiny_pipeline) -> str:
            def act() -> EraserFile:
                found = read_eraser_file(saved(tensors, tmp_path / "file.safetensors"))
                _ = fit_lora(found, base) if found.kind == "lora" else fit_weights(found, base)
                return found

            return told(act)

        return attempt

    def test_names_that_no_network_has(self, line, tiny_pipeline):
        tensors = {"classifier.weight": torch.ones(2), "head.bias": torch.ones(2)} | unet_of(tiny_pipeline)
        answer = line(tensors)
        assert f"has 2 of {len(tensors)} tensors with names of neither" in answer and "classifier.weight" in answer

    def test_names_of_another_unet(self, line, tiny_pipeline):
        weights = unet_of(tiny_pipeline)
        answer = line(weights | {"down_blocks.7.attentions.0.norm.weight": torch.ones(8)})
        assert f"{len(weights)} of its {len(weights) + 1} tensors for the unet fit" in answer
        assert "down_blocks.7.attentions.0.norm.weight of shape (8,), which is not there" in answer

    def test_shapes_of_another_unet(self, line, tiny_pipeline):
        weights = unet_of(tiny_pipeline)
        name = next(name for name in weights if name.endswith(KEY))
        answer = line({name: torch.ones(4, 4)})
        assert f"none of its 1 tensors for the unet fit, the first that does not is {name} of shape (4, 4)" in answer
        assert f"there it is of shape {tuple(weights[name].shape)}" in answer

    def test_original_names_without_a_place(self, line):
        assert "input_blocks.99.1.norm.weight" in line(
            {"model.diffusion_model.input_blocks.99.1.norm.weight": torch.ones(2)}
        )

    def test_a_text_encoder_of_another_width(self, line, sdxl):
        answer = line(text_of(sdxl, "text_encoder_2"))
        assert "for the text_encoder fit" in answer and "there it is of shape" in answer

    def test_a_text_encoder_where_the_base_has_none(self, line, tiny_ddpm):
        assert "has none" in line({"text_model.final_layer_norm.bias": torch.ones(4)}, tiny_ddpm)

    def test_one_weight_twice(self, line):
        assert "two tensors for conv_in.weight" in line(
            {"unet.conv_in.weight": torch.ones(1), "conv_in.weight": torch.ones(1)}
        )

    def test_integers(self, line):
        assert "conv_in.weight as I64" in line({"conv_in.weight": torch.ones(1, dtype=torch.int64)})

    def test_nothing(self, line):
        assert "holds no weights" in line({"text_model.embeddings.position_ids": torch.ones(1)})

    def test_a_whole_checkpoint(self, line):
        weights = {"model.diffusion_model.out.0.weight": torch.ones(1), "first_stage_model.w": torch.ones(1)}
        assert "is a checkpoint of a whole pipeline: name it alone" in line(weights)

    def test_a_lora_of_another_family(self, line, tiny_pipeline, sdxl):
        pairs = lora(sdxl, attention)
        tensors = {f"unet.{layer}.lora_{half}.weight": t for layer, two in pairs.items()
                   for half, t in zip("AB", two, strict=True)}  # fmt: skip
        answer = line(tensors)
        assert "was not made of" in answer and "for the unet fit" in answer and "(16, 2) x (2, 40)" in answer

    def test_a_lora_of_layers_that_are_not_there(self, line):
        two = {
            "unet.up_blocks.9.to_q.lora_A.weight": torch.ones(2, 4),
            "unet.up_blocks.9.to_q.lora_B.weight": torch.ones(4, 2),
        }
        assert "up_blocks.9.to_q of shape (4, 2) x (2, 4), which is not there" in line(two)

    def test_half_a_lora(self, line, tiny_pipeline):
        layer = next(iter(lora(tiny_pipeline, attention)))
        assert "has not both of A and B" in line({f"unet.{layer}.lora_A.weight": torch.ones(2, 16)})

    @pytest.mark.parametrize(
        "name",
        ["lora_unet_conv_in.hada_w1_a", "lora_unet_conv_in.lokr_w1", "unet.conv_in.lora_magnitude_vector",
         "lora_unet_conv_in.dora_scale"],
    )  # fmt: skip
    def test_adapters_of_other_kinds(self, line, name):
        assert f"first {name}; LoRA of linear layers and convolutions are read" in line({name: torch.ones(2)})

    @pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".pth", ".PT"])
    def test_pickles_by_their_ending_before_they_are_opened(self, tmp_path, suffix):
        file = tmp_path / f"esd{suffix}"
        file.write_bytes(b"anything")
        assert "is a pickle, which can run code" in told(lambda: read_eraser_file(file))

    def test_pickles_by_their_content(self, tmp_path):
        torch.save({"w": torch.ones(1)}, tmp_path / "zip.safetensors")
        torch.save({"w": torch.ones(1)}, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
        for name in ("zip", "old"):
            line = told(lambda name=name: read_eraser_file(tmp_path / f"{name}.safetensors"))
            assert "is a pickle" in line and line.endswith(f"{tmp_path}/{name}-converted.safetensors")

    def test_pickles_with_the_command_that_makes_them_readable(self, tiny_pipeline, tmp_path, monkeypatch):
        """ESD's first code keeps a dictionary for each layer; the command's program is run here as it stands."""
        values = esd(tiny_pipeline, tmp_path / "wanted.safetensors")
        nested: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in values.items():
            layer, _, last = name.rpartition(".")
            nested.setdefault(f"unet.{layer}", {})[last] = tensor
        torch.save(nested, tmp_path / "e sd.pt")
        command = shlex.split(told(lambda: read_eraser_file(tmp_path / "e sd.pt")).partition("convert it: ")[2])
        assert command[:2] == ["python", "-c"]
        monkeypatch.setattr(sys, "argv", ["-c", *command[3:]])
        exec(command[2], {})
        found = placed(tiny_pipeline, tmp_path / "e sd.safetensors")["unet"]
        made = load_file(tmp_path / "e sd.safetensors")
        assert found.keys() == values.keys()
        assert all(torch.equal(made[f"unet.{name}"], tensor) for name, tensor in values.items())

    def test_a_truncated_file(self, tiny_pipeline, tmp_path):
        esd(tiny_pipeline, tmp_path / "esd.safetensors")
        whole = (tmp_path / "esd.safetensors").read_bytes()
        (tmp_path / "esd.safetensors").write_bytes(whole[:-7])
        assert "is truncated or damaged" in told(lambda: read_eraser_file(tmp_path / "esd.safetensors"))

    def test_a_file_that_is_not_there(self, tmp_path):
        assert "there is no" in told(lambda: read_eraser_file(tmp_path / "gone"))

    def test_whole_pipelines_and_runs(self, tiny_pipeline, tmp_path):
        assert "is a whole pipeline: name it alone" in told(lambda: read_eraser_file(tiny_pipeline))
        (tmp_path / "run.json").write_text("{}")
        assert "is a run" in told(lambda: read_eraser_file(tmp_path))

    def test_folders_with_nothing_or_too_much(self, tmp_path):
        assert "it holds none" in told(lambda: read_eraser_file(tmp_path))
        (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
        assert "is a pickle" in told(lambda: read_eraser_file(tmp_path))
        for name in ("a", "b"):
            save_file({"conv_in.weight": torch.ones(1)}, tmp_path / f"{name}.safetensors")
        assert "it holds a.safetensors, b.safetensors" in told(lambda: read_eraser_file(tmp_path))
