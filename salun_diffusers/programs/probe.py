"""What is left of a concept? Probe an erased model beside its base: relearning, completion, and other side doors.

    salun probe RUN
    salun probe ERASED --base BASE --concept circle --probes relearning completion
    salun probe RUN --floor RETRAINED --probes full
    salun probe RUN --probes none --few_step_lora lcm-lora-sdv1-5 --controlnet sd-controlnet-canny

Relearning trains a copy on a few pictures and counts after some steps how often plain prompts show the concept again;
the others begin with a part of the base's picture. Read the curves against --floor, a model that never knew the
concept. It is `salun attack` with --attacks none, and takes the same flags.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from salun_diffusers.arguments import setting
from salun_diffusers.programs.attack import AttackConfig, examine
from salun_diffusers.programs.program import Program
from salun_diffusers.red_team.config import ExaminedConfig


@dataclass(frozen=True)
class ProbeConfig(ExaminedConfig):
    """What is probed, and how."""

    probes: tuple[str, ...] = setting(("quick",), "quick, full (or all), or names of probes.")


def work(config: ProbeConfig, command: str) -> str:
    """Run the probes."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return examine(AttackConfig(**values, attacks=("none",)), command)


main = Program("probe", ProbeConfig, work, __doc__ or "", left_open="as the run or the preset says")
