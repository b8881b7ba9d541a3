"""Why something could not be had from the Hub, in a sentence: transformers and datasets say it in five ways.

They wrap what huggingface_hub raised, which wraps what HTTP said; the innermost that has a meaning decides.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from runner.errors import NotFoundError


def not_loaded(what: str, name: str, revision: str, error: BaseException) -> NotFoundError:
    """`what` ("model", "data set") of that name could not be loaded because of `error`: the sentence and a way out."""
    at = f" at revision '{revision}'" if revision else ""
    why, hint = _why(error)
    return NotFoundError(f"No {what} '{name}'{at} could be loaded: {why}.", hint=hint)


def _why(error: BaseException) -> tuple[str, str]:
    from huggingface_hub import constants, errors

    chain = list(_causes(error))

    def met(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    statuses = {getattr(getattr(one, "response", None), "status_code", None) for one in chain}
    if constants.HF_HUB_OFFLINE or met(errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and it is not in the cache", "Unset it, or name a local directory."
    if met(errors.RevisionNotFoundError):
        return "the Hub knows no branch, tag or commit of that name", "Its page on the Hub lists them."
    if met(errors.GatedRepoError):
        return "it is gated", f"Accept its licence on its page on the Hub. {_token()}"
    if 401 in statuses or 403 in statuses:
        return "access was refused", _token()
    if met(errors.RepositoryNotFoundError) or any(type(one).__name__ == "DatasetNotFoundError" for one in chain):
        return "the Hub knows none of that name, or it is private", f"Check the name. {_token()}"
    if any(_is_network(one) for one in chain):
        return "the Hub does not answer", "Is this machine on the network? A local directory needs none."
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(".") if lines else type(error).__name__), "Name a local directory or a Hub id."


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_network(error: BaseException) -> bool:
    unreachable = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT)
    named = any(base.__name__ in ("TransportError", "ConnectionError", "gaierror") for base in type(error).__mro__)
    return named or (isinstance(error, OSError) and error.errno in unreachable)


def _token() -> str:
    from huggingface_hub import get_token

    if get_token():
        return "The token that is set here may not read it."
    return "HF_TOKEN is not set here; private and gated ones need it."
