"""A damaged checkpoint: passed over for the newest that is whole, or refused where the user named it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from salun_diffusers.errors import UserError
from salun_diffusers.files.checkpoint import load_state, save_state
from salun_diffusers.files.kept_checkpoints import latest_checkpoint, named_checkpoint, whole_checkpoint


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


DAMAGES = {
    "a bit of the tensors": lambda folder: flip(folder / "state.safetensors"),
    "tensors cut": lambda folder: cut(folder / "state.safetensors"),
    "no tensors": lambda folder: (folder / "state.safetensors").unlink(),
    "values cut": lambda folder: cut(folder / "state.json"),
    "other values": lambda folder: (folder / "state.json").write_text('{"step": 9}'),
    "no values": lambda folder: (folder / "state.json").unlink(),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (2, 9, 10):
        save_state(tmp_path / f"checkpoint-{step}", {"w": torch.full((4,), float(step))}, {"step": step})
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
class TestDamaged:
    def test_the_newest_whole_one_is_found(self, run, damage):
        assert whole_checkpoint(run) == (run / "checkpoint-10", {"step": 10})
        damage(run / "checkpoint-10")
        assert latest_checkpoint(run) == run / "checkpoint-10"
        assert whole_checkpoint(run) == (run / "checkpoint-9", {"step": 9})
        assert torch.equal(load_state(run / "checkpoint-9")[0]["w"], torch.full((4,), 9.0))
        damage(run / "checkpoint-9")
        damage(run / "checkpoint-2")
        assert whole_checkpoint(run) is None

    def test_a_named_one_is_refused_and_an_older_whole_one_named(self, run, damage):
        damage(run / "checkpoint-9")
        words = r"--resume_from_checkpoint: .*checkpoint-9.*"
        with pytest.raises(UserError, match=words) as told:
            named_checkpoint(run, "checkpoint-9")
        assert "\n" not in str(told.value)
        if any((run / "checkpoint-9").glob("*.safetensors")):
            assert str(told.value).endswith("; checkpoint-2 before it is whole.")
            damage(run / "checkpoint-2")
            with pytest.raises(UserError, match="no older one is whole"):
                named_checkpoint(run, "checkpoint-9")
        assert named_checkpoint(run, "checkpoint-10") == run / "checkpoint-10"
