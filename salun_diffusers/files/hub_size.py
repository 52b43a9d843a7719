"""How much a download from the hub would fetch."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from salun_diffusers.files.pipeline_folder import components, model_index

_CONFIGURATIONS = ("unet", "vae", "text_encoder", "text_encoder_2")


def fetch_configurations(name: str, folder: Path, revision: str | None, cache_dir: str | None) -> None:
    """Fetch the configurations of a pipeline's parts into its folder of the cache; what is not there is left out.

    Args:
        name: Hub id.
        folder: Where its model_index.json lies.
        revision: Hub revision.
        cache_dir: The hub's cache.
    """
    from huggingface_hub import hf_hub_download

    for part in _CONFIGURATIONS:
        if part in components(model_index(folder)) and not (folder / part / "config.json").is_file():
            try:
                hf_hub_download(name, f"{part}/config.json", revision=revision, cache_dir=cache_dir)
            except Exception:  # The hub raises a dozen unrelated types; without one the plan says less.
                continue


def download_size(
    name: str, folder: Path, *, revision: str | None, variant: str | None, cache_dir: str | None
) -> int | None:
    """Bytes that are not in the cache yet, as the hub tells them; None where it does not.

    Args:
        name: Hub id.
        folder: Where its model_index.json lies.
        revision: Hub revision.
        variant: Variant of the weight files.
        cache_dir: The hub's cache.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        found = HfApi().model_info(name, revision=revision, files_metadata=True).siblings or []
    except Exception:
        return None
    sizes = {file.rfilename: file.size or 0 for file in found}
    wanted = weights_of(sizes, components(model_index(folder)), variant)
    return sum(
        sizes[file]
        for file in wanted
        if not isinstance(try_to_load_from_cache(name, file, cache_dir=cache_dir, revision=revision), str)
    )


def weights_of(files: dict[str, int], parts: list[str], variant: str | None) -> list[str]:
    """The weight files that diffusers fetches of a repository: of each part those of the variant, or else the plain.

    Args:
        files: All files of the repository.
        parts: Names of the pipeline's parts.
        variant: Such as ``fp16``.
    """
    chosen = []
    for part in parts:
        weights = [
            file for file in files if PurePosixPath(file).parts[:-1] == (part,) and file.endswith(".safetensors")
        ]
        plain = [file for file in weights if "." not in PurePosixPath(file).stem]
        named = [file for file in weights if variant and f".{variant}" in PurePosixPath(file).name]
        chosen += named or plain
    return chosen
