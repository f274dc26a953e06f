"""Where a model is and what holds its key, checked so that no secret gets into settings and nothing is sought in vain.

Settings stand in run folders, reports, ledgers and the names of readers. A key belongs into an environment variable
alone, so what looks like a secret is refused, and the refusal does not repeat it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from rankwright.errors import ConfigurationError, ModelError, ResourceNotFoundError
from rankwright.llms.folders import refuse_others_files
from rankwright.manifests import MODEL, check_has_model, check_model

SECRET_NAME = re.compile(
    r"(^|[_-])(api[_-]?key|key|secret|password|passwd|authorization|credentials?|auth|token)$", re.IGNORECASE
)
"""Names whose values are not shown; max_tokens and api_key_env are none."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/.*)?")
_PASSWORD = re.compile(r"[^/@]*:[^/@]+@")
VLLM = "vllm:"
"""Stands before the place of a local model that vLLM is to run."""


def checked_url(base_url: str) -> str:
    """The address without a trailing slash; `/v1` where it has no path.

    Raises:
        ConfigurationError: no http or https address, or one with a user name, password, query or fragment.
    """
    try:
        parts = urlsplit(base_url.strip())
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_valid = urlsplit(""), False
    good = parts.scheme in ("http", "https") and parts.hostname and port_is_valid
    if parts.username is not None or parts.password is not None or (not good and "@" in base_url):
        raise ConfigurationError(
            "Base URL of the language model holds a user name or password; leave them out and put the key into an "
            "environment variable."
        )
    if parts.query or parts.fragment or (not good and ("?" in base_url or "#" in base_url)):
        raise ConfigurationError(
            "Base URL of the language model holds a query or fragment; give scheme, host, port and path only, "
            "like http://localhost:8000/v1."
        )
    if not good:
        raise ConfigurationError(
            f"Base URL of the language model is {base_url!r}; give an http or https address like http://localhost:8000/v1."
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") or "/v1", "", ""))


def is_address(place: str) -> bool:
    """Whether a place is an address and no path. One with a password is known without its scheme, too, so that
    `checked_url` refuses it and does not say it again.

    >>> is_address("http://localhost:8000"), is_address("me:secret@host/v1"), is_address("runs/mine@2")
    (True, True, False)
    """
    return "://" in place or _PASSWORD.match(bare_place(place)) is not None


def checked_variable(name: str) -> str:
    """The name, if an environment variable may have it; keys of most services have a hyphen.

    Raises:
        ConfigurationError: it may not.
    """
    if not _VARIABLE.fullmatch(name):
        raise ConfigurationError(
            "Setting api_key_env is not the name of an environment variable (and not shown, for it may be a key); "
            "wanted a name of letters, digits and underscores. Put the key into a variable, and give its name."
        )
    return name


def bare_place(place: str) -> str:
    """Folder or hub name of a local model, without the word for what runs it.

    >>> bare_place("vllm:runs/rearank/model"), bare_place("runs/rearank/model")
    ('runs/rearank/model', 'runs/rearank/model')
    """
    return place.removeprefix(VLLM)


def check_sampling_names(names: Iterable[str]) -> None:
    """Raises ConfigurationError where a sampling parameter looks like a secret."""
    secret = next((name for name in names if SECRET_NAME.search(name)), None)
    if secret is not None:
        raise ConfigurationError(
            f"Sampling parameter {secret} looks like a secret, and sampling parameters stand in reports; wanted none. "
            "Put the key into an environment variable, and give its name as api_key_env."
        )


def model_place(name: str) -> str:
    """Of a run's folder the model in it; every other name stays as it is. A run keeps its settings in a config.json of
    its own, so it is known by the one in its folder `model`.

    Raises:
        ModelError: a file of the folder is not its own.
    """
    inside = Path(bare_place(name)) / MODEL
    if not (inside / "config.json").is_file():
        refuse_others_files(bare_place(name))
        return name
    refuse_others_files(str(inside))
    return f"{VLLM if name.startswith(VLLM) else ''}{inside}"


def check_model_place(name: str) -> None:
    """Whether a model can be opened under a name, and whether one of a run is as the run left it. Every byte is read:
    once for each opening, at the door.

    Raises:
        ConfigurationError, ResourceNotFoundError: as `check_name`.
        ModelError: a file of the run's model is damaged.
    """
    check_name(name)
    if Path(name).exists():
        check_model(Path(model_place(name)))


def _check_folder(path: Path) -> None:
    """What exists is never meant for the hub, and that it is no model is seen before any library is imported."""
    if not path.is_dir():
        beside = (path.parent / "config.json").is_file()
        step = f"Name the folder that it is in: {path.parent}." if beside else "Check the path."
        raise ModelError(f"Model '{path}' is a file; wanted a model's folder. {step}")
    # That an adapter is no model is told by what opens it.
    wanted = ("config.json", f"{MODEL}/config.json", "adapter_config.json")
    if not any((path / name).is_file() for name in wanted):
        raise ModelError(
            f"Model folder '{path}' holds no config.json; wanted one with config.json, tokenizer files and safetensors "
            "weights. Check the path."
        )


def check_scheme(name: str) -> None:
    """Raises ConfigurationError where a model's name is an address without http://."""
    if _HOST_AND_PORT.fullmatch(name):
        raise ConfigurationError(
            f"Model '{name}' looks like a server's address without its scheme; wanted a folder, a hub name or a base "
            f"URL. For a server write http://{name.removesuffix('/v1').rstrip('/')}/v1."
        )


def check_name(name: str) -> None:
    """Whether a name can be a model's. Names of the hub are NAME or OWNER/NAME; to seek any other there takes a minute
    where there is no connection, and ends with a puzzling message.

    Raises:
        ConfigurationError: it is an address without http://.
        ResourceNotFoundError: it is the path of a folder that is not there, or of a run without its model.
        ModelError: it is the path of a file, or of a folder without config.json.
    """
    path = Path(name)
    check_has_model(path.parent if path.name == MODEL else path)
    if path.exists():
        _check_folder(path)
        return
    check_scheme(name)
    if name.startswith(("/", ".", "~", "runs/")) or len(path.parts) > 2:
        there = next(parent for parent in (*path.parents, Path("/")) if parent.exists())
        lost = path.relative_to(there).parts[0]
        near = difflib.get_close_matches(lost, [entry.name for entry in there.iterdir()] if there.is_dir() else [], n=1)
        hint = f"Did you mean '{there / near[0]}'?" if near else "Check the path."
        raise ResourceNotFoundError(
            f"Model folder '{name}' does not exist ('{there}' has no '{lost}'); wanted a model's folder, or a name of "
            f"the hub. {hint}"
        )
