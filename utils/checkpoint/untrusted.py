"""Loaders for files that anybody may have made: they run no code of the file, and take no more memory than its size.

`torch.load(weights_only=True)` runs no foreign code, but it builds what the file asks for, such as a
bytearray of a terabyte, and decompresses what is compressed. Checkpoints of this project need little of that.
"""

import json
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

KNOWN = re.compile(r"collections OrderedDict|torch \w+Storage|torch\._utils _rebuild_tensor_v2")
PLAIN = {"GLOBAL", "REDUCE", "BUILD", "PERSID"}  # of the opcodes that name or call something, those that may be there
CALLING = PLAIN | {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
LARGEST_NUMBER = 100_000  # in a network's options: sizes, milliseconds, counts
SUFFIX, VERSION = ".safetensors", "1"  # of a shared network; the version stands in its metadata
DAMAGE = (RuntimeError, EOFError, OSError, LookupError, ValueError, AttributeError, TypeError, AssertionError,
          ArithmeticError, MemoryError, struct.error, zipfile.BadZipFile)  # what readers make of damaged bytes
FOREIGN = "not a checkpoint of this project"


class ValidationError(ValueError):
    """The reason why a file is refused, without its path."""


def load_saved(path) -> dict:
    """Returns what torch.save wrote, on the CPU. Raises ValidationError."""
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(content, Path(path).stat().st_size)
    except ValidationError:
        raise
    except pickle.UnpicklingError:
        raise ValidationError(f"{FOREIGN}: it holds more than plain values") from None
    except DAMAGE as error:
        raise ValidationError(f"not a checkpoint, or damaged ({str(error)[:120] or 'cut off'})") from None
    return content


def load_shared(path) -> tuple[dict, dict[str, Tensor]]:
    """Returns a network's config and `state_dict` from a safetensors file, on the CPU. Raises ValidationError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format_version") != VERSION:
                raise ValidationError("not a network of this project, or of another version: `python -m "
                                      "utils.checkpoint export` writes those")
            return json.loads(metadata["config"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except ValidationError:
        raise
    except (SafetensorError, *DAMAGE) as error:
        raise ValidationError(f"damaged, or no safetensors file ({error})") from None


def check_network(checkpoint) -> None:
    """Raises ValidationError unless a checkpoint holds a model's name with plain options, and tensors by name."""
    recognizer, state_dict = (checkpoint.get(key) if isinstance(checkpoint, dict) else None
                              for key in ("recognizer", "state_dict"))
    check_config(recognizer)
    if not isinstance(state_dict, dict) or not all(isinstance(name, str) and isinstance(value, Tensor)
                                                   for name, value in state_dict.items()):
        raise ValidationError(f"{FOREIGN} (train.py writes those)")


def check_config(config) -> None:
    """Raises ValidationError unless this is a model's name with plain options."""
    if not isinstance(config, dict) or not isinstance(config.get("model"), str):
        raise ValidationError(f"{FOREIGN} (train.py writes those)")
    for name, value in config.items():
        if not isinstance(name, str) or not _is_option(value):
            raise ValidationError(f"damaged: no network has such an option {str(name)[:40]!r}")


def _is_option(value) -> bool:
    """Returns whether this is a text, a truth value, a finite number that a size may have, or a list of these."""
    if isinstance(value, list):
        return len(value) <= LARGEST_NUMBER and not any(isinstance(one, list) for one in value) and all(
            map(_is_option, value))
    if isinstance(value, int | float):
        return -LARGEST_NUMBER <= value <= LARGEST_NUMBER  # False for NaN
    return value is None or isinstance(value, str)


def _check_archive(path) -> None:
    """Checks the zip archive that torch.save writes. Raises ValidationError, OSError, and what zipfile raises."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        archive.fp.seek(0, 2)
        if any(one.compress_type != zipfile.ZIP_STORED for one in members) or (
                sum(one.file_size for one in members) > archive.fp.tell()):
            raise ValidationError("damaged: it states more bytes than it has")
        for member in members:
            if member.filename.endswith(".pkl"):
                _check_pickle(archive.read(member))


def _check_pickle(content: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in CALLING - PLAIN or (opcode.name == "GLOBAL" and not KNOWN.fullmatch(argument)):
            named = f" ({argument.replace(' ', '.')[:60]})" if isinstance(argument, str) else ""
            raise ValidationError(f"{FOREIGN}: it holds more than plain values{named}")


def _check_tensors(content, size: int) -> None:
    """Raises ValidationError where the tensors in nested `content` take more than the `size` bytes of their file.

    A tensor may state any shape over a single number.
    """
    storages = {}
    for tensor in _tensors(content):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise ValidationError(f"damaged: it states {tensor.numel():,} numbers where it has fewer")
    if sum(storages.values()) > size:
        raise ValidationError("damaged: it states more numbers than it has bytes")


def _tensors(content) -> Iterator[Tensor]:
    """Yields every tensor in dictionaries, lists and tuples, however deep, which may hold themselves."""
    waiting, seen = [content], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, dict | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            waiting += one.values() if isinstance(one, dict) else one
