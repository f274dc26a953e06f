"""Gate S13: Schemathesis, with valid and invalid data and NUL, finds no 5xx, no status that the description leaves out
and no answer that it does not describe. The server has a reader, so that /answer is an operation like the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gates.mutants import Mutant
from tests.gates.sizes import FULL, tries
from tests.load_kit import KEY, stub_server

pytestmark = [pytest.mark.gates, pytest.mark.timeout(3000)]

THIS = "tests/gates/test_gate_s13.py"
DIALECTS, SCHEMAS = "rankwright/server/dialects.py", "rankwright/server/schemas.py"
MUTANTS = [
    Mutant(
        "S13",
        THIS,
        DIALECTS,
        '        raise Problem(422, f"{name} is empty; wanted text.", param=name)\n',
        "        raise KeyError\n",
    ),
    Mutant(
        "S13",
        THIS,
        SCHEMAS,
        '"id", "model", "results", "usage"]',
        '"id", "model", "results", "price"]',
    ),
    Mutant("S13", THIS, SCHEMAS, '"required": ["answer", "reader"]', '"required": ["answer", "price"]'),
]
# A request may fit its description and be over a limit that no schema can say: as many ids as documents.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 422]
[checks.negative_data_rejection]
expected-statuses = [400, 401, 404, 405, 408, 413, 415, 421, 422, 431]
"""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "unsupported_method",
)


def test_the_description_holds(tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    program = "from schemathesis.cli import schemathesis; schemathesis()"
    command = [sys.executable, "-c", program, "--config-file", "schemathesis.toml", "--no-color", "run"]
    phases = "examples,coverage,fuzzing,stateful" if FULL else "coverage,fuzzing"
    options = {
        "--header": f"Authorization: Bearer {KEY}",
        "--max-examples": str(tries(1000, 5)),
        "--mode": "all",
        "--checks": ",".join(CHECKS),
        "--phases": phases,
        "--seed": "1",
        "--generation-allow-x00": "true",
    }
    with stub_server(tmp_path / "stub", "--reader") as server:
        flat = [text for pair in options.items() for text in pair]
        run = subprocess.run(
            [*command, f"{server.url}/openapi.json", *flat], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    print(run.stdout[-600:])
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert "11 selected / 11 total" in run.stdout
    assert "Tested: 11" in run.stdout
