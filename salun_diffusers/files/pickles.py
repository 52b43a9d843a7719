"""Files that can run code when they are opened: told apart here, never opened, and answered with what converts them."""

from __future__ import annotations

import shlex
from pathlib import Path

from salun_diffusers.errors import UserError

_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""Of torch's files, which are zip archives around a pickle, and of bare pickles."""
# Some keep a dictionary for each layer; `weights_only` lets no code run.
_CODE = (
    "import sys, torch; from safetensors.torch import save_file; "
    "f = lambda d, p='': {n: t for k, v in d.items() for n, t in "
    "(f(v, f'{p}{k}.') if isinstance(v, dict) else {f'{p}{k}': v}).items()}; "
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "save_file({k: v.clone().contiguous() for k, v in f(d.get('state_dict', d)).items() if torch.is_tensor(v)}, "
    "sys.argv[2])"
)


def refuse_pickle(file: Path) -> None:
    """Refuse a file that is a pickle by its ending or by its first bytes.

    Raises:
        UserError: With the command that converts it.
    """
    ending = file.suffix.lower() in _SUFFIXES
    if not ending:
        with file.open("rb") as stream:
            if not stream.read(4).startswith(_BEGINNINGS):
                return
    whole = file.with_suffix(".safetensors") if ending else file.with_name(f"{file.stem}-converted.safetensors")
    raise UserError(
        f"{file} is a pickle, which can run code when it is opened, and none is opened here; convert it: "
        f'python -c "{_CODE}" {shlex.quote(str(file))} {shlex.quote(str(whole))}'
    )
