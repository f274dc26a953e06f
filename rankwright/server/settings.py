"""What a server lets in, and from whom."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from rankwright.errors import ConfigurationError

KEY_VARIABLE = "RANKWRIGHT_API_KEY"


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a request, keys and names. `docs/serving.md` says what is answered beyond each limit."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    """Any of them opens the server; two of them let keys be changed without a break. Never shown."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the server may be addressed besides its own; "*" for any. Without them one that others reach
    takes any."""
    strict_model: bool = False
    """Whether `model` of a request has to be a served name."""
    max_body: int = 4 * 2**20
    """Bytes."""
    max_documents: int = 1000
    max_query_characters: int = 16_384
    max_document_characters: int = 100_000
    timeout: float = 30.0
    """Seconds that a request may take."""
    drain: float = 8.0
    """Seconds that requests have to end after the server was told to."""

    def __post_init__(self) -> None:
        if not self.keys and not is_loopback(self.host):
            raise ConfigurationError(
                f"Host is {self.host}, which other machines reach, and there is no key; wanted one. Put it into the "
                f"environment variable {KEY_VARIABLE}, or serve on 127.0.0.1."
            )
        if any(not key.isascii() or not key.isprintable() or " " in key for key in self.keys):
            raise ConfigurationError(
                f"A key in {KEY_VARIABLE} has characters that a header cannot carry (keys are not shown); wanted "
                "printable ASCII without spaces. Make one with `openssl rand -hex 32`."
            )

    def __repr__(self) -> str:
        return f"ServerSettings(host={self.host!r}, port={self.port}, keys={len(self.keys)})"

    def is_host_allowed(self, header: str) -> bool:
        """Whether a Host header (name, or name and port) names this server. A page of another site that has pointed
        its own name at this address says its own name."""
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        allowed = {host.lower() for host in self.allowed_hosts}
        if "*" in allowed or name in allowed or name == self.host.lower():
            return True
        # Reached from elsewhere a server has a key, which another site's page does not know.
        return name in ("localhost", "127.0.0.1", "::1") or (not allowed and not is_loopback(self.host))


def keys_of(value: str) -> tuple[str, ...]:
    """The keys in an environment variable, separated by commas.

    >>> keys_of("one, two,")
    ('one', 'two')
    """
    return tuple(key.strip() for key in value.split(",") if key.strip())


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
