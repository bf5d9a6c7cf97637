"""Types of flag values: each turns text into a value, or says what the value must be. None takes NaN or infinity."""

import math
from argparse import ArgumentTypeError


def finite_float(text: str) -> float:
    """Returns a number."""
    value = float(text)
    _require(math.isfinite(value), text, "finite")
    return value


def positive_float(text: str) -> float:
    """Returns a number above 0."""
    value = float(text)
    _require(0 < value < math.inf, text, "above 0 and finite")
    return value


def nonnegative_float(text: str) -> float:
    """Returns a number of at least 0."""
    value = float(text)
    _require(0 <= value < math.inf, text, "at least 0 and finite")
    return value


def share(text: str) -> float:
    """Returns a number from 0 to below 1."""
    value = float(text)
    _require(0 <= value < 1, text, "at least 0 and below 1")
    return value


def positive_int(text: str) -> int:
    """Returns a whole number of at least 1."""
    value = int(text)
    _require(value >= 1, text, "at least 1")
    return value


def nonnegative_int(text: str) -> int:
    """Returns a whole number of at least 0."""
    value = int(text)
    _require(value >= 0, text, "at least 0")
    return value


def count_or_share(text: str) -> int | float:
    """Returns a count, or a share from 0.0 to 1.0 where the text has a decimal point."""
    if "." not in text:
        return nonnegative_int(text)
    value = float(text)
    _require(0 <= value <= 1, text, "a whole number, or a share between 0.0 and 1.0")
    return value


def steps_or_minutes(text: str) -> str:
    """Returns the text, a count of steps such as 500, or of minutes such as 10m."""
    try:
        positive_int(text.removesuffix("m"))
    except (ValueError, ArgumentTypeError):
        raise ArgumentTypeError(f"{text} must be steps such as 500, or minutes such as 10m") from None
    return text


def _require(holds: bool, text: str, rule: str) -> None:
    if not holds:
        raise ArgumentTypeError(f"{text} must be {rule}")
