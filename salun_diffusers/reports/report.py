"""The record of one erasure: what changed, how sure we are, and the proof that nothing outside the mask moved."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from PIL import Image

from salun_diffusers.reports.measurement import Comparison, Measurement
from salun_diffusers.reports.strength import StrengthCurve
from salun_diffusers.reports.verdict import Verdict

FORMAT = "salun_diffusers evaluation report, version 1"


@dataclass(frozen=True)
class BlockRow:
    """One block of the denoiser: where the mask lies and how much of it moved.

    Args:
        name: Name of the block: ``down_blocks.1``.
        weights: Number of weights in the block.
        density: Share of the block's weights that the mask selects, in [0, 1].
        moved: Share of the block's weights that differ from the base afterwards, in [0, 1].
    """

    name: str
    weights: int
    density: float
    moved: float

    def __post_init__(self) -> None:
        if not (0 <= self.density <= 1 and 0 <= self.moved <= 1):
            raise ValueError(
                f"The shares of block {self.name!r} must lie in [0, 1], got density {self.density}, moved {self.moved}."
            )


@dataclass(frozen=True)
class MaskSummary:
    """The mask in numbers.

    Args:
        density: Share of all weights that the mask selects, in [0, 1].
        selected: Number of selected weights.
        blocks: One row per block, in the order of the network.
    """

    density: float
    selected: int
    blocks: tuple[BlockRow, ...] = ()


@dataclass(frozen=True)
class ReceiptSummary:
    """The mask receipt in numbers: the outcome of comparing every weight of the result with the base.

    Args:
        violations: Number of weights outside the mask that differ from the base.
        outside_mask_identical: Whether every weight outside the mask is bit-identical to the base.
        moved_share: Share of all weights that differ from the base, in [0, 1].
        strength: s of the saved weights θ₀ + s·Δθ; 1 is the whole change.

    Raises:
        ValueError: If the two statements about weights outside the mask contradict each other.
    """

    violations: int
    outside_mask_identical: bool
    moved_share: float
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.outside_mask_identical != (self.violations == 0):
            raise ValueError(
                f"A receipt cannot claim outside_mask_identical={self.outside_mask_identical} with "
                f"{self.violations} violations."
            )


@dataclass(frozen=True)
class EvaluationReport:
    """Everything a reader needs to believe an erasure, or to see why not to.

    Args:
        concept: What was to be forgotten.
        verdict: The outcome in two words; see `decide_verdict`.
        verdict_reason: The outcome in one sentence, with what to try next.
        base: The model that was changed, as the user named it.
        recipe: Name of the recipe, after that of the objective if it is not SalUn's.
        measurements: Numbers about the erased model alone, in reading order.
        comparisons: Numbers before and after, in reading order; the concept first, then everything else.
        mask: The mask in numbers.
        receipt: Proof that the rest is untouched.
        timings: Stage → seconds.
        config: Every setting of the run; JSON values only.
        environment: Package → version.
        command: The command that made the run.
        series: One row per logged step: step, loss, forget_loss, retain_loss, learning_rate.
            Losses that are not finite become `None`.
        created: When, in ISO 8601.
        kind: What was done, above the title: ``Erasure`` or ``Unlearning``.
        load: The Python line that loads the result; empty where none is left.
        strength: Rates against the strength; None where nobody looked.
        collateral: What else was measured before and after; empty where nobody asked.
        collateral_drift: Of all else, how far pictures moved at equal seeds.
    """

    concept: str
    verdict: Verdict
    verdict_reason: str
    base: str
    recipe: str
    mask: MaskSummary
    receipt: ReceiptSummary
    created: str
    measurements: tuple[Measurement, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    series: tuple[Mapping[str, float | None], ...] = ()
    kind: str = "Erasure"
    load: str = ""
    strength: StrengthCurve | None = None
    collateral: tuple[Comparison, ...] = ()
    collateral_drift: tuple[Measurement, ...] = ()

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"verdict must be one of {', '.join(get_args(Verdict))}; got {self.verdict!r}.")
        # A report equals what comes back from its JSON, so tuples in settings become lists here, not on the way.
        object.__setattr__(self, "config", json.loads(json.dumps(dict(self.config), allow_nan=False)))
        rows = tuple({key: _finite(value) for key, value in row.items()} for row in self.series)
        object.__setattr__(self, "series", rows)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object; `from_json` gives an equal report back."""
        return {"format": FORMAT, **json.loads(json.dumps(asdict(self), allow_nan=False))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EvaluationReport:
        """Rebuild a report from `to_json`.

        Raises:
            ValueError: If the object is not a report of this version.
        """
        if data.get("format") != FORMAT:
            raise ValueError(f"A report says {FORMAT!r} under 'format'; this says {data.get('format')!r}.")
        values = {key: value for key, value in data.items() if key != "format"}
        blocks = tuple(BlockRow(**row) for row in values["mask"]["blocks"])
        values["mask"] = MaskSummary(values["mask"]["density"], values["mask"]["selected"], blocks)
        values["receipt"] = ReceiptSummary(**values["receipt"])
        values["measurements"] = tuple(Measurement.from_json(item) for item in values["measurements"])
        values["comparisons"] = tuple(Comparison.from_json(item) for item in values["comparisons"])
        values["collateral"] = tuple(Comparison.from_json(item) for item in values.get("collateral", ()))
        values["collateral_drift"] = tuple(Measurement.from_json(item) for item in values.get("collateral_drift", ()))
        curve = values.get("strength")
        values["strength"] = None if curve is None else StrengthCurve.from_json(curve)
        return cls(**{**values, "series": tuple(values["series"])})


@dataclass(frozen=True)
class GridRow:
    """Pictures of one prompt, at the same seeds before and after.

    Args:
        prompt: The prompt, printed as caption.
        role: Whether the prompt shows what is to be forgotten or what is to stay.
        before: Pictures of the base model, one per seed.
        after: Pictures of the erased model at the same seeds.
        trained_on: Whether the prompt was part of the training; others are marked as unseen.

    Raises:
        ValueError: If the two lists differ in length or are empty.
    """

    prompt: str
    role: Literal["forget", "retain"]
    before: list[Image.Image]
    after: list[Image.Image]
    trained_on: bool

    def __post_init__(self) -> None:
        if not self.before or len(self.before) != len(self.after):
            raise ValueError(
                f"The row {self.prompt!r} needs as many pictures before as after, at least one; "
                f"got {len(self.before)} and {len(self.after)}. Generate both with the same seeds."
            )


@dataclass(frozen=True)
class ReportImages:
    """The pictures of a report.

    Args:
        rows: One row per prompt; forget rows are shown first.
        obscure_forget: Embed pictures of forget prompts only as a coarse blur. Explicit pixels then never reach the
            file, so the report can be passed on.
    """

    rows: tuple[GridRow, ...] = ()
    obscure_forget: bool = False


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None
