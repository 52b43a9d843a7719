"""How near words lie to each other, as a model's own text encoder has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from salun_diffusers.errors import UserError, one_line

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE = 64
_TOY = 5000


class TextSpace(Protocol):
    """Says what lies near a word."""

    @property
    def of_a_toy(self) -> bool:
        """Whether its vocabulary is as small as an embedded model's, which is always at hand."""
        ...

    def knows(self, words: str) -> bool:
        """Whether the model has words for this, and does not spell it letter by letter."""
        ...

    def similarities(self, name: str, candidates: Sequence[str]) -> dict[str, float]:
        """Similarity of each candidate that the model knows; nothing where that cannot be told yet."""
        ...


@dataclass(frozen=True)
class NotAtHand:
    """The weights are not here yet: every word may be known, and what lies near is not.

    Args:
        of_a_toy: As of `TextSpace`.
    """

    of_a_toy: bool = False

    def knows(self, words: str) -> bool:
        """Yes."""
        return True

    def similarities(self, name: str, candidates: Sequence[str]) -> dict[str, float]:
        """Nothing."""
        return {}


NOT_AT_HAND = NotAtHand()


class TextEncoderSpace:
    """The first text encoder of a pipeline folder, loaded when it is first asked."""

    def __init__(self, folder: Path, variant: str | None = None) -> None:
        """Say where it is.

        Args:
            folder: The pipeline folder, complete.
            variant: Variant of its weight files.
        """
        self._folder, self._variant = folder, variant

    @classmethod
    def around(cls, tokenizer: Any, encoder: Any) -> TextEncoderSpace:
        """A text encoder that is loaded already.

        Args:
            tokenizer: Its tokenizer.
            encoder: In fp32 on the CPU, in eval mode.
        """
        made = cls(Path())
        made.__dict__ |= {"_tokenizer": tokenizer, "_encoder": encoder}  # What would be loaded when first asked.
        return made

    @property
    def of_a_toy(self) -> bool:
        """Whether the tokenizer has fewer than 5,000 entries; CLIP's has 49,408."""
        return len(self._tokenizer) < _TOY

    def knows(self, words: str) -> bool:
        """Whether any word of three letters or more is more to the tokenizer than its letters.

        A text without such a word passes if there is any token of it.
        """
        long = [word for word in words.split() if len(word) >= 3 and word.isalpha()]
        return any(map(self._whole, long)) if long else bool(self._tokenizer.tokenize(words))

    def similarities(self, name: str, candidates: Sequence[str]) -> dict[str, float]:
        """Cosine of the encoder's last states at the end token, less the mean of all of them.

        Rounded to four digits, so that machines which differ in the last bits rank alike.
        """
        import torch
        from torch.nn.functional import normalize

        known = [word for word in dict.fromkeys(candidates) if all(map(self._whole, word.split()))]
        if not known:
            return {}
        states = torch.cat([self._states((name, *known)[row : row + _AT_ONCE])
                            for row in range(0, len(known) + 1, _AT_ONCE)])  # fmt: skip
        units = normalize(states - states.mean(dim=0), dim=1)
        near = (units[1:] @ units[0]).tolist()
        return {word: round(value, 4) for word, value in zip(known, near, strict=True)}

    def _whole(self, word: str) -> bool:
        """Whether the tokenizer has more of a word than its letters."""
        pieces = [piece.removesuffix("</w>") for piece in self._tokenizer.tokenize(word)]
        return bool(pieces) and (len(word) == 1 or all(len(piece) > 1 for piece in pieces if piece.isalpha()))

    def _states(self, texts: Sequence[str]) -> Tensor:
        import torch

        most = min(int(self._tokenizer.model_max_length), int(self._encoder.config.max_position_embeddings))
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        with torch.no_grad():
            states: Tensor = self._encoder(tokens.input_ids)[0].float()
        # What stands behind the end token is padding, and the encoder looks backwards only.
        return states[torch.arange(len(states)), tokens.attention_mask.sum(dim=1) - 1]

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        return self._loaded(CLIPTokenizer, "tokenizer")

    @cached_property
    def _encoder(self) -> Any:
        import torch
        from transformers import CLIPTextModel

        keywords = {"use_safetensors": True, "dtype": torch.float32}
        if self._variant:
            keywords["variant"] = self._variant
        return self._loaded(CLIPTextModel, "text_encoder", **keywords).eval()

    def _loaded(self, kind: Any, part: str, **keywords: Any) -> Any:
        from safetensors import SafetensorError

        from salun_diffusers.progress import loading_quietly

        try:
            with loading_quietly():
                return kind.from_pretrained(self._folder / part, local_files_only=True, **keywords)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{self._folder / part} cannot be loaded, and neighbours of the concept are found by it: "
                f"{one_line(error, 160)}"
            ) from error
