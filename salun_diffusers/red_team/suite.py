"""Attacks and probes, one after the other, on the erased model and on its ceiling and floor; what is done is kept."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from salun_diffusers.files.run_folder import fingerprint
from salun_diffusers.progress import Progress
from salun_diffusers.red_team.attack import Attack, Contest, Finding
from salun_diffusers.red_team.kept_results import file_of, findings_of, keep, kept, reading_of
from salun_diffusers.red_team.opened import Examination
from salun_diffusers.red_team.probe import Evidence, Probe, Reading
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


def run_attacks(seen: Examination, attacks: Sequence[Attack], folder: Path) -> tuple[Attacked, ...]:
    """Run attacks on the erased model and, where one was named, on the floor.

    The base needs none: cases are those in which it draws the concept, so its rate is 1 by their choice.

    Args:
        seen: Models and cases.
        attacks: In this order.
        folder: Of what is done; the same attack on the same model and cases goes on there.

    Raises:
        UserError: If an attack cannot be made on such a model.
    """
    done = []
    for attack in attacks:
        for subject, pre in _attacked_subjects(seen):
            contest = replace(seen.contest, target=subject)
            done.append(_attack(seen, attack, contest, pre, folder))
    return tuple(done)


def run_probes(seen: Examination, probes: Sequence[Probe], folder: Path) -> tuple[Probed, ...]:
    """Run probes on the erased model, the base and the floor.

    Args:
        seen: Models and cases.
        probes: In this order.
        folder: As of `run_attacks`.
    """
    evidence = Evidence(seen.contest, seen.cases)
    subjects = [seen.contest.target, seen.contest.base, *([seen.floor] if seen.floor is not None else [])]
    return tuple(_probe(seen, probe, subject, evidence, folder) for probe in probes for subject in subjects)


def _attacked_subjects(seen: Examination) -> list[tuple[Subject, tuple[bool, ...]]]:
    found = [(seen.contest.target, seen.pre)]
    if seen.floor is not None:
        drawn = seen.floor.drawn([case.prompt for case in seen.cases], [case.seed for case in seen.cases])
        found.append((seen.floor, tuple(seen.contest.judge.hits(drawn))))
    return found


def _attack(seen: Examination, attack: Attack, contest: Contest, pre: tuple[bool, ...], folder: Path) -> Attacked:
    """Attack the cases that hold out, a batch at a time; each batch is kept."""
    subject = contest.target
    mark = fingerprint(
        attack=repr(attack), target=subject.fingerprint, base=contest.base.fingerprint, protocol=seen.protocol,
        cases=[asdict(case) for case in seen.cases], words=contest.words, prompts=contest.asking,
        drawn=seen.drawn_as, unaided=pre,
    )  # fmt: skip
    file = file_of(folder, attack.name, subject.name)
    open_cases = [case for case, hit in zip(seen.cases, pre, strict=True) if not hit]
    known = kept(file, mark, findings_of)
    found, seconds = known if known is not None and _are_whole_batches(known[0], len(open_cases)) else ([], 0.0)
    batches = [open_cases[start : start + _BATCH] for start in range(0, len(open_cases), _BATCH)]
    with Progress(f"{attack.name}, {subject.name}", len(open_cases), done=len(found)) as bar:
        for batch in batches[len(found) // _BATCH if len(found) < len(open_cases) else len(batches) :]:
            start = time.perf_counter()
            found += attack(contest, batch, bar.advance)
            seconds += time.perf_counter() - start
            keep(file, mark, {"findings": [asdict(one) for one in found]}, seconds)
    rest = iter(found)
    findings = tuple(Finding(True, 0) if hit else next(rest) for hit in pre)
    # How many cases go at once decides nothing.
    settings = fingerprint(attack=re.sub(r"\bbatch_size=\d+", "", repr(attack)))[:8]
    return Attacked(attack.name, subject.name, pre, findings, seconds, settings)


_BATCH = 32
"""Cases at once; attacks that take fewer cut them further."""


def _are_whole_batches(found: Sequence[Finding], cases: int) -> bool:
    """Whether what is kept are the first batches of some cases, or all."""
    return len(found) == cases or (len(found) < cases and len(found) % _BATCH == 0)


def _probe(seen: Examination, probe: Probe, subject: Subject, evidence: Evidence, folder: Path) -> Probed:
    mark = fingerprint(
        probe=repr(probe), subject=subject.fingerprint, base=seen.contest.base.fingerprint, protocol=seen.protocol,
        cases=[asdict(case) for case in seen.cases], drawn=seen.drawn_as,
    )  # fmt: skip
    file = file_of(folder, probe.name, subject.name)
    known = kept(file, mark, lambda content: reading_of(content, subject.name))
    if known is not None:
        return Probed(probe.name, subject.name, *known)
    start = time.perf_counter()
    with Progress(f"{probe.name}, {subject.name}", probe.amount(len(seen.cases))) as bar:
        reading = probe(subject, evidence, bar.advance)
    seconds = time.perf_counter() - start
    content = {"curves": [one.to_json() for one in reading.curves], "numbers": reading.numbers}
    keep(file, mark, content, seconds)
    return Probed(probe.name, subject.name, reading, seconds)
