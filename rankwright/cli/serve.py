"""Verb `serve`: rerankers behind HTTP."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rankwright.cli.common import OutputKind, emit, say
from rankwright.cli.options import Backend, ReaderModel, Windows
from rankwright.errors import ConfigurationError, MissingDependencyError
from rankwright.llms.endpoint import bare_place, check_name
from rankwright.rerankers import REFERENCE, check_backend_name, check_named, refuse_writer
from rankwright.rerankers.onnx_folder import is_export
from rankwright.rerankers.ranking import Scorer

if TYPE_CHECKING:
    from rankwright.engine import Engine
    from rankwright.rerankers.windows import Windows as WindowsName
    from rankwright.server.answers import ServedReader
    from rankwright.server.settings import ServerSettings

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
EXAMPLES = r"""
**Examples**

    rankwright serve runs/mine/model --port 8000

    curl localhost:8000/v1/rerank -H 'content-type: application/json' \
      -d '{"query": "who wrote Faust?", "documents": ["Goethe.", "A fist."]}'

With a key, for other machines; two models, chosen by the field `model`:

    export RANKWRIGHT_API_KEY=$(openssl rand -hex 32)

    rankwright serve runs/mine reference --host 0.0.0.0 --backend auto

For a program that takes a free port and reads from one line which:

    rankwright serve runs/mine --port 0 --output json
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog=EXAMPLES)(serve)


def serve(
    models: list[str] = typer.Argument(..., metavar="MODEL...", help="Folders, hub names or reference."),
    port: int = typer.Option(8000, min=0, max=65535, help="0 takes a free one."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; one that others reach needs a key."),
    backend: Backend = "torch",
    windows: Windows = None,
    device: str = typer.Option("cpu", help="Torch device."),
    max_length: int | None = typer.Option(None, min=1, help="Tokens of query and document; the model's own without."),
    max_queue: int = typer.Option(2048, min=1, help="Documents that may wait; beyond it requests are refused (429)."),
    timeout: float = typer.Option(30.0, min=0.001, help="Seconds that a request may take (504)."),
    drain: float = typer.Option(8.0, min=1, help="Seconds that requests have to end when the server is told to stop."),
    max_documents: int = typer.Option(1000, min=1, help="Documents of a request (422)."),
    max_body_bytes: int = typer.Option(4 * 2**20, min=1, help="Bytes of a body (413)."),
    batch_documents: int = typer.Option(64, min=1, help="Documents that are scored at once, of all requests."),
    patience: float = typer.Option(
        4.0, min=0.1, help="Seconds of one batch, or of one turn of tokenising, after which /ready says no."
    ),
    reader: str | None = typer.Option(
        None, help="Who answers at /answer and on the page: embedded, a local causal LM, or an endpoint's base URL."
    ),
    reader_model: ReaderModel = None,
    api_key_env: str | None = typer.Option(
        None,
        help="Environment variable that holds the key of the reader's endpoint. Default OPENAI_API_KEY. The server's "
        "own key comes from RANKWRIGHT_API_KEY.",
    ),
    top_k: int = typer.Option(3, min=1, help="Passages of a ranking that the page shows to the reader."),
    strict_model: bool = typer.Option(False, help="Refuse names of models that are not served (404)."),
    allowed_host: list[str] = typer.Option([], help="Further host name under which clients may call; * for any."),
    log_level: str = typer.Option("info", help="debug, info, warning or error."),
    output: OutputKind = typer.Option(
        OutputKind.text, help="json prints one line on standard output when the port is taken: url, models, keys."
    ),
) -> int:
    """Serve rerankers over HTTP, in the dialects of Cohere, Jina, vLLM and Text Embeddings Inference.

    Keys stand in the environment variable RANKWRIGHT_API_KEY, several with commas, and clients send one as
    `Authorization: Bearer KEY`. Without keys only this machine is served.
    """
    check_extra()
    from rankwright.engine import Engine, EngineSettings
    from rankwright.server.settings import KEY_VARIABLE, ServerSettings, keys_of

    _set_up_log(log_level)
    settings = ServerSettings(
        host=host,
        port=port,
        keys=keys_of(os.environ.get(KEY_VARIABLE, "")),
        allowed_hosts=tuple(allowed_host),
        strict_model=strict_model,
        max_body=max_body_bytes,
        max_documents=min(max_documents, max_queue),
        timeout=timeout,
        drain=drain,
    )
    limits = EngineSettings(max_waiting=max_queue, batch_documents=batch_documents, timeout=timeout, patience=patience)
    joined = windows.value if windows else None
    engine = Engine(opener(models, backend, device, max_length, joined), limits)
    given = (reader, reader_model, api_key_env, top_k, device, timeout)
    listen(models, engine, settings, _reader_opener(*given), output)
    return 0


def listen(
    models: Sequence[str],
    engine: Engine,
    settings: ServerSettings,
    reader: Callable[[], ServedReader | None] = lambda: None,
    output: OutputKind = OutputKind.text,
) -> None:
    """Serves until it is told to stop. The port is taken before anything is loaded: one in use is told at once. Who
    asks while a reader of this machine is loaded waits for it."""
    from rankwright.server.app import create_app
    from rankwright.server.run import bound_socket, run

    with bound_socket(settings.host, settings.port) as listener:
        address = f"[{settings.host}]" if ":" in settings.host else settings.host
        guarded = f"{len(settings.keys)} key{'s' * (len(settings.keys) > 1)}" if settings.keys else "no key"
        url = f"http://{address}:{listener.getsockname()[1]}"
        say(f"Loading {', '.join(models)} for {url} ({guarded})")
        if output is OutputKind.json:
            emit({"url": url, "models": served_names(models), "keys": len(settings.keys)})
        app = create_app(engine, settings, reader=reader())
        run(app, engine, settings, listener, lambda: say(f"Ready on {url}"))


def _reader_opener(
    reader: str | None, model: str | None, api_key_env: str | None, top_k: int, device: str, timeout: float
) -> Callable[[], ServedReader | None]:
    """Gives the reader of the options, without a cache: a server's questions are not those of a run. It gives up with
    the server. Settings are checked here; one of this machine is loaded when it is called."""
    from rankwright.cli.build import build_reader, checked_device
    from rankwright.cli.settings import ReaderSettings
    from rankwright.server.answers import ServedReader

    if reader is None:
        given = next((flag for flag, v in (("--reader-model", model), ("--api-key-env", api_key_env)) if v), None)
        if given:
            raise ConfigurationError(f"{given} was given without --reader; wanted both or none.")
        return lambda: None
    default = ReaderSettings()
    settings = ReaderSettings(
        reader=reader,
        model=model or default.model,
        api_key_env=api_key_env or default.api_key_env,
        deadline=timeout,
    )

    def opened() -> ServedReader | None:
        built = build_reader(settings, None, "serve", device)
        return None if built is None else ServedReader(built, top_k)

    if settings.is_endpoint:
        served = opened()
        return lambda: served
    _check_reader(reader, top_k)
    checked_device(device)
    return opened


def _check_reader(reader: str, top_k: int) -> None:
    """Whether there may be such a reader on this machine, before it is loaded, and before anyone is told an address."""
    if reader == "embedded":
        from rankwright.readers.extractive import MAX_PASSAGES

        if top_k > MAX_PASSAGES:
            raise ConfigurationError(
                f"--top-k is {top_k}; wanted at most {MAX_PASSAGES}, because the embedded reader reads no more."
            )
    elif reader != "none":
        check_name(bare_place(reader))


def opener(
    models: Sequence[str],
    backend: str,
    device: str = "cpu",
    max_length: int | None = None,
    windows: WindowsName | None = None,
) -> Callable[[], Mapping[str, Scorer]]:
    """Opens the models by short names, when it is called.

    Raises:
        ResourceNotFoundError, ConfigurationError, ModelError: a folder is not there or is no model's, or two models
            would have one name.
    """
    check_backend_name(backend)
    for model in models:
        check_named(model)
        if model != REFERENCE:
            refuse_writer(model)
    names = served_names(models)
    needs_torch = not all(map(is_export, models))  # exports open without transformers, and faster
    if needs_torch and device != "cpu":
        from rankwright.cli.build import checked_device

        with contextlib.suppress(ImportError):  # load says what is missing
            checked_device(device)

    def opened() -> Mapping[str, Scorer]:
        from rankwright.cli.build import quiet_bars
        from rankwright.rerankers import load

        if needs_torch:
            with contextlib.suppress(ImportError):
                quiet_bars()
        return {
            name: load(model, backend, device=device, max_length=max_length, windows=windows)
            for name, model in zip(names, models, strict=True)
        }

    return opened


def served_names(models: Sequence[str]) -> list[str]:
    """What clients call the models: of a folder its last name, of a run's folder `model` that of the run.

    Raises:
        ConfigurationError: two of them would have one name.
    """
    names: list[str] = []
    for model in models:
        path = Path(model)
        is_folder = path.is_dir()
        full = path.resolve()
        names.append(((full.parent.name or full.name) if full.name == "model" else full.name) if is_folder else model)
    if len(set(names)) < len(names):
        raise ConfigurationError(
            f"Models {', '.join(models)} would be served as {', '.join(names)}; wanted different names. "
            "Rename a folder."
        )
    return names


def check_extra() -> None:
    """MissingDependencyError where a package of the server is not installed."""
    for package in ("fastapi", "uvicorn", "httptools", "prometheus_client"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingDependencyError(
                f'Package {package} is not installed; run pip install "rankwright[serve]". Extra onnx, with which an '
                "export is served without PyTorch, brings it too."
            ) from error


def _set_up_log(level: str) -> None:
    levels = ("debug", "info", "warning", "error")
    if level not in levels:
        raise ConfigurationError(f"--log-level is '{level}'; wanted one of {', '.join(levels)}.")
    # Libraries stay at their warnings: what they say at debug has headers, and with some of them texts.
    logging.basicConfig(level="WARNING", format=LOG_FORMAT)
    logging.getLogger("rankwright").setLevel(level.upper())
