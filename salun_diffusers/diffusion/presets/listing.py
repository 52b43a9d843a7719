"""What `--list_concepts` prints: every preset and every kind, in one line each."""

from __future__ import annotations

from salun_diffusers.demo.vocabulary import SHAPES, STYLES
from salun_diffusers.diffusion.presets.written import GROUPS, Written, written


def listing(word: str) -> str:
    """The presets and kinds that have a word in their line; of no word all of them.

    Args:
        word: Any case.
    """
    found = [line for line in _lines() if word.lower() in " ".join(line).lower()]
    if not found:
        return (
            f"No preset or kind has {word!r} in its line; --concept takes any words, with --kind where they are not "
            "what they seem.\n"
        )
    wide = [max(len(line[column]) for line in found) for column in range(2)]
    return "".join(f"{line[0]:<{wide[0]}}  {line[1]:<{wide[1]}}  {line[2]}\n" for line in found)


def _lines() -> list[tuple[str, str, str]]:
    lines = [_line(group, one) for group in GROUPS for one in written(group).values()]
    lines += [("demo", name, "A shape of the embedded model.") for name in SHAPES]
    lines += [("demo", name, "A drawing style of the embedded model.") for name in STYLES]
    return lines + [("--kind", one.kind, one.about) for one in written("templates").values()]


def _line(group: str, one: Written) -> tuple[str, str, str]:
    marks = [*(["explicit"] if one.explicit else []), *([one.detector] if one.detector != "none" else [])]
    names = f" Also: {', '.join(one.aliases)}." if one.aliases else ""
    marked = f" ({', '.join(marks)})" if marks else ""
    return group, one.name, f"{one.about}{marked}{names}"
