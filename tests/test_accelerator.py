"""The accelerate engine: what it refuses to compute with."""

from __future__ import annotations

import pytest

from salun_diffusers.accelerator import engine
from salun_diffusers.errors import UserError


def test_compiled_bfloat16_on_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes wrong gradients; each of the two alone is right."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with (
        pytest.raises(UserError, match="wrong gradients on a CPU") as told,
        engine(mixed_precision="bf16", gradient_accumulation_steps=1, report_to=None),
    ):
        pytest.fail("entered")
    assert "\n" not in str(told.value)
    with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
        assert accelerator.mixed_precision == "no"
    with engine(mixed_precision="bf16", gradient_accumulation_steps=1, report_to=None, trains=False) as accelerator:
        assert accelerator.mixed_precision == "bf16"  # what only draws takes no gradients
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    with engine(mixed_precision="bf16", gradient_accumulation_steps=1, report_to=None) as accelerator:
        assert accelerator.mixed_precision == "bf16"
