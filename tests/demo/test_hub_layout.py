"""The embedded pipeline lies as hub models do, so that transformers 4 and 5 read it alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file
from tiny_models import CAPTIONS
from transformers import CLIPTextModel, CLIPTokenizer

from salun_diffusers.demo import architecture
from salun_diffusers.demo.hub_layout import lay_out_as_on_the_hub, pairs
from salun_diffusers.files.pipeline_folder import EMBEDDED

DEMO = EMBEDDED["demo"]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_embedded_files_are_those_of_hub_models() -> None:
    assert names(DEMO / "tokenizer") == ["merges.txt", "tokenizer_config.json", "vocab.json"]
    assert all(name.startswith("text_model.") for name in load_file(DEMO / "text_encoder" / "model.safetensors"))


def test_the_embedded_words_keep_their_ids() -> None:
    """Read off the tokenizer that the weights were trained with: words it knows, letters of others, and a mark."""
    tokenizer = CLIPTokenizer.from_pretrained(DEMO / "tokenizer")
    assert tokenizer("a photo of a circle").input_ids == [601, 320, 547, 514, 320, 585, 602]
    assert tokenizer("Quo's, é 42").input_ids == [601, 586, 334, 6, 338, 267, 127, 358, 275, 273, 602]
    assert (len(tokenizer), tokenizer.model_max_length, tokenizer.pad_token) == (603, 16, "<|endoftext|>")


def test_no_weight_of_the_embedded_text_encoder_is_drawn_at_random() -> None:
    model, found = CLIPTextModel.from_pretrained(DEMO / "text_encoder", output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    stored = load_file(DEMO / "text_encoder" / "model.safetensors")
    loaded = {name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in stored.items():
        assert torch.equal(loaded[name.removeprefix("text_model.")], tensor.float()), name


def test_training_writes_the_files_that_are_embedded(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    training = script("train_demo_model")
    tokenizer = architecture.tokenizer(CAPTIONS)
    text = architecture.text_encoder(tokenizer)
    known = {name: tensor.half() for name, tensor in text.state_dict().items()}
    parts = training.Prediction(text, architecture.denoiser())
    training.write_pipeline(tmp_path, architecture.autoencoder(), parts, tokenizer)
    extra = {"tokenizer/special_tokens_map.json"}  # Of transformers 4; the settings say the same.
    assert set(names(tmp_path)) - extra == set(names(DEMO))
    embedded = load_file(DEMO / "text_encoder" / "model.safetensors")
    written = load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert written.keys() == embedded.keys()
    for name, tensor in known.items():
        assert torch.equal(written["text_model." + name.removeprefix("text_model.")], tensor)
    again = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    texts = [*CAPTIONS, "Unseen words, 12"]
    assert again(texts).input_ids == tokenizer(texts).input_ids


def test_laid_out_twice_is_laid_out_once(tiny_pipeline: Path, copied: Path) -> None:
    lay_out_as_on_the_hub(copied)
    once = {name: (copied / name).read_bytes() for name in names(copied)}
    lay_out_as_on_the_hub(copied)
    assert {name: (copied / name).read_bytes() for name in names(copied)} == once
    before = load_file(tiny_pipeline / "text_encoder" / "model.safetensors")
    after = load_file(copied / "text_encoder" / "model.safetensors")
    assert [name.removeprefix("text_model.") for name in before] == [name.removeprefix("text_model.") for name in after]
    settings = json.loads((copied / "tokenizer" / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == architecture.MAX_TOKENS
    assert not {"backend", "is_local"} & settings.keys()


def test_merges_are_pairs_however_they_are_stored() -> None:
    assert pairs(["a b", ["c", "d</w>"]]) == [("a", "b"), ("c", "d</w>")]
