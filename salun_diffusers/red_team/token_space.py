"""The input of a pipeline's text encoders: token ids, their embeddings, and any vectors in an embedding's place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BatchEncoding

from salun_diffusers.diffusion.families.family import Conditions, Family
from salun_diffusers.diffusion.families.latent_unet import LatentUNetFamily
from salun_diffusers.errors import UserError


@dataclass(frozen=True)
class Sentence:
    """Prompts with free places in them, as each text encoder reads them.

    Args:
        ids: For each encoder, `(n, length)`; at free places whatever token.
        places: Positions of the free tokens, `(n, k)`, the same for all encoders.
    """

    ids: tuple[Tensor, ...]
    places: Tensor

    def rows(self, index: Tensor) -> Sentence:
        """Some of the prompts, by number."""
        index = index.to(self.places.device)
        return Sentence(tuple(ids[index] for ids in self.ids), self.places[index])

    @classmethod
    def joined(cls, sentences: Sequence[Sentence]) -> Sentence:
        """Prompts one below the other; of those with fewer free places the last one is named again and again."""
        most = max(one.places.shape[1] for one in sentences)
        places = [
            torch.cat([one.places, one.places[:, -1:].expand(-1, most - one.places.shape[1])], dim=1)
            for one in sentences
        ]
        ids = zip(*(one.ids for one in sentences), strict=True)
        return cls(tuple(torch.cat(same) for same in ids), torch.cat(places))


class TokenSpace:
    """Words of a family's text encoders. All encoders of a pipeline read the same token ids (CLIP's are of one BPE).

    Attributes:
        matrices: Embeddings of the vocabulary for each encoder, `(|V|, width)`, in fp32; constants.
        limit: The longest sequence, start and end included.
    """

    def __init__(self, family: Family) -> None:
        """Look at the text encoders.

        Raises:
            UserError: If the family has none.
        """
        if not isinstance(family, LatentUNetFamily):
            raise UserError(
                f"A text encoder is required, which attacks by words search through; {family.folder} has none. Probes "
                "(relearning, completion) work without."
            )
        self._family = family
        self._layers = [_embedding_of(family, suffix) for suffix in family.encoders]
        self.matrices = tuple(layer.weight.detach().float() for layer in self._layers)
        self._tokenizers = [getattr(family.pipe, f"tokenizer{suffix}") for suffix in family.encoders]
        self.limit = family.tokens("").input_ids.shape[1]

    @property
    def special(self) -> frozenset[int]:
        """Ids that are no words: start, end, padding, unknown."""
        return frozenset(int(number) for tokenizer in self._tokenizers for number in tokenizer.all_special_ids)

    @property
    def words(self) -> Tensor:
        """Ids of the words, ascending: what a search may choose from."""
        shared = min(len(matrix) for matrix in self.matrices)
        return torch.tensor([number for number in range(shared) if number not in self.special])

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as they are read; a prompt that has them again where `round_trip` says so."""
        return str(self._tokenizers[0].decode([int(number) for number in ids])).strip()

    def length(self, prompt: str) -> int:
        """Tokens of a prompt, without start and end; no more than can be read."""
        return len(self.own(prompt))

    def meaning(self, words: str) -> list[Tensor]:
        """For each encoder the mean of the embeddings of some words' tokens, `(width,)`.

        Raises:
            UserError: If there are no tokens.
        """
        count = self.length(words)
        if count == 0:
            raise UserError(f"At least one word is required to begin with, got {words!r}.")
        found = []
        for suffix, matrix in zip(self._family.encoders, self.matrices, strict=True):
            ids = self._family.tokens(words, suffix).input_ids[0, 1 : count + 1]
            found.append(matrix[ids.to(matrix.device)].mean(dim=0))
        return found

    def with_tokens(self, sentence: Sentence, tokens: Tensor) -> list[tuple[int, ...]]:
        """Ids of whole prompts, between start and end.

        Args:
            sentence: n prompts with k free places.
            tokens: What is put there, `(n, k)`.
        """
        ids = sentence.ids[0].scatter(1, sentence.places, tokens.to(sentence.places.device)).tolist()
        filler = sentence.ids[0].tolist()
        end = self._tokenizers[0].eos_token_id
        return [tuple(row[1 : free.index(end, 1)]) for row, free in zip(ids, filler, strict=True)]

    def own(self, prompt: str) -> tuple[int, ...]:
        """A prompt's tokens, without start, end and padding."""
        ids = self._family.tokens(prompt).input_ids[0].tolist()
        return tuple(ids[1 : ids.index(self._tokenizers[0].eos_token_id, 1)])

    def sentence(self, prompts: Sequence[str], places: Sequence[int]) -> Sentence:
        """Prompts with free tokens put into them; what does not fit any more is cut at the end.

        Args:
            prompts: The words.
            places: Where free tokens stand between a prompt's own, counted without the start token: `[0, 0, 0]` is
                three before the first word, `[3, 6]` one after the third and one after the sixth; beyond the last
                word they stand behind it.

        Raises:
            UserError: If no sequence can hold so many.
        """
        if len(places) > self.limit - 2:
            raise UserError(f"{len(places)} free tokens are too many: the text encoder reads {self.limit - 2}.")
        rows = [self._with_free(prompt, sorted(places)) for prompt in prompts]
        ids = tuple(torch.stack([row[0][number] for row in rows]) for number in range(len(self.matrices)))
        return Sentence(ids, torch.stack([row[1] for row in rows]))

    def _with_free(self, prompt: str, places: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Ids for each encoder and the positions of the free tokens."""
        found, at = [], list[int]()
        filler = int(self.words[0])
        for suffix, tokenizer in zip(self._family.encoders, self._tokenizers, strict=True):
            ids = self._family.tokens(prompt, suffix).input_ids[0].tolist()
            end = ids.index(tokenizer.eos_token_id, 1)
            own, padding = ids[1:end], ids[end + 1 :]
            own = own[: self.limit - 2 - len(places)]
            mixed: list[int] = []
            at = []
            for number, token in enumerate([*own, -1]):
                for _ in [place for place in places if place == number or (token == -1 and place > number)]:
                    at.append(1 + len(mixed))
                    mixed.append(filler)
                if token != -1:
                    mixed.append(token)
            pad = padding[-1] if padding else int(tokenizer.pad_token_id)
            row = [ids[0], *mixed, tokenizer.eos_token_id]
            found.append(torch.tensor(row + [pad] * (self.limit - len(row)), device=self._family.device))
        return found, torch.tensor(at, device=self._family.device)

    def conditions(self, sentence: Sentence, vectors: Sequence[Tensor]) -> Conditions:
        """Conditions of sentences with vectors at their free places; gradients reach the vectors.

        A hook overwrites the output of each encoder's embedding layer, since CLIP's forward takes ids only.

        Args:
            sentence: n prompts with k free places.
            vectors: For each encoder, `(n, k, width)`.
        """
        read = [BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)}) for ids in sentence.ids]
        rows = torch.arange(len(sentence.places), device=sentence.places.device).unsqueeze(1)
        with ExitStack() as hooks:
            for layer, put in zip(self._layers, vectors, strict=True):
                hooks.enter_context(_overwritten(layer, rows, sentence.places, put))
            return {name: tensor.float() for name, tensor in self._family.states(read).items()}

    def of_ids(self, sentence: Sentence, ids: Tensor) -> Conditions:
        """Conditions of sentences with tokens at their free places.

        Args:
            sentence: n prompts with k free places.
            ids: `(n, k)`.
        """
        with torch.no_grad():
            return self.conditions(sentence, [matrix[ids.to(matrix.device)] for matrix in self.matrices])

    def nearest(self, vectors: Tensor, encoder: int = 0) -> Tensor:
        """The word whose embedding is nearest by cosine, of each vector.

        Args:
            vectors: `(…, width)`.
            encoder: Whose embeddings.

        Returns:
            Ids, `(…)`.
        """
        words = self.words.to(vectors.device)
        matrix = F.normalize(self.matrices[encoder][words], dim=-1)
        return words[(F.normalize(vectors.detach().float(), dim=-1) @ matrix.T).argmax(dim=-1)]


def _embedding_of(family: LatentUNetFamily, suffix: str) -> nn.Embedding:
    layer: Any = getattr(family.pipe, f"text_encoder{suffix}").get_input_embeddings()
    if not isinstance(layer, nn.Embedding):
        raise UserError(f"text_encoder{suffix} of {family.folder} has no table of token embeddings, which is required.")
    return layer


@contextmanager
def _overwritten(layer: nn.Embedding, rows: Tensor, places: Tensor, vectors: Tensor) -> Iterator[None]:
    """Within the block the layer's output has these vectors at these places."""

    def put(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output.index_put((rows, places), vectors.to(output.dtype))

    handle = layer.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
