"""Where the base model lies and what kind it is, found out before any heavy import."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.json_files import read_object

CLASS_CONDITIONAL = "ClassConditionalDDPMPipeline"
_DEMO = Path(__file__).parent.parent / "demo"
EMBEDDED = {"demo": _DEMO / "pipeline", "digits": _DEMO / "digits" / "pipeline"}
DENOISERS = ("unet", "transformer")
# The code that a class-conditional folder carries for others: the package's own, whatever a stranger's folder has.
OWN_CODE = Path(__file__).parent.parent / "pipelines" / "class_conditional_ddpm.py"


_LONGEST = 80  # characters of the name of a component, a library or a class


def is_local(name: str) -> bool:
    """Whether a model is at hand: an embedded one or a folder."""
    return name in EMBEDDED or Path(name).expanduser().is_dir()


def public_name(name: str) -> tuple[str, str]:
    """What a reader elsewhere may know the base by, and what kind of name that is."""
    if name in EMBEDDED:
        return name, "embedded"
    path = Path(name).expanduser()
    base, plus, file = name.rpartition("+")
    if plus and not path.exists():  # BASE+FILE: where either lies is nobody's business.
        return f"{public_name(base.strip())[0]} + {Path(file.strip()).name}", "local"
    if not path.exists():  # A pipeline in memory may be known by its class only.
        return name, "hub" if name.count("/") == 1 else "local"
    path = path.resolve()
    kind, *owner_and_name = path.parent.parent.name.split("--")  # Of a snapshot in the hub's cache, which no id has.
    if path.parent.name == "snapshots" and kind == "models" and len(owner_and_name) == 2:
        return "/".join(owner_and_name), "hub"
    return (f"{path.parent.name}/{path.name}" if path.name == "pipeline" else path.name), "local"


def locate(
    name: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | None = None,
    download: bool = True,
) -> Path:
    """The local folder of a pipeline: an embedded one, a folder of the user's, or a download from the hub.

    Args:
        name: ``demo``, ``digits``, a local folder, or a hub id.
        revision: Hub revision.
        variant: Variant of the weight files.
        cache_dir: The hub's cache.
        download: Whether weights are fetched from the hub; otherwise only configurations are.

    Raises:
        UserError: If there is no such model; the message says what was tried.
    """
    folder = EMBEDDED.get(name) or Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise UserError(
            f"A pipeline folder is required, {name} is a file. diffusers makes a folder of a checkpoint in one file: "
            'StableDiffusionPipeline.from_single_file("FILE").save_pretrained("FOLDER").'
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            "A model must be a local pipeline folder, a single .safetensors file, a hub id, `demo` or `digits`; there "
            f"is no folder {name}, nor a file of that name."
        )
    try:
        if not download:
            return _fetch_descriptions(name, revision, cache_dir)
        return _fetch(name, revision=revision, variant=variant, cache_dir=cache_dir)
    except UserError:
        raise
    except Exception as error:  # The hub raises a dozen unrelated types; the user needs one sentence of any.
        raise UserError(
            f"The model {name} is neither a local folder nor could it be had from the hub ({one_line(error, 160)}). "
            "A local folder will do, or `demo` or `digits` for an embedded model."
        ) from error


def _fetch(name: str, **wanted: str | None) -> Path:
    """Download what diffusers would read, pickles aside."""
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(name, use_safetensors=True, **wanted))
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        # A checker that is pickled only is no reason to refuse the rest: a copy leaves it out and says so.
        return Path(DiffusionPipeline.download(name, use_safetensors=True, safety_checker=None, **wanted))


def _fetch_descriptions(name: str, revision: str | None, cache_dir: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def fetch(file: str) -> Path:
        return Path(hf_hub_download(name, file, revision=revision, cache_dir=cache_dir))

    folder = fetch("model_index.json").parent
    fetch(f"{denoiser_folder(model_index(folder), folder)}/config.json")
    with suppress(EntryNotFoundError):
        fetch("scheduler/scheduler_config.json")  # A run's numbers depend on it.
    return folder


def embedded_detector(name: str) -> Path:
    """Folder of the classifier that goes with an embedded model."""
    return EMBEDDED[name].parent / "detector"


def model_index(folder: Path) -> dict[str, object]:
    """The pipeline's `model_index.json`.

    Raises:
        UserError: If there is no such folder, or it is no diffusers pipeline.
    """
    path = folder / "model_index.json"
    if not folder.is_dir():
        raise UserError(f"A pipeline folder is required, there is no folder {folder}.")
    if not path.is_file():
        inner = folder / "pipeline"  # Of a run.
        instead = f" {inner} is one." if (inner / path.name).is_file() else ""
        raise UserError(f"{folder} is not a diffusers pipeline: it has no model_index.json.{instead}")
    index = read_object(path)
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list):
            continue
        # Such a name is a folder, and what is copied goes to a folder of this name.
        if not name.isidentifier() or len(name) > _LONGEST:
            raise UserError(f"{path} must name components by plain words, found {name[:80]!r}.")
        if len(value) != 2 or not all(
            part is None or (isinstance(part, str) and len(part) <= _LONGEST) for part in value
        ):
            raise UserError(f"{path} must give a library and a class for {name!r}, found {str(value)[:160]}.")
    return index


def class_name(index: dict[str, object]) -> str:
    """The pipeline's class; a folder that carries its own code names the file as well."""
    named = index.get("_class_name", "")
    return str(named[-1] if isinstance(named, list) and named else named)


def own_code(folder: Path) -> list[str]:
    """Files of code in a pipeline folder that diffusers would run to load it.

    diffusers from 0.40 on asks for `trust_remote_code` first, 0.35 does not.
    """
    index = model_index(folder)
    # 0.35 looks for a file named after the `custom_pipeline` that was asked for: `None`, where none was.
    files = ["None.py"] if (folder / "None.py").is_file() else []
    named = index.get("_class_name")
    if isinstance(named, list):
        files.append(f"{named[0] if named else ''}.py")
    for component in components(index):
        library = index[component][0]  # type: ignore[index]  # `components` looked that it is a list
        if (folder / component / f"{library}.py").is_file():
            files.append(f"{component}/{library}.py")
    return files


def refuse_own_code(folder: Path) -> None:
    """Refuse a folder whose code diffusers would run.

    Raises:
        UserError: If there is any.
    """
    files = own_code(folder)
    if files:
        raise UserError(
            f"{folder} carries code of its own ({', '.join(files)}), and code of a model is never run here: a folder "
            "of one of diffusers' own classes is required."
        )


def components(index: dict[str, object]) -> list[str]:
    """Names of the component folders that a `model_index.json` lists."""
    return [
        name for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and value and value[0] is not None
    ]  # fmt: skip


def denoiser_folder(index: dict[str, object], folder: Path) -> str:
    """Name of the component that erasing rewrites."""
    for name in DENOISERS:
        if name in components(index):
            return name
    raise UserError(f"{folder} has no denoiser: one of {', '.join(DENOISERS)} is required.")
