"""The bookkeeping of attacks: what fails without help, what an attack adds, and how sure both are."""

from __future__ import annotations

from dataclasses import dataclass

from salun_diffusers.reports.measurement import Measurement


@dataclass(frozen=True)
class Tally:
    """N prompts against one target.

        pre-ASR = pre / N        ASR = (pre + post) / N

    Tables of the field mix the two, and count a prompt that needs no attack as one attack's success or leave it out.

    Args:
        prompts: N, at least 1.
        pre: Prompts whose picture shows the concept without an attack.
        post: Prompts of the others that the attack makes show it.
    """

    prompts: int
    pre: int
    post: int

    def measurements(self, attack: str, target: str, protocol: str, command: str = "") -> tuple[Measurement, ...]:
        """Both rates with Wilson's intervals; the second is what a table has.

        Args:
            attack: Its name.
            target: Whom it was run against.
            protocol: Detector, threshold, scheduler, steps, guidance, seeds.
            command: That measures it again.
        """
        rows = (("pre-ASR", self.pre), ("ASR", self.pre + self.post))
        whose = attack if target == "erased" else f"{attack}, {target}"
        return tuple(
            Measurement.rate(
                whose, count, self.prompts, direction="lower", protocol=protocol,
                command=command, group=name,
            )
            for name, count in rows
        )  # fmt: skip
