"""What fields of cluster settings may hold: texts that cannot break out of their place."""

import re
from ipaddress import ip_address
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _text(pattern: str, allowed: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text, flags=re.ASCII):
            raise ValueError(f"allowed: {allowed}")
        return text

    return AfterValidator(check)


def _ip(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError("allowed: an IP address such as 127.0.0.1 or 0.0.0.0") from None


Count = Annotated[int, Field(ge=0, strict=True)]
Positive = Annotated[int, Field(ge=1, strict=True)]
Name = Annotated[
    str,
    _text(
        "[a-z]([a-z0-9-]{0,38}[a-z0-9])?",
        "a-z, 0-9 and '-', starting with a letter, at most 40 characters",
    ),
]
Word = Annotated[
    str, _text(r"(?!-)[\w./:@+=,-]+", "letters, digits and _ . / : @ + = , - without a leading '-'")
]
Ip = Annotated[str, AfterValidator(_ip)]
LocalPath = Annotated[
    str, _text(r"~?/[\w./@+=-]+", "a path that starts with / or ~/, without spaces")
]
AbsolutePath = Annotated[str, _text(r"/[\w./@+=-]+", "a path that starts with /, without spaces")]
Line = Annotated[str, Field(min_length=1)]


class Settings(BaseModel):
    """Frozen, no unknown keys, and the string under a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
