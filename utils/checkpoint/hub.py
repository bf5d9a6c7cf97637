"""Networks on the Hugging Face Hub: `hf://user/name`, perhaps with `@revision`, stands for a checkpoint."""

import re
from pathlib import Path
from typing import NoReturn

SCHEME = "hf://"
NAME = r"[\w.-]+/[\w.-]+"
ADDRESS = re.compile(rf"{SCHEME}({NAME})(?:@([\w./-]+))?")


class HubError(ValueError):
    """The reason why a network cannot be had from the Hub or brought there, without its address."""


def is_address(path) -> bool:
    """Returns whether this is where a network lies on the Hub, rather than the path of a file."""
    return str(path).startswith(SCHEME)


def download(address: str, file: str) -> Path:
    """Returns a file of a network on the Hub, which the library keeps in its cache and checks.

    What broke off goes on where it stopped; without a network the copy in the cache is taken. Raises HubError
    with the reason, ImportError without the library, and OSError where the cache cannot be written.
    """
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise HubError(f"must be {SCHEME}user/name or {SCHEME}user/name@revision")
    hub = import_library()
    try:
        return Path(hub.hf_hub_download(match[1], file, revision=match[2]))
    except hub.errors.HTTPError as error:
        refuse(error)
    except hub.errors.LocalEntryNotFoundError:
        raise HubError(f"{hub.constants.ENDPOINT} cannot be reached, and there is no copy in the cache") from None
    except hub.errors.HFValidationError as error:
        raise HubError(str(error)) from None


def upload(folder, name: str, *, private: bool) -> str:
    """Uploads the files in a folder to a model, which is made where there is none, and returns the model's address.

    Args:
        folder: has files alone.
        name: user/name.
        private: whether a new model is for its owner alone.

    Raises HubError with the reason, and ImportError without the library.
    """
    if not re.fullmatch(NAME, name):
        raise HubError("must be user/name, as the Hub is to call it")
    hub = import_library()
    files = [hub.CommitOperationAdd(path.name, path) for path in sorted(Path(folder).iterdir())]
    try:
        address = hub.create_repo(name, private=private, exist_ok=True)
        hub.create_commit(name, files, commit_message="Upload a network")
        return str(address)
    except hub.errors.HTTPError as error:
        refuse(error)
    except hub.errors.LocalTokenNotFoundError as error:
        raise HubError(str(error)) from None


def refuse(error) -> NoReturn:
    """Raises HubError that says in one line what the Hub, or the way to it, answered."""
    from huggingface_hub import constants, errors

    reasons = {errors.GatedRepoError: "its owner must let you in first: ask on its page",
               errors.RepositoryNotFoundError: "the Hub has no such model, or it is private: log in by `hf auth login`",
               errors.RevisionNotFoundError: "the Hub has no such revision of it",
               errors.EntryNotFoundError: "not a network of this project: it lacks the file of its weights"}
    reason = next((reason for kind, reason in reasons.items() if isinstance(error, kind)), None)
    if reason is None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = (f"{constants.ENDPOINT} answered {status}" if status else
                  f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})")
        reason = "log in by `hf auth login`, with a token that may write" if status in (401, 403) else reason
    raise HubError(reason) from None


def import_library():
    """Returns the library, its warnings silenced. Raises ImportError that says how to install it."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise ImportError(f"{SCHEME} needs huggingface_hub: pip install -r requirements-export.txt") from None
    huggingface_hub.logging.set_verbosity_error()
    return huggingface_hub
