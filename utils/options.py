"""Constructor arguments as options: declared once, in a signature and its docstring; used as flags and as config."""

import inspect
import re
import typing
from typing import Any, NamedTuple


class Option(NamedTuple):
    """A keyword-only constructor argument."""

    name: str
    type: Any  # its annotation
    default: Any  # inspect.Parameter.empty where there is none
    help: str  # its text under `Args:` in the class's docstring


def constructor_options(cls: type) -> list[Option]:
    """Returns the keyword-only arguments of a class, its own ones first, then those of its bases.

    A base's arguments count as long as every constructor before it takes `**kwargs`, to hand them on.
    """
    options = {}
    for owner in cls.__mro__:
        if "__init__" not in vars(owner):
            continue
        helps = _helps(owner)
        hints = typing.get_type_hints(owner.__init__, include_extras=True)
        parameters = inspect.signature(owner.__init__).parameters.values()
        for one in parameters:
            if one.kind is one.KEYWORD_ONLY and one.name not in options:
                options[one.name] = Option(one.name, hints[one.name], one.default, helps.get(one.name, ""))
        if all(one.kind is not one.VAR_KEYWORD for one in parameters):
            break
    return list(options.values())


def _helps(cls: type) -> dict[str, str]:
    """Returns the texts under `Args:` of a class and its bases: a dataclass has its bases' arguments as well."""
    pages = [inspect.cleandoc(owner.__doc__ or "") for owner in reversed(cls.__mro__)]  # Python 3.13 cleans by itself
    return {name: " ".join(text.split()).rstrip(".") for page in pages
            for name, text in re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)$", page, flags=re.MULTILINE)}
