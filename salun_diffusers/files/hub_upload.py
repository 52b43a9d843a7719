"""Uploading to the hub: all that can be refused is refused before the work begins, and one commit does the rest.

A repository is made or filled, never mixed: it must be new, empty, or hold an earlier state of the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError, one_line

_OWN_FILES = {".gitattributes"}  # of any new repository
_NAMED = 3  # of the files that stand in the way

IsOurs = Callable[[Mapping[str, Any]], bool]
"""Whether the metadata of a repository's card are those of what is to be uploaded."""


@dataclass(frozen=True)
class HubTarget:
    """Where something is uploaded.

    Args:
        name: ``NAME`` of a repository of the token's owner, or ``OWNER/NAME``.
        token: The user's; None for the one that is stored.
        private: Whether the repository must be a private one.
    """

    name: str
    token: str | None = field(repr=False)
    private: bool


@dataclass(frozen=True)
class HubPlace:
    """A target that was looked at.

    Args:
        repository: ``OWNER/NAME``.
        files: What lies there.
        commit: State of what lies there; None of a repository that does not exist.
    """

    repository: str
    files: tuple[str, ...]
    commit: str | None


def require_name(name: str) -> None:
    """Refuse what cannot be a repository's name, without asking anybody.

    Raises:
        UserError: Saying what it must be.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, flags=re.ASCII):  # Older versions pass a line break.
            raise HFValidationError(name)
    except HFValidationError as error:
        raise UserError(
            f"--hub_model_id must be NAME or OWNER/NAME, of letters, digits, '-', '_' and '.'; got {name!r}."
        ) from error


def look_at(target: HubTarget, is_ours: IsOurs) -> HubPlace:
    """Ask the hub whether a target can be uploaded to. Nothing is made there.

    Args:
        target: Where.
        is_ours: Tells an earlier state from anything else.

    Raises:
        UserError: If the hub cannot be reached, the token may not write there, or something else lies there.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if not (target.token or get_token()):
        raise UserError(
            "--push_to_hub needs a token of the hub that may write: `hf auth login`, HF_TOKEN or --hub_token."
        )
    api = HfApi(token=target.token)
    with _refusals(target, "--push_to_hub cannot ask the hub who you are"):
        user = api.whoami()
    repository = target.name if "/" in target.name else f"{user['name']}/{target.name}"
    _require_rights(user, repository)
    with _refusals(target, f"--push_to_hub cannot look at {repository}"):
        try:
            found = api.model_info(repository)
        except RepositoryNotFoundError:
            return HubPlace(repository, (), None)
    files = tuple(file.rfilename for file in found.siblings or ())
    others = [name for name in files if name not in _OWN_FILES]
    if others and not is_ours(found.card_data.to_dict() if found.card_data is not None else {}):
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        raise UserError(
            f"--hub_model_id {repository} exists and holds something else ({', '.join(others[:_NAMED])}{more}): only a "
            "repository that is new, empty, or holds this erasure already is written to; choose another name."
        )
    if target.private and not found.private:
        raise UserError(
            f"--hub_private_repo asks for a private repository, and {repository} exists and is public: make it private "
            "in its settings, or choose another --hub_model_id."
        )
    return HubPlace(repository, files, found.sha)


def _require_rights(user: Mapping[str, Any], repository: str) -> None:
    """Refuse a token that cannot write to a repository, as far as the hub tells before one tries."""
    owner = repository.split("/")[0]
    owners = [str(user["name"]), *(str(one.get("name")) for one in user.get("orgs") or ())]
    if owner not in owners:
        raise UserError(
            f"--hub_model_id {repository} is not yours: the token is that of {owners[0]}, who may write to "
            f"{', '.join(owners)}."
        )
    told = (user.get("auth") or {}).get("accessToken") or {}
    scopes = (told.get("fineGrained") or {}).get("scoped") or ()
    may = [str(right) for one in scopes for right in one.get("permissions") or ()]
    if told.get("role") == "read" or (told.get("role") == "fineGrained" and may and "repo.write" not in may):
        raise UserError(
            f"--push_to_hub needs a token that may write, the one of {owners[0]} only reads: make one with the role "
            "`write` in the hub's settings."
        )


def upload(target: HubTarget, place: HubPlace, files: Mapping[str, Path], message: str) -> str:
    """Put files into a repository, which is made if need be, and take out what else lies there.

    Args:
        target: Where.
        place: What `look_at` found there; if it has changed since, nothing is written.
        files: Name in the repository → file.
        message: Of the commit.

    Returns:
        The repository's address.

    Raises:
        UserError: If the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=target.token)
    operations: list[Any] = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
    stale = set(place.files) - set(files) - _OWN_FILES
    operations += [CommitOperationDelete(name) for name in sorted(stale)]
    with _refusals(target, f"--push_to_hub cannot upload to {place.repository}"):
        made = api.create_repo(place.repository, private=target.private, exist_ok=True)
        api.create_commit(place.repository, operations, commit_message=message, parent_commit=place.commit)
    return str(made)


@contextmanager
def _refusals(target: HubTarget, what: str) -> Iterator[None]:
    """Tell whatever the hub or the network raises in one line, which never holds the token.

    Raises:
        UserError: Whatever was raised.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except UserError:
        raise
    except OfflineModeIsEnabled as error:
        raise UserError(f"{what}: HF_HUB_OFFLINE is set; unset it, or leave --push_to_hub out.") from error
    except Exception as error:  # The hub raises a dozen unrelated types.
        code = getattr(getattr(error, "response", None), "status_code", None)
        meant = {
            401: "it does not accept the token; make a new one, or `hf auth login` again",
            403: "the token may not write there; give it the role `write`",
            412: "somebody else wrote to it in the meantime",
        }
        told = one_line(f"{type(error).__name__}: {error}")
        for token in filter(None, (target.token, get_token())):
            told = told.replace(token, "***")
        said = meant.get(code, told[:200]) if code else told[:200]
        raise UserError(f"{what}: {said.rstrip('. ')}.") from None  # Tracebacks do not show the token either.
