"""What the page offers: systems, each one network with one way of decoding, and the limits of a visit."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.components.streaming import StreamingError
from models.inference.streaming import StreamingRecognizer
from models.inference.transcriber import Transcriber
from models.recognizer import Recognizer
from utils.audio import SAMPLE_RATE, AudioError, read_windows
from utils.checkpoint.pretrained import find_folder
from utils.cli.decoding import own_decoding
from utils.cli.parser import OneLineParser, add_constructor_flags
from utils.cli.values import positive_float, positive_int
from utils.decoding.options import DecodingOptions
from utils.errors import UsageError
from utils.report.html import utterance_images
from utils.report.report import short_names
from utils.types import Transcript

READ_SECONDS = 30  # of a recording that are read at once
DRAWN_SECONDS = 20  # of a recording that its figure shows, from the beginning


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of what visitors may take of the machine.

    Args:
        max_seconds: longest recording.
        max_megabytes: largest upload.
        max_waiting: jobs in the queue, beyond which further ones are refused.
        max_streams: visitors who speak at the same time; others are told to come back.
        stream_seconds: longest speech into the microphone of the live tab.
    """

    max_seconds: Annotated[float, positive_float] = 300.0
    max_megabytes: Annotated[int, positive_int] = 30
    max_waiting: Annotated[int, positive_int] = 40
    max_streams: Annotated[int, positive_int] = 4
    stream_seconds: Annotated[float, positive_float] = 120.0


class Answer(NamedTuple):
    """A system's transcript of a recording."""

    system: str
    transcript: Transcript
    waveform: Tensor  # (S,) float32, 16 kHz
    compute_seconds: float


def load_networks(checkpoints: list[str], device: torch.device) -> dict[str, tuple[str, Recognizer]]:
    """Returns each checkpoint and its network by the name that visitors see, which holds no folder of this machine.

    Raises UserError.
    """
    networks = {}
    for checkpoint in checkpoints:
        name = checkpoint if find_folder(checkpoint) else next(iter(short_names([checkpoint])))
        if name in networks:
            raise UsageError(f"--checkpoint {checkpoint}: another one is called {name} as well")
        networks[name] = checkpoint, Recognizer.from_checkpoint(checkpoint, device)
    return networks


def build_systems(networks: dict[str, tuple[str, Recognizer]]) -> dict[str, Transcriber]:
    """Returns a transcriber per network and way of decoding, by name, each tried once. Raises UserError."""
    systems = {}
    for name, (checkpoint, network) in networks.items():
        beam = beam_options(checkpoint)
        systems[f"{name}, greedy"] = Transcriber(network)
        systems[f"{name}, beam search{' with its n-gram' if beam.lm else ''}"] = Transcriber(network, beam)
    for transcriber in systems.values():  # which loads its n-gram, or refuses it, before the first visit
        transcriber.transcribe(np.zeros(SAMPLE_RATE, dtype=np.float32))
    return systems


def beam_options(checkpoint: str) -> DecodingOptions:
    """Returns beam search with the n-gram and the weights that a pretrained network brings along, if it does.

    Raises UsageError.
    """
    parser, beam = OneLineParser(), ["--decoder=beam"]
    add_constructor_flags(parser, DecodingOptions)
    own = own_decoding(parser.parse_args(beam), checkpoint, parser)
    return DecodingOptions.from_flags(parser.parse_args([*own, *beam]))


def find_streaming(networks: dict[str, tuple[str, Recognizer]]) -> tuple[Recognizer | None, str]:
    """Returns the first network that can stream and its name, or None and why the last one cannot."""
    reason = ""
    for name, (_, network) in networks.items():
        try:
            StreamingRecognizer(network)
        except StreamingError as error:
            reason = f"{name}: {error}"
        else:
            return network, name
    return None, reason


def recognize(systems: dict[str, Transcriber], names: list[str], path: str | None, limits: Limits) -> list[Answer]:
    """Returns what each of the named systems makes of the recording of a visitor. Raises UserError."""
    if not path:
        raise UsageError("there is no recording yet: record one or upload a file")
    waveform, answers = read_recording(path, limits.max_seconds), []
    for name in names:
        begin = perf_counter()
        transcript = systems[name].transcribe(waveform)._replace(audio=Path(path).name)
        answers.append(Answer(name, transcript, waveform, perf_counter() - begin))
    return answers


def read_recording(path: str, longest: float) -> Tensor:
    """Returns (S,) samples of a file, of which no more than `longest` seconds are ever read.

    Raises AudioError that names the file, not its folder.
    """
    name, parts = Path(path).name, []
    try:
        for part in read_windows(path, step=READ_SECONDS):
            parts.append(part)
            if sum(map(len, parts)) > longest * SAMPLE_RATE:
                raise AudioError(name, f"longer than the {longest:g} s that this page takes")
    except AudioError as error:
        raise AudioError(name, error.reason) from None
    return torch.cat(parts)


def draw(network: Recognizer, answer: Answer) -> dict[str, bytes]:
    """Returns images of a network's outputs over the beginning of a recording, by their kind."""
    text = " ".join(word.word for word in answer.transcript.words if word.end <= DRAWN_SECONDS)
    return utterance_images(network, answer.waveform[: DRAWN_SECONDS * SAMPLE_RATE], text)
