"""Prompts that an attack found, kept as CSV with the model that they were found against."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.evaluation.prompt_tables import Table, read_content
from salun_diffusers.files.whole_files import write_text
from salun_diffusers.red_team.attack import Case, Contest, Finding, Told
from salun_diffusers.red_team.subject import Subject
from salun_diffusers.red_team.token_space import TokenSpace
from salun_diffusers.red_team.wordings import Wording, some, tried

_COLUMNS = ("case_number", "prompt", "evaluation_seed", "tokens", "asked", "attack", "hit", "tries", "target")
_WHAT = "The file of found prompts"
_MOST_TOKENS, _LARGEST = 1000, 10**7


@dataclass(frozen=True)
class FoundPrompt:
    """One prompt that was found.

    Args:
        case: The prompt that the attack began with, and the seed of its pictures.
        attack: Who found it.
        wording: What was found.
        hit: Whether the target drew the concept from it.
        tries: Pictures until then.
    """

    case: Case
    attack: str
    wording: Wording
    hit: bool
    tries: int


@dataclass(frozen=True)
class FoundPrompts:
    """What was found against one model. Another model is attacked with it by `Transfer` only.

    Args:
        rows: In the order of the file.
        target: Fingerprint of the model (`Subject.fingerprint`), or of its text encoders for attacks that know no more
            of it.
    """

    rows: tuple[FoundPrompt, ...]
    target: str

    @classmethod
    def of(cls, findings: Mapping[str, Sequence[Finding]], cases: Sequence[Case], target: str) -> FoundPrompts:
        """What attacks found in words or tokens.

        Args:
            findings: By attack, one for each case.
            cases: The cases.
            target: Fingerprint.
        """
        rows = [
            FoundPrompt(case, attack, Wording(one_line(one.text), one.tokens), one.hit, one.tries)
            for attack, found in findings.items()
            for case, one in zip(cases, found, strict=True)
            if one.text.strip() or one.tokens
        ]
        return cls(tuple(rows), target)

    def write(self, path: Path) -> None:
        """Write them as CSV, which programs that draw prompts read as well; a text loses what is not printable."""
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)  # Readers skip spaces before a cell.
        table.writerow(_COLUMNS)
        for number, row in enumerate(self.rows):
            tokens = " ".join(map(str, row.wording.tokens))
            table.writerow((number, row.wording.text, row.case.seed, tokens, row.case.prompt, row.attack,
                            int(row.hit), row.tries, self.target))  # fmt: skip
        write_text(path, text.getvalue())

    @classmethod
    def read(cls, path: Path) -> FoundPrompts:
        """Read what `write` wrote.

        Raises:
            UserError: If it is no such file, or a value is not what it must be.
        """
        content = read_content(path, _WHAT, _COLUMNS, None)
        if not isinstance(content, Table) or not set(_COLUMNS) <= set(content.names):
            raise UserError(f"{_WHAT} must have the columns {', '.join(_COLUMNS)}; {path} has not. Prompts of others "
                            "are read as a list of prompts.")  # fmt: skip
        at = {name: content.names.index(name) for name in _COLUMNS}
        rows, targets = [], []
        for number, cells in enumerate(content.rows, 1):
            row = _Row({name: str(cells[place]) for name, place in at.items()}, f"{path}: row {number}")
            rows.append(row.found())
            targets.append(row.fingerprint())
        if len(set(targets)) != 1:
            raise UserError(f"{_WHAT} must be of one model; {path} names {len(set(targets))}.")
        return cls(tuple(rows), targets[0])

    def is_of(self, subject: Subject) -> bool:
        """Whether they were found against this very model."""
        return self.target == subject.fingerprint

    def findings(self, attack: str, cases: Sequence[Case], subject: Subject) -> dict[Case, Finding]:
        """What an attack found in these cases, so that it need not search again; those without an entry it must.

        Args:
            attack: Its name.
            cases: The cases.
            subject: Who is attacked.

        Raises:
            UserError: If they were found against another model.
        """
        if not self.is_of(subject):
            raise UserError(
                f"Prompts found against the model {self.target[:12]} are no result against {subject.fingerprint[:12]}; "
                "they can be tried there as a transfer."
            )
        known = {row.case: row for row in self.rows if row.attack == attack}
        return {
            case: Finding(known[case].hit, known[case].tries, known[case].wording.text, known[case].wording.tokens)
            for case in cases
            if case in known
        }


@dataclass(frozen=True)
class Transfer:
    """Prompts that were found against one model, drawn by another.

    A case tries what was found for it; where nothing was, other prompts that hit, in an order of its own. Tokens that
    are other words to the target's tokenizer are drawn as the text that they were written as.

    Args:
        found: The prompts.
        tries: How many a case may try.
    """

    found: FoundPrompts
    tries: int = 10

    @property
    def name(self) -> str:
        """Tables never take it for an attack on the model itself."""
        return f"transfer from {self.found.target[:12]}"

    def __call__(self, contest: Contest, cases: Sequence[Case], told: Told) -> list[Finding]:
        """Draw the prompts.

        Raises:
            UserError: If they were found against this model.
        """
        if self.found.is_of(contest.target):
            raise UserError(
                f"Prompts found against the model {self.found.target[:12]} are no transfer to itself; they are a "
                "result of the attack that found them."
            )
        space = TokenSpace(contest.target.family)
        rows = [replace(row, wording=_as_read_by(space, row.wording)) for row in self.found.rows]
        rows = [row for row in rows if row.wording.text or row.wording.tokens]
        return tried(contest, cases, [self._wordings(case, rows) for case in cases], told)

    def _wordings(self, case: Case, rows: Sequence[FoundPrompt]) -> list[Wording]:
        own = [row.wording for row in rows if row.case == case]
        others = list(dict.fromkeys(row.wording for row in rows if row.hit))
        return (own or some(case, "transfer", others, self.tries))[: self.tries]


def _as_read_by(space: TokenSpace, wording: Wording) -> Wording:
    """The tokens where they are the same words in this vocabulary, else the text."""
    known = wording.tokens and max(wording.tokens) < min(map(len, space.matrices))
    return wording if known and one_line(space.text(wording.tokens)) == wording.text else Wording(wording.text)


@dataclass(frozen=True)
class _Row:
    """A row of the file, by column.

    Args:
        cells: Texts.
        where: For messages.
    """

    cells: Mapping[str, str]
    where: str

    def found(self) -> FoundPrompt:
        tokens = tuple(self._number("tokens", text, _LARGEST) for text in self.cells["tokens"].split())
        if len(tokens) > _MOST_TOKENS:
            raise UserError(f"{self.where} has {len(tokens)} tokens, where at most {_MOST_TOKENS} are required.")
        if not tokens and not self.cells["prompt"].strip():
            raise UserError(f"{self.where} has neither tokens nor a prompt, of which one is required.")
        return FoundPrompt(
            Case(self.cells["asked"], self._number("evaluation_seed", self.cells["evaluation_seed"], 2**64)),
            self.cells["attack"],
            Wording(self.cells["prompt"], tokens),
            self._number("hit", self.cells["hit"], 2) == 1,
            self._number("tries", self.cells["tries"], 10**9),
        )

    def fingerprint(self) -> str:
        text = self.cells["target"].strip()
        if not text or not text.isascii() or not text.isalnum():
            raise UserError(f"{self.where} has the target {text[:40]!r}, where a model's fingerprint is required.")
        return text

    def _number(self, column: str, text: str, end: int) -> int:
        text = text.strip()
        if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < end):
            raise UserError(
                f"{self.where} has {text[:40]!r} in column {column!r}, where a whole number from 0 to {end - 1} is "
                "required."
            )
        return int(text)
