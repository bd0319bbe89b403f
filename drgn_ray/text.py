"""Text that others read later: in pages that a browser shows, and in files that go from hand to hand."""

from __future__ import annotations

import re

from drgn_ray.errors import ConfigError

# Who logs in by http (a token needs no password), a password before any other host, and what signs a link.
_SECRET = re.compile(
    r"(https?://)[^/\s?#]+(?=@)|(://[^/@\s]*:)[^/\s]+(?=@)"
    r"|([?&][^=&]*(?:sig|token|secret|password|key)[^=&]*=)[^&\s]+",
    re.IGNORECASE,
)
KEYS_ELSEWHERE = "keep keys where the storage's client finds them (its environment variables, ~/.aws, ~/.config/fsspec)"
_MARKUP = {"<": "&lt;", "|": "\\|", "[": "\\["}


def counted(count: float, name: str) -> str:
    """Write how many there are of something: "1 CPU", "4 CPUs"."""
    return f"{count:g} {name}{'' if count == 1 else 's'}"


def as_cell(value: object) -> str:
    """Write a value into a Markdown table, in which it is text and nothing else."""
    return "".join(_MARKUP.get(letter, letter) for letter in " ".join(str(value).split()))


def refuse_secrets(address: str, remedy: str) -> None:
    """Refuse an address with a password or a signature in it: it would be kept in runs, stores and logs.

    Raises
    ------
    ConfigError
        Shows the address without them.
    """
    shown = _SECRET.sub(r"\1\2\3***", address)
    if shown != address:
        raise ConfigError(shown, "it holds a secret, which would be kept in files and logs", remedy)
