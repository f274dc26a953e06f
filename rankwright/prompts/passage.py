"""What a template that joins a passage's title and text must look like; read by settings and by the cross-encoder."""

from __future__ import annotations

import re

from rankwright.errors import ConfigurationError

FIELD = re.compile(r"\{([^{}]*)\}")
KNOWN = ("title", "text")


def checked_template(template: str) -> str:
    """The template, if it has {text}, may be {title}, and no other field.

    Raises:
        ConfigurationError: naming what is missing or unknown.

    >>> checked_template("{title}: {text}")
    '{title}: {text}'
    """
    fields = FIELD.findall(template)
    unknown = [f"{{{name}}}" for name in fields if name not in KNOWN]
    if unknown or "text" not in fields:
        found = f"has the unknown field {unknown[0]}" if unknown else "lacks {text}"
        raise ConfigurationError(
            f"Template is '{template}', which {found}; wanted {{text}} and, for titles, {{title}}. Correct --template."
        )
    return template
