"""Types of flag values: each turns text into a value, or says what the value must be. None takes NaN or infinity."""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Annotated

MOST_TIMES = 1000  # that an epoch may have a training set; more is a slip of the hand
MOST_SUBWORDS = 1_000_000  # of a vocabulary; SentencePiece takes no number beyond 31 bits

LARGEST = (1 << 32) - 1  # of counts and seeds: what is beyond is more than packages take


def _number(kind: type, rule: str, holds: Callable[[float], bool]) -> Callable[[str], int | float]:
    """Returns an argparse type: a number of this kind for which the rule holds."""

    def parse(text: str) -> int | float:
        value = kind(text)
        if not holds(value):
            raise ArgumentTypeError(f"{text} must be {rule}")
        return value

    parse.__name__ = kind.__name__  # which argparse names: "invalid int value"
    return parse


finite_float = _number(float, "finite", math.isfinite)
positive_float = _number(float, "above 0 and finite", lambda value: 0 < value < math.inf)
nonnegative_float = _number(float, "at least 0 and finite", lambda value: 0 <= value < math.inf)
share = _number(float, "at least 0 and below 1", lambda value: 0 <= value < 1)
probability = _number(float, "from 0 to 1", lambda value: 0 <= value <= 1)
decibels = _number(float, "from -100 to 100", lambda value: -100 <= value <= 100)
positive_int = _number(int, f"at least 1 and at most {LARGEST}", lambda value: 1 <= value <= LARGEST)
PositiveInt = Annotated[int, positive_int]  # of a constructor: a size or a number of layers
nonnegative_int = _number(int, f"at least 0 and at most {LARGEST}", lambda value: 0 <= value <= LARGEST)
subword_count = _number(int, f"at least 1 and at most {MOST_SUBWORDS:,}", lambda value: 1 <= value <= MOST_SUBWORDS)
thread_count = _number(int, "1 to 1024", lambda value: 1 <= value <= 1024)
speed = _number(float, "0.1 to 10", lambda value: 0.1 <= value <= 10)
_proportion = _number(float, "a whole number, or a share between 0.0 and 1.0", lambda value: 0 <= value <= 1)


def count_or_share(text: str) -> int | float:
    """Returns a count, or a share from 0.0 to 1.0 where the text has a decimal point."""
    return (_proportion if "." in text else nonnegative_int)(text)


def positive_count_or_share(text: str) -> int | float:
    """Returns a count of at least 1, or a share above 0.0 where the text has a decimal point."""
    value = count_or_share(text)
    if not value > 0:
        raise ArgumentTypeError(f"{text} must be above 0")
    return value


def steps_or_minutes(text: str) -> str:
    """Returns the text, a count of steps such as 500, or of minutes such as 10m."""
    try:
        positive_int(text.removesuffix("m"))
    except (ValueError, ArgumentTypeError):
        raise ArgumentTypeError(f"{text} must be steps such as 500, or minutes such as 10m") from None
    return text


def name_and_factor(text: str) -> tuple[str, float]:
    """Returns the parts of a name that may have a factor, as in `hibari*0.5`; 1 where it has none."""
    name, star, number = text.partition("*")
    try:
        factor = positive_float(number) if star else 1.0
    except (ValueError, ArgumentTypeError):
        factor = None
    if not name or factor is None or factor > MOST_TIMES:
        raise ArgumentTypeError(f"{text!r} must be a name, or a name and how many times an epoch has it, above 0 and "
                                f"at most {MOST_TIMES}, as in hibari*0.5")
    return name, factor


def weighted_name(text: str) -> str:
    """Returns the text, a name that may have a factor."""
    name_and_factor(text)
    return text
