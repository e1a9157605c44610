"""What all sections of the configuration share."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1, le=10**9)]
NonNegativeInt = Annotated[int, Field(ge=0, le=10**9)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _reference(value: str) -> str:
    if ":" not in value:
        raise ValueError(f"expected module:function, got {value!r}")
    return value


Reference = Annotated[str, AfterValidator(_reference)]
"""A function of a user's own, as ``module:function``."""


class Section(BaseModel):
    """Base of all configuration sections: frozen, and unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python counts with True and False; people who write them mean something else."""
        leaves = set(_leaves(cls.model_fields[str(info.field_name)].annotation))
        if leaves & {int, float} and not leaves & {bool, Any} and _holds_truth(value):
            raise ValueError("expected a number")
        return value


def _leaves(annotation: Any) -> list[Any]:
    args = [a for a in get_args(annotation) if a is not Ellipsis]
    if hasattr(annotation, "__metadata__"):  # of Annotated, the first is the type
        args = args[:1]
    if not args:
        return [annotation if isinstance(annotation, type) else type(annotation)]  # of a Literal
    return [leaf for a in args for leaf in _leaves(a)]


def _holds_truth(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_truth, value))
    return isinstance(value, bool)
