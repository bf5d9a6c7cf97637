"""Constructor arguments: declared once, found along the bases."""

import inspect
from typing import Literal

import pytest

from models import Recognizer
from utils.options import Option, constructor_options


class Base:
    """Has two options.

    Args:
        size: how large.
        kind: one of two,
            by name.
    """

    def __init__(self, *, size: int = 3, kind: Literal["a", "b"] = "a"):
        self.size, self.kind = size, kind


class Middle(Base):
    """Has no constructor of its own."""


class Derived(Middle):
    """Has one more, and another default.

    Args:
        more: one more, at 50 %.
        size: how small.
    """

    def __init__(self, *, more: float, size: int = 1, **shared):
        super().__init__(size=size, **shared)
        self.more = more


class Alone(Base):
    """Hands nothing on."""

    def __init__(self, *, own: bool = False):
        super().__init__()
        self.own = own


def test_options_are_collected_along_the_bases():
    kind = Option("kind", Literal["a", "b"], "a", "one of two, by name")
    assert constructor_options(Base) == constructor_options(Middle) == [Option("size", int, 3, "how large"), kind]
    assert constructor_options(Derived) == [Option("more", float, inspect.Parameter.empty, "one more, at 50 %"),
                                            Option("size", int, 1, "how small"), kind]


def test_options_that_no_constructor_hands_on_are_left_out():
    assert constructor_options(Alone) == [Option("own", bool, False, "")]


@pytest.mark.parametrize("model", Recognizer.registry)
def test_every_option_of_a_model_has_a_default_and_a_help(model):
    options = constructor_options(Recognizer.registry[model])
    assert {"n_mels", "feature_norm", "freq_masks", "alphabet"} <= {option.name for option in options}
    assert all(option.default is not inspect.Parameter.empty and option.help for option in options)
    assert set(Recognizer.build(model).config) == {"model", *(option.name for option in options)}
