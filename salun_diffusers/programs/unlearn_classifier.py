"""Make a classifier forget a class, a share of its training pictures, or single ones.

    salun unlearn-classifier --model runs/classifier --forget_class 3 --method salun
    salun unlearn-classifier --model runs/classifier --forget_ratio 0.1 --method ft --retrain
    salun unlearn-classifier --model runs/cifar10 --forget_ratio 0.1 --preset salun-table1 --method salun

The run folder holds the unlearned model, which `AutoModelForImageClassification` loads, the mask, and a report with the
papers' measures before and after.
"""

from __future__ import annotations

from salun_diffusers.classification.config import UnlearnConfig
from salun_diffusers.programs.program import Program


def work(config: UnlearnConfig, command: str) -> str:
    """Unlearn, and say how it went."""
    from salun_diffusers.classification.run import run_unlearning

    run, report = run_unlearning(config, command)
    return (
        f"\n{report.verdict}: {report.verdict_reason}\n"
        f"model     {run.root / 'model'}\nreport    {run.root / 'report.html'}\n"
    )


main = Program("unlearn-classifier", UnlearnConfig, work, __doc__ or "", interrupted="no model was written.")
