"""Strength by need: the weakest place on the line from the base to the erased weights that forgets enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from salun_diffusers.accelerator import decided_by_main
from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.sampler import Sampler, sampler_of_base, sampler_of_erased
from salun_diffusers.diffusion.saving import write_erased, write_pipeline
from salun_diffusers.diffusion.start import load_family
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.diffusion.strength_line import Line, line_of
from salun_diffusers.diffusion.strength_prompts import (
    COARSE,
    HALVINGS,
    Asked,
    reported_pictures,
    searched_pictures,
)
from salun_diffusers.diffusion.trainer import read_metrics
from salun_diffusers.errors import UserError, tell
from salun_diffusers.evaluation.detectors import Detector
from salun_diffusers.files.checkpoint import load_state
from salun_diffusers.files.component_files import weight_files
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.kept_checkpoints import checkpoints
from salun_diffusers.files.run_folder import fingerprint
from salun_diffusers.files.stored_weights import write_tensors
from salun_diffusers.files.whole_files import full_disk_is_told
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.reports.measurement import Measurement
from salun_diffusers.reports.strength import Need, StrengthCurve, StrengthPoint, decided

_RECORD = "strength.json"


class Walk:
    """Pictures along a line, and what is found in them."""

    def __init__(
        self,
        run: Run,
        request: Request,
        detector: Detector | None,
        family: Family,
        asked: tuple[Sequence[Asked], Sequence[Asked]],
    ) -> None:
        """Stand at the full strength.

        Args:
            run: Whose processes share the drawing.
            request: What is looked for.
            detector: Looks; the main process has one.
            family: The erased model.
            asked: Pictures of the concept, and of the others.
        """
        self._run, self._request, self._detector = run, request, detector
        self.line = line_of(run, request, family)
        self._base, self._full = (make(family, request, run) for make in (sampler_of_base, sampler_of_erased))
        self._forget, self._retain = asked
        self._shown: list[frozenset[str]] = []

    def point(self, strength: float, steps: int = 0) -> StrengthPoint:
        """Draw and count at one strength of the line; the base first.

        Args:
            strength: s.
            steps: Of the checkpoint at whose end the line is; 0 for the final weights.
        """
        self.line.go_to(strength)
        title = f"strength {strength:g}" + (f", {steps} steps" if steps else "")
        asked = [*self._forget, *self._retain]
        sampler = self._sampler(strength, steps)
        drawn = sampler.pictures([one.prompt for one in asked], [one.seed for one in asked], title)
        return decided_by_main(self._run.accelerator, lambda: self._counted(strength, steps, drawn))

    def _sampler(self, strength: float, steps: int) -> Sampler:
        """Whoever draws there: what the base and the whole change have drawn already is taken up."""
        if strength == 0:
            return self._base
        if strength == 1 and not steps:
            return self._full
        model = fingerprint(full=self._full.pipeline, strength=strength, steps=steps)
        return dataclasses.replace(self._full, pipeline=model)

    def _counted(self, strength: float, steps: int, drawn: Sequence[Image.Image]) -> StrengthPoint:
        if self._detector is None:
            raise ValueError("The main process counts, so it needs the detector, found None.")
        concept, cut = self._request.concept, len(self._forget)
        found = self._detector.labels(drawn[:cut]), self._detector.labels(drawn[cut:])
        wanted = [one.wanted for one in self._retain]
        if not any(wanted):  # No label is known: those that the base shows are to stay.
            if strength == 0:
                self._shown = [labels - concept.target_labels for labels in found[1]]
            wanted = self._shown
        about = {"protocol": self._detector.protocol, "command": self._run.command}
        return counted(concept, strength, found, wanted, steps=steps, about=about)


def counted(
    concept: Concept,
    strength: float,
    found: tuple[Sequence[frozenset[str]], Sequence[frozenset[str]]],
    wanted: Sequence[frozenset[str]],
    *,
    steps: int = 0,
    about: Mapping[str, str],
) -> StrengthPoint:
    """Both rates at one strength, with Wilson's intervals.

    Args:
        concept: Which labels mean it.
        strength: s.
        found: Labels in the pictures of its prompts, and in those of the others.
        wanted: Labels that each of the others should show, all of them; empty ones do not count.
        steps: Of an early checkpoint.
        about: Protocol and command.
    """
    gone = [not labels & concept.target_labels for labels in found[0]]
    kept = [want <= labels for want, labels in zip(wanted, found[1], strict=True) if want]
    name, group = f"{concept.name} is not found for its prompts", "strength"
    return StrengthPoint(
        strength,
        Measurement.rate(name, sum(gone), len(gone), direction="higher", group=group, **about),
        Measurement.rate("others are right", sum(kept), len(kept), direction="higher", group=group, **about)
        if kept
        else None,
        steps,
    )


def weakest(point: Callable[[float], StrengthPoint], need: Need) -> list[StrengthPoint]:
    """Measure a line from the base to its end, and more closely below the first strength that forgets enough.

    Five points, then three halvings of the interval between the last that does not reach the target and the first that
    does: s is known to 1/32 with eight rounds of pictures.

    Args:
        point: Measures at one strength.
        need: What is asked for.

    Returns:
        By strength.
    """
    points = [point(strength) for strength in COARSE]
    for _ in range(HALVINGS):
        first = next((place for place, one in enumerate(points) if place and need.reached(one)), None)
        if first is None:
            break
        points.insert(first, point((points[first - 1].strength + points[first].strength) / 2))
    return points


def settle_strength(run: Run, request: Request, detector: Detector | None) -> StrengthCurve | None:
    """Look for the strength, and leave the pipeline at it; nothing where no target is set.

    The weights at full strength stay beside it in ``work/full.safetensors``, so that another target costs no training.

    Args:
        run: With the erased pipeline.
        request: The need.
        detector: Looks; the main process has one.

    Returns:
        The curve, at whose chosen strength the pipeline is.
    """
    settings = request.settings
    if not settings.searched:
        return None
    record = run.folder.root / _RECORD
    if run.has_strength:
        return decided_by_main(run.accelerator, lambda: StrengthCurve.from_json(read_object(record)))
    with run.stage("strength"):
        return _searched(run, request, detector, Need(settings.target_forget, settings.max_retain_drop))


def _searched(run: Run, request: Request, detector: Detector | None, need: Need) -> StrengthCurve:
    """Walk, choose, and write what was chosen."""
    family = load_family(run.accelerator, request, run.folder.pipeline)
    walk = Walk(run, request, detector, family, searched_pictures(request.concept, request.settings))
    full = dict(walk.line.end)
    points = weakest(walk.point, need)
    if not any(need.met(one, points[0]) for one in points[1:]):
        points += _early(run, walk)
    curve = decided(points, need)
    if run.main:
        tell("note" if need.met(_chosen(curve), points[0]) else "warning", curve.sentence)
    _leave_at(run, request, family, walk.line, curve, full)
    return curve


def _chosen(curve: StrengthCurve) -> StrengthPoint:
    return next(one for one in curve.points if (one.strength, one.steps) == (curve.chosen, curve.steps))


def _early(run: Run, walk: Walk) -> list[StrengthPoint]:
    """The earlier checkpoints of the training at their full strength, as far as they are whole."""
    last, found = len(read_metrics(run.folder.root / "metrics.jsonl")), []
    for folder in checkpoints(run.folder.root):
        steps = _steps(folder)
        if steps < last and (state := _ends(folder)):
            walk.line.turn_to(state)
            found.append(walk.point(1.0, steps))
    return found


def _steps(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _ends(folder: Path) -> dict[str, Tensor]:
    """The weights that a checkpoint would have saved: their averages where there are any; none of a damaged one."""
    try:
        tensors, _ = load_state(folder)
    except UserError:
        return {}
    kind = "average." if any(name.startswith("average.") for name in tensors) else "weight."
    return {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}


def _leave_at(
    run: Run, request: Request, family: Family, line: Line, curve: StrengthCurve, full: Mapping[str, Tensor]
) -> None:
    """Write the pipeline at the chosen strength, unless it is there, and mark the stage."""
    weaker = (curve.chosen, curve.steps) != (1.0, 0)
    if run.main:
        record = run.folder.root / _RECORD
        left = [run.folder.mask, record]
        if weaker:
            line.turn_to(_ends(run.folder.root / f"checkpoint-{curve.steps}") if curve.steps else full)
            line.go_to(curve.chosen)
            kept = run.folder.work / "full.safetensors"
            with full_disk_is_told("the weights at full strength"):
                write_tensors(kept, full)
            run.folder.mark_done("full", run.marks.pipeline, run.folder.mask, kept)
            left += write_pipeline(run, request, family)
        else:
            left += weight_files(run.folder.pipeline / family.denoiser_folder, request.config.variant)
        run.folder.write_json(_RECORD, dataclasses.asdict(curve))
        run.folder.mark_done("strength", run.marks.strength, *left)
    run.accelerator.wait_for_everyone()


def restored(run: Run, request: Request) -> bool:
    """Bring the pipeline of an earlier search back to full strength, where its weights were kept.

    Args:
        run: Where they lie.
        request: How pipelines are written.

    Returns:
        Whether that was possible; else it must be trained.
    """
    if not run.is_done("full", run.marks.pipeline):
        return False
    family = load_family(run.accelerator, request, request.base)
    mask = SaliencyMask.load(run.folder.mask)
    selected = SelectedWeights(dict(family.denoiser.named_parameters()), mask)
    selected.load(load_file(run.folder.work / "full.safetensors"))
    write_erased(run, request, family)
    return True


def reported_curve(run: Run, request: Request, detector: Detector | None, family: Family) -> StrengthCurve | None:
    """The curve on the report's own pictures, whose ends are drawn already; nothing where it is not wanted.

    Args:
        run: Whose processes share the drawing.
        request: How many points.
        detector: Looks; the main process has one.
        family: The erased model at full strength, where it is afterwards.
    """
    count = request.settings.strength_points
    if not count or request.settings.searched:
        return None
    with run.stage("strength"):
        walk = Walk(run, request, detector, family, reported_pictures(request.concept, request.settings))
        return StrengthCurve(tuple(walk.point(place / (count - 1)) for place in range(count)))
