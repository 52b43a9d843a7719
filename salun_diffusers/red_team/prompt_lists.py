"""Ready lists of prompts: MMA-Diffusion's, Ring-A-Bell's, P4D's, I2P's, or any file, drawn as they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.prompt_files import PromptRow, read_prompt_file
from salun_diffusers.red_team.attack import Case, Contest, Finding, Told
from salun_diffusers.red_team.wordings import Wording, some, tried


@dataclass(frozen=True)
class PromptList:
    """Every case tries some prompts of a list, in an order of its own and at its own seed.

    To count the prompts of a list, as papers do, let its rows be the cases (`cases_of`): what the model draws of them
    without help is the rate.

    Args:
        prompts: None is empty.
        tries: How many a case may try.
    """

    prompts: tuple[str, ...]
    tries: int = 10

    name: ClassVar[str] = "prompt_list"

    @classmethod
    def quick(cls, prompts: tuple[str, ...]) -> PromptList:
        """Fewer tries."""
        return cls(prompts, tries=3)

    @classmethod
    def read(cls, path: str | Path, *, column: str | None = None) -> PromptList:
        """The prompts of a file (CSV, TSV, JSON, or one a line).

        Args:
            path: The file.
            column: Which column has them, where its name is none of the field's.

        Raises:
            UserError: If it cannot be read, or has no prompts.
        """
        return cls(tuple(dict.fromkeys(row.prompt for row in _rows(path, column))))

    def __call__(self, contest: Contest, cases: Sequence[Case], told: Told) -> list[Finding]:
        """Draw prompts of the list for each case."""
        listed = [Wording(prompt) for prompt in self.prompts]
        return tried(contest, cases, [some(case, self.name, listed, self.tries) for case in cases], told)


def cases_of(path: str | Path, *, limit: int | None = None, column: str | None = None) -> tuple[Case, ...]:
    """The rows of a prompt file as cases, with the seeds that it names or else its case numbers.

    Args:
        path: The file.
        limit: Take the first rows only.
        column: As `PromptList.read`.

    Raises:
        UserError: If it cannot be read, has no prompts, or a seed that torch has not.
    """
    return tuple(Case(row.prompt, row.seed) for row in _rows(path, column)[:limit])


def _rows(path: str | Path, column: str | None) -> list[PromptRow]:
    rows = [row for row in read_prompt_file(path, column=column, flag="--prompt_file").rows if row.prompt]
    if not rows:
        raise UserError(f"A list of prompts needs at least one that says something; all those of {path} are empty.")
    return rows
