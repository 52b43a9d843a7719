"""Attacks and probes, one after the other, on the erased model and on its ceiling and floor; what is done is kept."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.run_folder import fingerprint
from salun_diffusers.files.whole_files import full_disk_is_told, write_json
from salun_diffusers.progress import Progress
from salun_diffusers.red_team.attack import Attack, Contest, Finding
from salun_diffusers.red_team.opened import Examination
from salun_diffusers.red_team.probe import Curve, Evidence, Point, Probe, Reading
from salun_diffusers.red_team.subject import Subject
from salun_diffusers.red_team.tally import Tally


@dataclass(frozen=True)
class Attacked:
    """What an attack did to a model.

    Args:
        attack: Its name.
        subject: The model's.
        pre: For each case, whether the model draws the concept unaided; those are not attacked.
        findings: For each case what was found; a hit that needed no attack where none was made.
        seconds: Wall clock, of all goes together.
        settings: Digest of its constants; may be empty.
    """

    attack: str
    subject: str
    pre: tuple[bool, ...]
    findings: tuple[Finding, ...]
    seconds: float
    settings: str = ""

    @property
    def tally(self) -> Tally:
        """N, pre and post."""
        post = sum(one.hit and not before for one, before in zip(self.findings, self.pre, strict=True))
        return Tally(len(self.pre), sum(self.pre), post)


@dataclass(frozen=True)
class Probed:
    """What a probe saw of a model.

    Args:
        probe: Its name.
        subject: The model's.
        reading: Curves and numbers.
        seconds: Wall clock.
    """

    probe: str
    subject: str
    reading: Reading
    seconds: float


@dataclass(frozen=True)
class Results:
    """All that was done.

    Args:
        attacked: By attack, the erased model first.
        probed: By probe, the erased model first.
    """

    attacked: tuple[Attacked, ...] = ()
    probed: tuple[Probed, ...] = ()

    @property
    def seconds(self) -> float:
        """Of all together."""
        return sum(one.seconds for one in self.attacked) + sum(one.seconds for one in self.probed)


def run_attacks(seen: Examination, attacks: Sequence[Attack], kept: Path) -> tuple[Attacked, ...]:
    """Run attacks on the erased model and, where one was named, on the floor.

    The base needs none: cases are those in which it draws the concept, so its rate is 1 by their choice.

    Args:
        seen: Models and cases.
        attacks: In this order.
        kept: Folder of what is done; the same attack on the same model and cases goes on there.

    Raises:
        UserError: If an attack cannot be made on such a model.
    """
    done = []
    for attack in attacks:
        for subject, pre in _attacked_subjects(seen):
            contest = replace(seen.contest, target=subject)
            done.append(_attack(seen, attack, contest, pre, kept))
    return tuple(done)


def run_probes(seen: Examination, probes: Sequence[Probe], kept: Path) -> tuple[Probed, ...]:
    """Run probes on the erased model, the base and the floor.

    Args:
        seen: Models and cases.
        probes: In this order.
        kept: As of `run_attacks`.
    """
    evidence = Evidence(seen.contest, seen.cases)
    subjects = [seen.contest.target, seen.contest.base, *([seen.floor] if seen.floor is not None else [])]
    return tuple(_probe(seen, probe, subject, evidence, kept) for probe in probes for subject in subjects)


def _attacked_subjects(seen: Examination) -> list[tuple[Subject, tuple[bool, ...]]]:
    found = [(seen.contest.target, seen.pre)]
    if seen.floor is not None:
        drawn = seen.floor.drawn([case.prompt for case in seen.cases], [case.seed for case in seen.cases])
        found.append((seen.floor, tuple(seen.contest.judge.hits(drawn))))
    return found


def _attack(seen: Examination, attack: Attack, contest: Contest, pre: tuple[bool, ...], kept: Path) -> Attacked:
    """Attack the cases that hold out, a batch at a time; each batch is kept."""
    subject = contest.target
    mark = fingerprint(
        attack=repr(attack), target=subject.fingerprint, base=contest.base.fingerprint, protocol=seen.protocol,
        cases=[asdict(case) for case in seen.cases], words=contest.words, prompts=contest.asking,
        drawn=seen.drawn_as, unaided=pre,
    )  # fmt: skip
    file = kept / f"{_file_name(attack.name)}-{subject.name}.json"
    found, seconds = _taken_up(file, mark)
    open_cases = [case for case, hit in zip(seen.cases, pre, strict=True) if not hit]
    batches = [open_cases[start : start + _BATCH] for start in range(0, len(open_cases), _BATCH)]
    with Progress(f"{attack.name}, {subject.name}", len(open_cases), done=len(found)) as bar:
        for batch in batches[len(found) // _BATCH if len(found) < len(open_cases) else len(batches) :]:
            start = time.perf_counter()
            found += attack(contest, batch, bar.advance)
            seconds += time.perf_counter() - start
            _keep(file, mark, {"findings": [asdict(one) for one in found]}, seconds)
    rest = iter(found)
    findings = tuple(Finding(True, 0) if hit else next(rest) for hit in pre)
    # How many cases go at once decides nothing.
    settings = fingerprint(attack=re.sub(r"\bbatch_size=\d+", "", repr(attack)))[:8]
    return Attacked(attack.name, subject.name, pre, findings, seconds, settings)


_BATCH = 32
"""Cases at once; attacks that take fewer cut them further."""


def _probe(seen: Examination, probe: Probe, subject: Subject, evidence: Evidence, kept: Path) -> Probed:
    mark = fingerprint(
        probe=repr(probe), subject=subject.fingerprint, base=seen.contest.base.fingerprint, protocol=seen.protocol,
        cases=[asdict(case) for case in seen.cases], drawn=seen.drawn_as,
    )  # fmt: skip
    file = kept / f"{_file_name(probe.name)}-{subject.name}.json"
    known = _known(file, mark)
    if known is None:
        start = time.perf_counter()
        with Progress(f"{probe.name}, {subject.name}", probe.amount(len(seen.cases))) as bar:
            reading = probe(subject, evidence, bar.advance)
        seconds = time.perf_counter() - start
        content = {"curves": [one.to_json() for one in reading.curves], "numbers": reading.numbers}
        _keep(file, mark, content, seconds)
        return Probed(probe.name, subject.name, reading, seconds)
    curves = tuple(
        Curve(one["name"], subject.name, one["axis"], tuple(Point(**point) for point in one["points"]))
        for one in known["curves"]
    )
    return Probed(probe.name, subject.name, Reading(curves, dict(known["numbers"])), float(known["seconds"]))


def _taken_up(file: Path, mark: str) -> tuple[list[Finding], float]:
    """What is known of an attack that was begun: whole batches."""
    known = _known(file, mark)
    if known is None:
        return [], 0.0
    found = [
        Finding(one["hit"], one["tries"], one["text"], tuple(one["tokens"]), tuple(map(tuple, one["measured"])))
        for one in known["findings"]
    ]
    return found, float(known["seconds"])


def _known(file: Path, mark: str) -> Mapping[str, Any] | None:
    """What a file says, if it is of the same work; whatever cannot be read is done anew."""
    if not file.is_file():
        return None
    try:
        content = read_object(file)
    except UserError:
        return None
    return content if content.get("mark") == mark else None


def _keep(file: Path, mark: str, content: Mapping[str, Any], seconds: float) -> None:
    with full_disk_is_told("what an attack found"):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(file, {"mark": mark, "seconds": seconds, **content})


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in one_line(name, 60))
