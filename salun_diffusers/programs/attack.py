"""Is it really gone? Attack an erased model, and say with intervals how often the concept comes back.

    salun attack RUN
    salun attack ERASED --base BASE --concept circle --attacks quick
    salun attack "BASE+FILE" --concept "Van Gogh" --detector clip:"a painting by Van Gogh" --attacks p4d_n tina

Pictures are fought for in which the base shows the concept. --attacks takes `full` (the settings of the sources),
`quick` (those of a small model), `none`, or names; a name with -quick behind it has the quick settings. --probes does
the same to all pictures (relearning, completion, ...); `salun probe` runs those alone. What is done is kept: the same
command goes on where it stopped. Use it on models that you answer for; prompts that were found stay in private/.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from salun_diffusers.arguments import setting
from salun_diffusers.errors import UserError
from salun_diffusers.files.output_places import require_writable
from salun_diffusers.files.run_source import RunSource
from salun_diffusers.programs.program import Program
from salun_diffusers.red_team.config import ExaminedConfig

if TYPE_CHECKING:
    from salun_diffusers.diffusion.request import Request


@dataclass(frozen=True)
class AttackConfig(ExaminedConfig):
    """What is attacked, and how."""

    attacks: tuple[str, ...] = setting(("full",), "quick, full (or all), none, or names of attacks.")
    probes: tuple[str, ...] = setting(("none",), "quick, full (or all), none, or names of probes.")
    prompt_file: str | None = setting(None, "A list of prompts (text, CSV, JSON) that is drawn as well.")


def examine(config: AttackConfig, command: str) -> str:
    """Run attacks and probes, and write what they found."""
    output = output_of(config)
    from salun_diffusers.red_team.known import (
        ATTACKS,
        PROBES,
        add_ons_of,
        attacks_of,
        chosen,
        probes_of,
        require_possible,
    )
    from salun_diffusers.red_team.prompt_lists import PromptList

    # Names and lists are looked at before anything is loaded.
    asked = chosen(config.attacks, tuple(ATTACKS), tuple(ATTACKS), "--attacks")
    asked += chosen(config.probes, tuple(PROBES), tuple(PROBES), "--probes")
    add_ons = add_ons_of(config)
    lists = [PromptList.read(Path(config.prompt_file).expanduser())] if config.prompt_file else []
    if not asked and not config.prompt_file and not add_ons:
        raise UserError("--attacks none with --probes none leaves nothing to do; name some of them.")
    from salun_diffusers.red_team.opened import opened
    from salun_diffusers.red_team.report import write_examination
    from salun_diffusers.red_team.suite import Results, run_attacks, run_probes

    def check(request: Request) -> None:
        require_possible(config.attacks, config.probes, bool(lists), request, config.pipeline)

    with opened(config, check) as seen:
        attacks = [*attacks_of(config.attacks, seen), *lists]
        probes = [*probes_of(config.probes, seen), *add_ons]
        for one in add_ons:  # What does not fit is refused before hours of attacks.
            one.equipped(seen.contest.target)
        results = Results(run_attacks(seen, attacks, output / "private"), run_probes(seen, probes, output / "private"))
        return write_examination(seen, results, output, command)


def output_of(config: ExaminedConfig) -> Path:
    """Where results go: --output_dir, or red_team/ in the run.

    Raises:
        UserError: If nothing says it, or it cannot be written.
    """
    run = RunSource.found(config.pipeline)
    if config.output_dir is None and run is None:
        raise UserError(
            f"--output_dir is required: {config.pipeline} is no run's folder, which would take the results."
        )
    output = run.root / "red_team" if run is not None else Path()
    if config.output_dir is not None:
        output = Path(config.output_dir).expanduser()
    require_writable(output, "--output_dir")
    return output


main = Program("attack", AttackConfig, examine, __doc__ or "", left_open="as the run or the preset says")
