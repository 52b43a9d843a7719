"""A pipeline as one checkpoint: stock diffusers draws the same with it; of a base's file only what moved differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_files import write_single_file
from tiny_models import build_sd2, build_sdxl
from torch import Tensor

from salun_diffusers.__main__ import main as salun
from salun_diffusers.files.loading import dtype_argument
from salun_diffusers.files.single_file import find_model
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.patch import patch_folder

UNET = "unet/diffusion_pytorch_model.safetensors"
KINDS = {"1.x": StableDiffusionPipeline, "2.x": StableDiffusionPipeline, "xl": StableDiffusionXLPipeline}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folders(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipelines of the three kinds."""
    place = tmp_path_factory.mktemp("kinds")
    return {"1.x": tiny_pipeline, "2.x": build_sd2(place / "sd2"), "xl": build_sdxl(place / "xl")}


@pytest.fixture(scope="module")
def run(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves: a pipeline with two weights moved, and the mask that lets them move."""
    root = tmp_path_factory.mktemp("runs") / "run"
    root.mkdir()
    (root / "run.json").write_text("{}")

    def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = {name: tensor.clone() for name, tensor in tensors.items()}
        moved["conv_in.bias"][1] += 1
        moved["up_blocks.1.resnets.0.conv1.weight"][0, 0, 0, 0] -= 1
        return moved

    patch_folder(tiny_pipeline, root / "pipeline", move)
    before, after = load_file(tiny_pipeline / UNET), load_file(root / "pipeline" / UNET)
    mask = SaliencyMask.from_bools({name: before[name] != after[name] for name in before})
    mask.save(root / "mask.safetensors")
    return root


@pytest.fixture(scope="module")
def plain(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of that run as a single file."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline, local_files_only=True)
    return write_single_file(pipe, tmp_path_factory.mktemp("files") / "plain.safetensors")


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Path]:
    """Export, and give the file."""

    def make(source: Path, *words: str) -> Path:
        target = tmp_path / f"{len([*tmp_path.iterdir()])}.safetensors"
        assert salun(["export", "single-file", str(source), str(target), *words]) == 0
        return target

    return make


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Export, expect one line and no file."""

    def attempt(content: str, source: Path | str, *words: str, target: str = "new.safetensors") -> None:
        before = {path.name for path in tmp_path.iterdir()}
        capsys.readouterr()  # Bars of what was loaded before.
        assert salun(["export", "single-file", str(source), str(tmp_path / target), *words]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("error: ") and said.err.count("\n") == 1 and content in said.err, said.err
        assert said.out == "" and {path.name for path in tmp_path.iterdir()} == before

    return attempt


def drawn(pipe: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    made: Tensor = pipe("a star", num_inference_steps=2, generator=generator, output_type="pt").images
    return made


@pytest.mark.filterwarnings("ignore:`upcast_vae`:FutureWarning")  # XL's own, of a VAE in fp16.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
class TestStockDiffusers:
    def test_draws_the_same(self, folders, exported, kind, dtype) -> None:
        """`from_single_file` with a local configuration, in the data type of the file."""
        keywords = {dtype_argument(): DTYPES[dtype], "local_files_only": True}
        file = exported(folders[kind], "--dtype", dtype)
        with safe_open(file, framework="pt") as opened:
            assert {opened.get_tensor(name).dtype for name in opened.keys()} <= {DTYPES[dtype], torch.float32}  # noqa: SIM118
            assert opened.metadata() == {"format": "pt"}
        found = KINDS[kind].from_single_file(str(file), config=str(folders[kind]), **keywords)
        wanted = KINDS[kind].from_pretrained(folders[kind], **keywords)
        for name, part in wanted.components.items():
            if isinstance(part, torch.nn.Module):
                state = getattr(found, name).state_dict()
                for key, tensor in part.state_dict().items():
                    assert torch.equal(state[key], tensor), f"{name}.{key}"
        pictures = drawn(found), drawn(wanted)
        assert torch.equal(*pictures) and pictures[0].isfinite().all()


class TestLayout:
    @pytest.mark.parametrize("kind", ["1.x", "xl"])
    def test_is_what_another_writer_makes(self, folders, exported, kind, tmp_path) -> None:
        pipe = KINDS[kind].from_pretrained(folders[kind], local_files_only=True)
        wanted = load_file(write_single_file(pipe, tmp_path / "other.safetensors"))
        found = load_file(exported(folders[kind]))
        assert found.keys() == {name for name in wanted if not name.endswith("position_ids")}
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())

    def test_of_2x_has_the_text_encoder_of_open_clip(self, folders, exported) -> None:
        found = load_file(exported(folders["2.x"]))
        place = "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"
        text = load_file(folders["2.x"] / "text_encoder" / "model.safetensors")
        three = [next(t for n, t in text.items() if n.endswith(f"layers.1.self_attn.{x}_proj.weight")) for x in "qkv"]
        assert torch.equal(found[place], torch.cat(three))
        assert not [name for name in found if name.startswith("cond_stage_model.transformer.")]

    def test_of_a_snapshot_of_the_hub(self, sd14, exported) -> None:
        """Links, a variant of fp16, a checker that is a pickle: of the variant each tensor as it is stored."""
        file = exported(sd14, "--variant", "fp16")
        found = load_file(file)
        assert {tensor.dtype for tensor in found.values()} == {torch.float16}
        assert not [name for name in found if "safety" in name]
        # Of a run its record says the variant.
        run = file.parent / "run"
        shutil.copytree(sd14, run / "pipeline")
        (run / "pipeline" / UNET).unlink()
        (run / "run.json").write_text("{}")
        (run / "config.json").write_text('{"variant": "fp16"}')
        assert exported(run).read_bytes() == file.read_bytes() == exported(run / "pipeline").read_bytes()

    def test_of_a_run_of_a_variant(self, sd14, exported, tmp_path) -> None:
        """Its record says which."""
        run = tmp_path / "run"
        shutil.copytree(sd14, run / "pipeline")
        (run / "run.json").write_text("{}")
        (run / "config.json").write_text('{"variant": "fp16"}')
        whole = exported(sd14, "--variant", "fp16").read_bytes()
        assert exported(run).read_bytes() == exported(run / "pipeline").read_bytes() == whole

    def test_an_older_folder(self, folders, exported, tmp_path) -> None:
        """Its VAE calls the attention's tensors by other names, its text encoder keeps the numbers of positions."""
        old = Path(shutil.copytree(folders["1.x"], tmp_path / "old"))
        vae, text = (
            old / part for part in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
        )
        words = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
        tensors = {}
        for name, tensor in load_file(vae).items():
            for new, former in words.items():
                name = name.replace(new, former)
            tensors[name] = tensor.clone()
        save_file(tensors, vae)
        positions = {"text_model.embeddings.position_ids": torch.arange(16)[None]}
        save_file({name: tensor.clone() for name, tensor in load_file(text).items()} | positions, text)
        assert exported(old).read_bytes() == exported(folders["1.x"]).read_bytes()

    def test_a_folder_of_parts(self, folders, exported, copied) -> None:
        whole = load_file(copied / UNET)
        (copied / UNET).unlink()
        parts = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": sorted(whole)[i::2] for i in range(2)}
        for part, names in parts.items():
            save_file({name: whole[name].clone() for name in names}, copied / "unet" / part)
        listing = {"metadata": {}, "weight_map": {name: part for part, names in parts.items() for name in names}}
        (copied / f"{UNET}.index.json").write_text(json.dumps(listing))
        assert exported(copied).read_bytes() == exported(folders["1.x"]).read_bytes()

    def test_a_v_model_of_xl_says_so_and_is_read_back(self, folders, exported, tmp_path, capsys) -> None:
        scheduler = tmp_path / "v" / "scheduler" / "scheduler_config.json"
        shutil.copytree(folders["xl"], tmp_path / "v")
        told = json.loads(scheduler.read_text()) | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
        scheduler.write_text(json.dumps(told))
        file = exported(tmp_path / "v", "--dtype", "fp16")
        assert {"v_pred", "ztsnr"} <= load_file(file).keys()
        found = find_model(str(file), single_file_config=str(folders["xl"]))
        assert (
            json.loads((found / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "v_prediction"
        )
        assert capsys.readouterr().err.count("cannot say") == 0
        exported(folders["2.x"])
        assert "predicts v_prediction, which a checkpoint of this layout cannot say" in capsys.readouterr().err

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_project_takes_it_back(self, folders, exported, kind) -> None:
        """Every tensor of every component, bit for bit."""
        found = find_model(str(exported(folders[kind])), single_file_config=str(folders[kind]))
        for weights in folders[kind].rglob("*.safetensors"):
            ours, theirs = load_file(found / weights.relative_to(folders[kind])), load_file(weights)
            plain = {name.removeprefix("text_model."): tensor for name, tensor in ours.items()}
            assert plain.keys() == {name.removeprefix("text_model.") for name in theirs}
            assert all(torch.equal(plain[name.removeprefix("text_model.")], t) for name, t in theirs.items())

    def test_of_the_demo(self, exported) -> None:
        from salun_diffusers.files.pipeline_folder import EMBEDDED

        file = exported(Path("demo"))
        found = StableDiffusionPipeline.from_single_file(str(file), config=str(EMBEDDED["demo"]), local_files_only=True)
        wanted = StableDiffusionPipeline.from_pretrained(EMBEDDED["demo"], local_files_only=True)
        assert torch.equal(drawn(found), drawn(wanted))


class TestBase:
    @pytest.fixture
    def base(self, plain: Path, tmp_path: Path) -> Callable[..., Path]:
        """The base's single file, as somebody else wrote it: with tensors and metadata of their own."""

        def make(dtype: torch.dtype = torch.float32, **more: Tensor) -> Path:
            tensors = {name: tensor.to(dtype) for name, tensor in load_file(plain).items()}
            tensors |= {"alphas_cumprod": torch.arange(10.0), "cond_stage_model.logit_scale": torch.tensor(4.6), **more}
            save_file(tensors, tmp_path / "base.safetensors", metadata={"modelspec.title": "mine", "format": "pt"})
            return tmp_path / "base.safetensors"

        return make

    @pytest.mark.parametrize("dtype", DTYPES.values())
    def test_only_what_moved_differs(self, run, base, exported, dtype, capsys) -> None:
        """Two weights of the bytes of the file, whether it is of the folder's data type or of a shorter one."""
        file = base(dtype)
        made = exported(run, "--base", str(file))
        assert "2 weights in 2 tensors differ" in capsys.readouterr().out
        before, after = file.read_bytes(), made.read_bytes()
        assert len(before) == len(after)
        places = [place for place, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
        size = dtype.itemsize
        assert len({place // size for place in places}) == 2
        tensors = load_file(made)
        erased = load_file(run / "pipeline" / UNET)
        assert torch.equal(tensors["model.diffusion_model.input_blocks.0.0.bias"], erased["conv_in.bias"].to(dtype))

    def test_and_diffusers_draws_what_the_run_draws(self, run, base, exported) -> None:
        made = exported(run / "pipeline", "--base", str(base()))
        found = StableDiffusionPipeline.from_single_file(
            str(made), config=str(run / "pipeline"), local_files_only=True, **{dtype_argument(): torch.float32}
        )
        assert torch.equal(drawn(found), drawn(StableDiffusionPipeline.from_pretrained(run / "pipeline")))

    def test_nothing_moved(self, tiny_pipeline, base, exported) -> None:
        file = base()  # Written once: safetensors orders metadata anew at every writing.
        assert exported(tiny_pipeline, "--base", str(file)).read_bytes() == file.read_bytes()

    def test_another_base(self, run, base, refused, tmp_path) -> None:
        file = base()
        tensors = load_file(file)
        for name, words in (
            ("model.diffusion_model.out.2.bias", "differ that the run's mask does not let move"),
            ("first_stage_model.decoder.conv_out.bias", "are others, and erasing changes the U-Net alone"),
            ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "are others, and erasing changes"),
        ):
            save_file({**tensors, name: tensors[name] + 1}, tmp_path / "base.safetensors")
            refused(words, run, "--base", str(file))

    def test_a_base_of_more_digits(self, folders, base, refused, tmp_path) -> None:
        pipe = StableDiffusionPipeline.from_pretrained(folders["1.x"], local_files_only=True)
        pipe.to(torch.float16).save_pretrained(tmp_path / "half")
        refused("in the pipeline's data type or a shorter one", tmp_path / "half", "--base", str(base()))

    def test_a_base_that_keeps_a_copy(self, run, base, refused) -> None:
        copies = {f"model_ema.diffusion_model{i}": torch.ones(1) for i in range(3)}
        refused("holds a second copy of the U-Net (model_ema.", run, "--base", str(base(**copies)))

    def test_a_base_of_another_shape(self, run, folders, base, refused, tmp_path) -> None:
        file = base(**{"model.diffusion_model.more.weight": torch.ones(1)})
        refused("has no model.diffusion_model.more.weight", run, "--base", str(file))
        xl = StableDiffusionXLPipeline.from_pretrained(folders["xl"], local_files_only=True)
        write_single_file(xl, tmp_path / "xl.safetensors")
        refused("is not the file of this pipeline's base: ", run, "--base", str(tmp_path / "xl.safetensors"))

    @pytest.mark.parametrize("at", [5, 3000, -3])
    def test_a_truncated_base(self, run, base, refused, at) -> None:
        file = base()
        file.write_bytes(file.read_bytes()[:at])
        refused("is ", run, "--base", str(file))

    def test_what_is_no_base(self, run, base, refused, tmp_path) -> None:
        refused("there is no file", run, "--base", str(tmp_path / "none.safetensors"))
        refused("--dtype fp16 does not go with --base", run, "--base", str(base()), "--dtype", "fp16")
        torch.save({}, tmp_path / "old.ckpt")
        refused("is a pickle", run, "--base", str(tmp_path / "old.ckpt"))


class TestRefused:
    def test_what_is_no_pipeline(self, tiny_ddpm, refused, tmp_path) -> None:
        (tmp_path / "empty").mkdir()
        refused("is not a diffusers pipeline", tmp_path / "empty")
        refused("there is no folder", str(tmp_path / "nowhere"))
        (tmp_path / "one.safetensors").touch()
        refused("is a file", tmp_path / "one.safetensors")
        refused("is ClassConditionalDDPMPipeline", tiny_ddpm)

    def test_places(self, tiny_pipeline, copied, refused, tmp_path) -> None:
        (tmp_path / "there.safetensors").touch()
        refused("exists already", tiny_pipeline, target="there.safetensors")
        refused("must be a .safetensors file", tiny_pipeline, target="new.ckpt")
        refused("must lie outside of the base's components", copied, target="copied/unet/new.safetensors")

    def test_other_families_and_parts(self, copied, refused) -> None:
        file = copied / "model_index.json"
        whole = json.loads(file.read_text())
        file.write_text(json.dumps(whole | {"_class_name": "StableDiffusion3Pipeline"}))
        refused("is StableDiffusion3Pipeline", copied)
        file.write_text(json.dumps({name: value for name, value in whole.items() if name != "vae"}))
        refused("has no vae", copied)

    @pytest.mark.parametrize(
        ("part", "change", "words"),
        [
            ("unet", {"_class_name": "UNet3DConditionModel"}, "must be a UNet2DConditionModel"),
            ("unet", {"down_block_types": ["SimpleCrossAttnDownBlock2D"]}, "has blocks of type SimpleCross"),
            ("unet", {"layers_per_block": [1, 1]}, "as many layers in every block"),
            ("text_encoder", {"hidden_act": "gelu", "num_hidden_layers": 24}, "has 23 layers"),
        ],
    )
    def test_other_networks(self, copied, refused, part, change, words) -> None:
        file = copied / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        refused(words, copied)

    def test_tensors_without_a_place(self, copied, refused) -> None:
        tensors = load_file(copied / UNET)
        save_file({**tensors, "encoder_hid_proj.weight": torch.ones(1)}, copied / UNET)
        refused("has a tensor encoder_hid_proj.weight, which the original layout has no place for", copied)
        save_file(
            {name: t.to(torch.int8) if name == "conv_in.bias" else t for name, t in tensors.items()}, copied / UNET
        )
        refused("as I8; weights as", copied)

    def test_weights_beyond_half_precision(self, copied, refused) -> None:
        tensors = load_file(copied / UNET)
        save_file({**tensors, "conv_in.bias": tensors["conv_in.bias"] + 1e6}, copied / UNET)
        refused("beyond the range of float16; --dtype fp32 keeps them", copied, "--dtype", "fp16")
