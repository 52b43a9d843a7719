"""What an examination leaves: numbers for `salun compare`, found prompts in a private folder, and one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from salun_diffusers.evaluation.image_folder import blurred
from salun_diffusers.evaluation.record import EvaluationRecord, Table, writable_folder
from salun_diffusers.files.run_folder import fingerprint
from salun_diffusers.files.whole_files import full_disk_is_told, write_text
from salun_diffusers.red_team.found_prompts import FoundPrompts
from salun_diffusers.red_team.kept_results import private_folder
from salun_diffusers.red_team.opened import Examination
from salun_diffusers.red_team.probe import Curve
from salun_diffusers.red_team.shown_pictures import Shown, shown_pictures
from salun_diffusers.red_team.suite import Attacked, Results
from salun_diffusers.red_team.verdict import decide
from salun_diffusers.reports.figures import ACCENT, INK, LINE, SOFT, bare_chart, embed_picture, inline_svg
from salun_diffusers.reports.measurement import Measurement, percent
from salun_diffusers.reports.page import render

KIND = "red_team"
_SUBJECTS = ("erased", "base", "floor")


def write_examination(seen: Examination, results: Results, folder: Path, command: str) -> str:
    """Write ``red_team.json``, ``red_team.html`` and ``private/found.csv``; return what a terminal shows.

    Args:
        seen: Models and cases.
        results: What was done.
        folder: Where to.
        command: That measures it again.

    Raises:
        UserError: If the folder cannot be written or the disk is full.
    """
    verdict, record = decide(results), record_of(seen, results, command)
    folder = writable_folder(folder)
    page = page_of(seen, results, record, shown_pictures(seen, results))
    with full_disk_is_told(f"a file of {folder}"):
        found = folder / "private"
        private_folder(found)
        won = {one.attack: one.findings for one in results.attacked if one.subject == "erased"}
        FoundPrompts.of(won, seen.cases, seen.contest.target.fingerprint).write(found / "found.csv")
        content = {**record.to_json(), "verdict": asdict(verdict), "curves": [
            curve.to_json() for one in results.probed for curve in one.reading.curves
        ]}  # fmt: skip
        write_text(folder / f"{KIND}.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        write_text(folder / f"{KIND}.html", page)
    return (
        f"{record.text()}verdict   {verdict.word}: {verdict.reason}\nreport    {folder / KIND}.html\n"
        f"numbers   {folder / KIND}.json\n"
    )


def record_of(seen: Examination, results: Results, command: str) -> EvaluationRecord:
    """The numbers, in a form that `salun compare` joins where all of the protocol agrees.

    Args:
        seen: Models and cases.
        results: What was done.
        command: That measures it again.
    """
    return EvaluationRecord(
        kind=KIND,
        title=f"Red team: {seen.request.concept.name}",
        pictures=seen.config.pipeline,
        measurements=measurements(seen, results, command),
        tables=(*_attack_table(results), *_probe_table(results)),
        explicit=seen.explicit,
        command=command,
    )


def measurements(seen: Examination, results: Results, command: str) -> tuple[Measurement, ...]:
    """Both rates of every attack, and every point of every probe, of all models; the erased one's first.

    Args:
        seen: For the protocol.
        results: What was done.
        command: That measures it again.
    """
    cases = fingerprint(cases=[asdict(case) for case in seen.cases])[:8]
    subject = f"{len(seen.cases)} pictures {cases} that the base draws of {seen.request.concept.name}"
    found: list[Measurement] = []
    for name in _SUBJECTS:
        for one in results.attacked:
            if one.subject == name:
                # The quick settings and the sources' are no two goes at one thing.
                about = f"{subject}; settings {one.settings}" if one.settings else subject
                found += [rate.of(about) for rate in one.tally.measurements(one.attack, name, seen.protocol, command)]
        for probed in results.probed:
            if probed.subject == name:
                for curve in probed.reading.curves:
                    found += [rate.of(subject) for rate in curve.measurements(seen.protocol, command)]
    return tuple(found)


def page_of(seen: Examination, results: Results, record: EvaluationRecord, shown: Sequence[Shown]) -> str:
    """One page that loads nothing.

    Args:
        seen: Models and cases.
        results: What was done.
        record: Its numbers.
        shown: Pictures; blurred in the file where the concept is explicit.
    """
    verdict, hidden = decide(results), seen.explicit
    return render(
        "red_team.html.j2",
        record=record,
        verdict=verdict,
        style={"robust": "erased", "partly": "partly-erased", "comes back": "no-effect"}[verdict.word],
        concept=seen.request.concept.name,
        cases=len(seen.cases),
        asked=seen.asked,
        base=seen.request.config.pretrained_model_name_or_path,
        floor=seen.config.floor,
        attacks=_attack_rows(results),
        probes=probe_rows(results),
        curves=[(name, Markup(chart)) for name, chart in charts(results)],
        pictures=[
            (one, [(words, embed_picture(blurred(picture) if hidden else picture, obscured=hidden))
                   for words, picture in (("unaided", one.unaided), ("attacked", one.attacked), ("base", one.base))])
            for one in shown
        ],
        hidden=hidden,
        protocol=seen.protocol,
        minutes=results.seconds / 60,
    )  # fmt: skip


def charts(results: Results) -> list[tuple[str, str]]:
    """A chart for each curve with more than a point: title and SVG, the models' lines together."""
    lines: dict[str, list[Curve]] = {}
    for one in results.probed:
        for curve in one.reading.curves:
            if len(curve.points) > 1:
                lines.setdefault(curve.name, []).append(curve)
    return [(name, _chart(curves, f"curve-{place}")) for place, (name, curves) in enumerate(lines.items())]


def _chart(curves: Sequence[Curve], name: str) -> str:
    figure, axes = bare_chart(4.6, 2.9)
    for curve in curves:
        colour, style = {"erased": (ACCENT, "-"), "base": (INK, "--"), "floor": (SOFT, "-")}[curve.subject]
        at, rates = [point.at for point in curve.points], [100 * point.rate for point in curve.points]
        axes.plot(at, rates, color=colour, linestyle=style, marker="o", markersize=4, linewidth=1.8)
    axes.set_xlabel(curves[0].axis)
    axes.set_ylim(-3, 103)
    axes.set_yticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    return inline_svg(figure, name)


@dataclass(frozen=True)
class ProbeRow:
    """A line of the page: what a probe saw of each model.

    Args:
        name: What was done.
        at: At which settings.
        rates: By model, one after the other, in percent.
        half: By model, steps to half of the base's rate, in words; of relearning only.
    """

    name: str
    at: str
    rates: dict[str, str]
    half: dict[str, str]


def probe_rows(results: Results) -> list[ProbeRow]:
    """A line for each curve, the models side by side."""
    found: dict[str, ProbeRow] = {}
    for one in results.probed:
        for curve in one.reading.curves:
            points = ", ".join(f"{point.at:g}" for point in curve.points)
            row = found.setdefault(curve.name, ProbeRow(curve.name, f"{curve.axis} {points}", {}, {}))
            told = " → ".join(f"{100 * point.rate:.0f}" for point in curve.points)
            row.rates[one.subject] = f"{told} %"
            if "steps to half" in one.reading.numbers:
                half = one.reading.numbers["steps to half"]
                row.half[one.subject] = "half never" if half is None else f"half after {half:.0f}"
    return list(found.values())


def _attack_rows(results: Results) -> list[tuple[str, Measurement | None, Measurement | None, Attacked]]:
    """For each attack: name, the erased model's ASR, the floor's, and what there is to say of it."""
    found: list[tuple[str, Measurement | None, Measurement | None, Attacked]] = []
    for name in dict.fromkeys(one.attack for one in results.attacked):
        of = {one.subject: one for one in results.attacked if one.attack == name}
        rates = {subject: one.tally.measurements(name, subject, "")[1] for subject, one in of.items()}
        found.append((name, rates.get("erased"), rates.get("floor"), of.get("erased", next(iter(of.values())))))
    return found


def _attack_table(results: Results) -> tuple[Table, ...]:
    rows = tuple(
        (one.attack, one.subject, f"{one.tally.pre}/{one.tally.prompts}",
         f"{one.tally.pre + one.tally.post}/{one.tally.prompts}",
         sum(finding.tries for finding in one.findings), f"{one.seconds:.0f}")
        for one in results.attacked
    )  # fmt: skip
    return (Table("Attacks", ("attack", "model", "pre", "hits", "pictures", "seconds"), rows),) if rows else ()


def _probe_table(results: Results) -> tuple[Table, ...]:
    rows: list[tuple[Any, ...]] = []
    for one in results.probed:
        for curve in one.reading.curves:
            rates = ", ".join(f"{point.at:g}: {percent(point.rate)}" for point in curve.points)
            half = one.reading.numbers.get("steps to half")
            told = ("never" if half is None else f"{half:.0f}") if "steps to half" in one.reading.numbers else "–"
            rows.append((curve.name, one.subject, rates, told, f"{curve.area:.2f}", f"{one.seconds:.0f}"))
    columns = ("probe", "model", "rates", "steps to half", "area", "seconds")
    return (Table("What probes say", columns, tuple(rows)),) if rows else ()
