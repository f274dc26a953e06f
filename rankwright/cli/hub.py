"""Upload of a model folder to the Hugging Face hub, for the verb `push`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rankwright.errors import ConfigurationError, ModelError, ResourceNotFoundError, StorageError
from rankwright.llms.endpoint import model_place
from rankwright.manifests import check_model


def model_folder(folder: Path) -> Path:
    """`model/` of a run folder, or the folder itself.

    Raises:
        ResourceNotFoundError: there is no such folder.
        ModelError: neither holds a config.json with safetensors weights, or those of a run are damaged.
    """
    if not folder.is_dir():
        raise ResourceNotFoundError(f"Folder {folder} does not exist; wanted a run or model folder. Check the path.")
    found = Path(model_place(str(folder)))
    check_model(found)
    if (found / "config.json").is_file() and any(found.glob("*.safetensors")):
        return found
    raise ModelError(
        f"Folder {folder} holds no model; wanted config.json and *.safetensors in it or in its model/. "
        "Finish the run, or name the folder of the model."
    )


def files_of(model: Path) -> dict[str, int]:
    """Name below the folder -> bytes, of every file that is not hidden."""
    paths = (path.relative_to(model) for path in sorted(model.rglob("*")) if path.is_file())
    shown = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    return {path.as_posix(): (model / path).stat().st_size for path in shown}


def verdict_of_run(model: Path) -> str:
    """The verdict in result.json of the run that the model folder belongs to; empty where there is none."""
    result = model.parent / "result.json"
    if model.name != "model" or not result.is_file():
        return ""
    try:
        return str(json.loads(result.read_text(encoding="utf-8")).get("verdict", ""))
    except (ValueError, AttributeError):  # a damaged record of the run is no reason to keep its model back
        return ""


def check_repo_id(repo_id: str) -> None:
    """Raises ConfigurationError for a name that the hub would not take."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if "/" not in repo_id:
        raise ConfigurationError(f"Repository is '{repo_id}' (it has no owner); wanted OWNER/NAME.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise ConfigurationError(f"Repository is '{repo_id}' ({reason}); wanted OWNER/NAME.") from error


def upload(model: Path, files: Sequence[str], repo_id: str, *, private: bool) -> str:
    """Uploads the files in one commit and returns the address of the repository.

    Raises:
        ConfigurationError: there is no token, or the repository is public where a private one was asked for.
        StorageError: the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise ConfigurationError(
            f"There is no Hugging Face token for {repo_id}; wanted one that may write. "
            "Set HF_TOKEN, or run hf auth login."
        )
    api = HfApi()
    with _named_errors(repo_id, api.endpoint):
        address = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise ConfigurationError(
                f"Repository {repo_id} exists and is public; wanted a private one (--private). "
                "Make it private on the hub, or choose another name."
            )
        # Patterns with the very names: what was listed is what goes up.
        api.upload_folder(
            repo_id=repo_id, folder_path=model, allow_patterns=list(files), commit_message="Upload by rankwright"
        )
    return str(address)


@contextmanager
def _named_errors(repo_id: str, endpoint: str) -> Iterator[None]:
    # HTTPError is that of whichever HTTP client the library uses: httpx in its first versions, httpx2 in later ones.
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        OfflineModeIsEnabled,
    )

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConfigurationError(
            f"{repo_id} cannot be uploaded in offline mode; unset HF_HUB_OFFLINE, or use --dry-run."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = "Check the hub's status page and try again."
        if status in (401, 403):
            advice = "Use a token that may write to this owner (HF_TOKEN, or hf auth login)."
        reason = str(error).strip().split("\n")[-1]
        raise StorageError(f"Hub {endpoint} refused {repo_id} with status {status} ({reason}). {advice}") from error
    except (HTTPError, OSError) as error:
        raise StorageError(
            f"Hub {endpoint} cannot be reached for {repo_id} ({error or type(error).__name__}). "
            "Check the connection, the proxy and HF_ENDPOINT; --dry-run needs none."
        ) from error
