"""The model card of an erased pipeline: what was changed, how sure that is, whose licence holds, what it cannot do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salun_diffusers.errors import one_line
from salun_diffusers.files.base_card import MADE_BY, BaseCard
from salun_diffusers.reports.measurement import Comparison, Measurement, percent
from salun_diffusers.reports.page import receipt_sentence
from salun_diffusers.reports.report import EvaluationReport

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.j2"
_RELICENSED = "the terms of the base's licence, its restrictions of use included, hold for this model too"
WHY_UNPUBLISHED = (
    "it is not published, because knowing which weights carried a concept helps to bring it back "
    "([arXiv 2603.06640](https://arxiv.org/abs/2603.06640))"
)
NOT_MEASURED = "not measured"
_WRITTEN_ANEW = (
    " This folder was saved from memory, where diffusers writes every part anew: configurations, tokenizers and the "
    "like differ from the base's in their bytes, `salun verify` names them and ends with exit code 1."
)


@dataclass(frozen=True)
class CardBase:
    """The base as its reader may know it: no path of the machine that erased.

    Args:
        name: Hub id, name of an embedded model, or the last part of a local folder's name.
        kind: ``hub``, ``embedded`` or ``local``.
        revision: Commit on the hub; empty where there is none.
        sha256: Of all that erasing read of it; empty where that is not known.
        card: What its card says; None where there was none to read.
        kept_as: Name of its card in the erased folder; empty where it is not there.
        left_out: Its parts that a copy does not hold, such as a pickled safety checker.
    """

    name: str
    kind: str
    revision: str = ""
    sha256: str = ""
    card: BaseCard | None = None
    kept_as: str = ""
    left_out: Sequence[str] = ()


@dataclass(frozen=True)
class CardFacts:
    """What a card says beside the report.

    Args:
        concepts: Names of what was erased.
        base: What it was erased from.
        pipeline_class: Class of the pipeline.
        settings: Recipe, mask, ratio and the like, in words, in reading order.
        load: The Python that loads it.
        made: What a program can tell by whether a repository holds this erasure.
        mask_sha256: Of the mask; empty where there is none yet.
        weights: SHA-256 of each of the denoiser's files.
        mask_published: Name of the mask's file in the repository; empty where it stays at home.
        place: What stands for the erased pipeline in a command: a repository, or ``FOLDER``.
        lora: Whether it is a LoRA that erases, beside a base that stays as it is.
        anew: Whether diffusers wrote all parts anew, of a pipeline in memory.
    """

    concepts: tuple[str, ...]
    base: CardBase
    pipeline_class: str
    settings: Mapping[str, str]
    load: str
    made: Mapping[str, Any]
    mask_sha256: str = ""
    weights: Mapping[str, str] = field(default_factory=dict)
    mask_published: str = ""
    place: str = "FOLDER"
    lora: bool = False
    anew: bool = False


def model_card(facts: CardFacts, report: EvaluationReport | None) -> str:
    """The text of README.md: metadata as the hub reads them, then the card.

    Args:
        facts: What was done, to what.
        report: What was measured; None while nothing is.
    """
    from huggingface_hub import ModelCard

    names = _listed(facts.concepts)
    return str(
        ModelCard.from_template(
            _metadata(facts.base, facts.pipeline_class, facts.made, lora=facts.lora),
            template_path=str(_TEMPLATE),
            title=f"{_plain(facts.base.name)} without {names}{', a LoRA' if facts.lora else ''}",
            lora=facts.lora,
            names=names,
            were="were" if len(facts.concepts) > 1 else "was",
            base=_base_named(facts.base),
            verdict=_verdict(report),
            facts=_facts(facts, report),
            load=facts.load,
            figures=_figures(report),
            verify=_verify(facts, report),
            licence=_licence(facts.base),
        )
    )


def patched_card(
    base: CardBase, pipeline_class: str, base_sha256: str, erased_sha256: str, strength: float = 1.0
) -> str:
    """The text of README.md in a folder that a patch was applied to: nothing was measured there, and it says so.

    Args:
        base: What the patch was applied to.
        pipeline_class: Class of the pipeline.
        base_sha256: Of the denoiser's weights before.
        erased_sha256: After; empty where the patch does not promise any.
        strength: How far it goes from the base (0) to the erased model (1).
    """
    rows = {"base": _base_named(base), "SHA-256 of the denoiser's weights before": f"`{base_sha256}`"}
    rows |= {"after": f"`{erased_sha256}`"} if erased_sha256 else {}
    rows |= _left_out(base)
    back = "`salun patch revert` with the same patch gives the base back, bit for bit."
    if strength != 1:
        rows["strength"] = f"{strength:g} of the whole change"
        back = "At this strength `salun patch revert` with the same patch does not give the base back: keep the base."
    text = (
        f"# {_plain(base.name)}, patched\n\n**This model was changed by a patch of `salun_diffusers`**, which erases a "
        "concept. It is not the base model, and what the base's own card says was not measured on it. Nothing was "
        f"measured here: figures are in the report of the run that made the patch.\n\n{_table(('', ''), rows.items())}"
        f"\n\n{back}\n\n## The base and its licence\n\n{_licence(base)}\n"
    )
    return f"---\n{_metadata(base, pipeline_class, {'patch': base_sha256}).to_yaml()}\n---\n\n{text}"


def _metadata(base: CardBase, pipeline_class: str, made: Mapping[str, Any], *, lora: bool = False) -> ModelCardData:
    from huggingface_hub import ModelCardData

    card = base.card if base.card is not None else BaseCard()
    origin = (base.name,) if base.kind == "hub" else card.base_model
    conditional = pipeline_class.startswith("ClassConditional")
    told: dict[str, Any] = {
        "license": _single(card.license),
        "license_name": card.license_name,
        "license_link": card.license_link,
        "base_model": _single(origin),
        "base_model_relation": ("adapter" if lora else "finetune") if origin else "",
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation" if conditional else "text-to-image",
        "tags": [
            "diffusers",
            "salun",
            "concept-erasure",
            "machine-unlearning",
            *(["lora"] if lora else []),
            f"diffusers:{pipeline_class}",
        ],
        MADE_BY: dict(made),
    }
    return ModelCardData(**{name: value for name, value in told.items() if value})


def _verdict(report: EvaluationReport | None) -> str:
    if report is None:
        return "**Verdict: not measured yet.** The run that made this folder had not ended when this was written."
    return f"**Verdict: {report.verdict}.** {_plain(report.verdict_reason)}"


def _facts(facts: CardFacts, report: EvaluationReport | None) -> str:
    rows = {"erased": _listed(facts.concepts), "base": _base_named(facts.base)}
    if facts.base.revision:
        rows["revision of the base"] = f"`{facts.base.revision}`"
    if facts.base.sha256:
        rows["SHA-256 of what was read of the base"] = f"`{facts.base.sha256}`"
    rows |= _left_out(facts.base) | {name: _plain(value) for name, value in facts.settings.items()}
    if report is not None:
        might = "lie in layers of the LoRA" if facts.lora else "might move"
        rows["mask"] = f"{percent(report.mask.density)} of the denoiser's weights, {report.mask.selected:,}, {might}"
        moved = f"{percent(report.receipt.moved_share)} of the denoiser's weights"
        moved += ", where the LoRA is loaded" if facts.lora else ""
        rows["moved"] = f"{moved}. {receipt_sentence(report)}"
        if report.receipt.strength != 1:
            rows["strength"] = f"{report.receipt.strength:g} of the whole change"
    return _table(("", ""), rows.items())


def _left_out(base: CardBase) -> dict[str, str]:
    names = ", ".join(f"`{_bare(name)}`" for name in base.left_out)
    return {"left out of the base": f"{names}: not to be had without a pickle"} if names else {}


def _figures(report: EvaluationReport | None) -> str:
    """Three rates by their names in the literature, then every figure with its interval; prompts are not shown."""
    if report is None:
        return "Not measured yet."
    pairs = {pair.after.group: pair.after for pair in reversed(report.comparisons)}
    gone = pairs.get("concept")
    rates = {
        "UA, unlearning accuracy: pictures for its prompts without the concept": _complement(gone),
        "RA, retained accuracy: what else was asked for is there": pairs.get("retained"),
        "CRA, cross-domain retained accuracy: so is the other kind of label": pairs.get("retained across"),
    }
    short = _table(
        ("rate", "erased model", "95 % interval", "pictures"),
        [(name, *(_cells(one) if one else (NOT_MEASURED, "", ""))) for name, one in rates.items()],
    )
    rows = [
        (_plain(name), *(" ".join(_cells(one)[:2]) if one else "" for one in (before, after)), f"{after.n:,}",
         {"lower": "↓", "higher": "↑", "neither": ""}[after.direction])
        for name, before, after in _all(report)
    ]  # fmt: skip
    if not rows:
        return f"{short}\n\nNothing else was measured."
    every = _table(("measured", "base", "this model", "pictures", "better"), rows)
    return f"{short}\n\nAll figures, with 95 % intervals in brackets:\n\n{every}"


def _all(report: EvaluationReport) -> list[tuple[str, Measurement | None, Measurement]]:
    """Figures in reading order without those of single prompts, which may be explicit."""
    pairs: Sequence[Comparison] = (*report.comparisons, *report.collateral)
    alone = (*report.measurements, *report.collateral_drift)
    found: list[tuple[str, Measurement | None, Measurement]] = [(pair.name, pair.before, pair.after) for pair in pairs]
    found += [(item.name, None, item) for item in alone]
    return [row for row in found if not row[2].group.endswith("by prompt")]


def _cells(one: Measurement) -> tuple[str, str, str]:
    return one.text(), f"({one.interval_text()})", f"{one.n:,}"


def _complement(one: Measurement | None) -> Measurement | None:
    """How often it does not happen."""
    if one is None or one.interval is None:
        return None
    low, high = one.interval
    return Measurement("UA", 1 - one.value, one.n, 1 - high, 1 - low, "higher", one.protocol, kind="rate")


def _verify(facts: CardFacts, report: EvaluationReport | None) -> str:
    base, place = facts.base.name, facts.place
    asked = f"salun verify {base if facts.base.kind != 'local' else 'BASE'} {place} --mask"
    told = "which files beside the denoiser differ" if facts.anew else "that nothing beside the denoiser differs"
    told = "that this is the base" if facts.lora else told
    lines = [
        "`salun verify` compares the base with itself and this LoRA, weight by weight: it must be the base that the "
        "LoRA was trained on, and layers outside the mask must not change."
        if facts.lora
        else "`salun verify` compares every weight and every file with the base: outside the mask each weight must be "
        "bit-identical, and everything beside the denoiser must be the base's to the byte."
        + (_WRITTEN_ANEW if facts.anew else ""),
        "",
        "```bash",
        f"{asked} {facts.mask_published or 'mask.safetensors'}",
        "```",
        "",
    ]
    if facts.mask_published:
        lines.append(f"The mask is `{facts.mask_published}` in this repository.")
    else:
        lines.append(
            f"The mask stays with whoever made this model: {WHY_UNPUBLISHED}. Without it `{asked} full` still tells "
            f"{told}, and how much of the denoiser moved."
        )
    if report is not None:
        lines[-1] += f" When it was made, the comparison said: {receipt_sentence(report)}"
    digests = {"the mask's bits": facts.mask_sha256} if facts.mask_sha256 else {}
    digests |= {f"`{name}`": digest for name, digest in facts.weights.items()}
    if digests:
        lines += ["", _table(("", "SHA-256"), [(name, f"`{digest}`") for name, digest in digests.items()])]
    return "\n".join(lines)


def _licence(base: CardBase) -> str:
    kept = f" Its card lies here as `{base.kept_as}`, to the byte; it describes the base." if base.kept_as else ""
    if base.card is None or not base.card.license:
        return (
            f"{_base_named(base)}. No card with a licence of the base could be read when this was made, so none is "
            f"named here: look it up before you pass this model on; {_RELICENSED}.{kept}"
        )
    name = ", ".join(f"`{_bare(one)}`" for one in base.card.license)
    name += f" ({_plain(base.card.license_name)})" if base.card.license_name else ""
    link = f", see <{_bare(base.card.license_link)}>" if base.card.license_link.startswith("https://") else ""
    return f"{_base_named(base)}, licence {name}{link}: {_RELICENSED}.{kept}"


def _base_named(base: CardBase) -> str:
    if base.kind == "hub":
        return f"[{_plain(base.name)}](https://huggingface.co/{_bare(base.name)})"
    if base.kind == "embedded":
        return f"`{_bare(base.name)}`, the model that comes with `salun_diffusers`"
    return f"`{_bare(base.name)}` (a local folder or file)"


def _single(texts: Sequence[str]) -> str | list[str]:
    """One text as itself, several as a list, none as nothing: as the hub's cards have it."""
    return texts[0] if len(texts) == 1 else [*texts]


def _listed(names: Sequence[str]) -> str:
    quoted = [f"“{_plain(name)}”" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Words of a user or a stranger in Markdown: one line, and nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!$&])", r"\\\1", one_line(text))


def _bare(text: str) -> str:
    """The same between backticks or in an address, where nothing can be escaped."""
    return re.sub(r"[`<>()|\s]", "", text)
