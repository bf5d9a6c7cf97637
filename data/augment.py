"""Training waveforms as other rooms, noises, microphones and telephones would give them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.acoustics import (
    NOISE_SLOPE,
    coloured_noise,
    energy,
    fast_size,
    frequencies_of,
    impulse_response,
    microphone,
    telephone,
    with_codec_noise,
)
from data.index import DataError, probe_all
from data.options import AugmentationOptions
from utils.audio import EXTENSIONS, SAMPLE_RATE, AudioError, load_audio
from utils.errors import printable
from utils.files.folders import walk
from utils.process import is_first_process

ROOM_SECONDS = (0.1, 0.8)  # until a synthetic room's sound has fallen by 60 dB
ROOM_LEVEL = (0.2, 1.2)  # root of the reverberation's energy, the direct sound being 1
LONGEST_ROOM = 2.0  # seconds that are read of an impulse response
ROUNDING = 0.01  # seconds that are read of a noise beyond what is needed: its samples may lie elsewhere
TELEPHONE_FROM = (0.0, 300.0)  # Hz, where a telephone's band begins: at 0 in a recording at 8 kHz from no telephone
TELEPHONE_TO = (3000.0, 3800.0)  # Hz, where it ends
TELEPHONE_LIMIT = SAMPLE_RATE / 4  # Hz, above which sampling at 8 kHz leaves nothing
CODEC_NOISE = (35.0, 60.0)  # dB below the speech of each moment
STREAM = 1  # sets these random numbers apart from others of the same seed


class Augmentation:
    """Changes a waveform; how is a function of the options and the seed alone.

    All filters work on one spectrum, to which the noise is added as a spectrum too. Lengths stay, silence stays
    silent, and what would be louder than full scale is made as loud as that.

    Args:
        options: what the user says of it.
        cache_dir: holds the durations of noises and impulse responses from one run to the next.

    Raises DataError where a folder of noises or impulse responses has none that can be read.
    """

    def __init__(self, options: AugmentationOptions, cache_dir: Path):
        self.options = options
        self.noises = find_sounds("noise_dir", options.noise_dir, cache_dir) if options.noise_dir else []
        self.rooms = find_sounds("reverb_dir", options.reverb_dir, cache_dir) if options.reverb_dir else []

    def __call__(self, waveform: Tensor, seed: int) -> Tensor:
        """Returns the (S,) waveform that the seed gives. Raises AudioError that names a noise or impulse response."""
        peak = float(waveform.abs().max()) if self.options.augments else 0.0
        if not peak:
            return waveform
        random_numbers, gain_db = np.random.default_rng((seed, STREAM)), self.options.gain_db
        gain = 10 ** (random_numbers.uniform(*gain_db) / 20) if gain_db else 1.0
        with _one_thread():
            changed = self._record(waveform / peak, random_numbers)
        level = peak * gain
        return changed * (level / max(1.0, level * float(changed.abs().max())))

    def _record(self, waveform: Tensor, random_numbers: np.random.Generator) -> Tensor:
        """Returns the waveform in a room, with noise, through a microphone and a telephone."""
        options, length = self.options, len(waveform)
        room = self._room(random_numbers) if random_numbers.random() < options.reverb_share else None
        by_telephone = random_numbers.random() < options.telephone_share
        if room is None and not (options.noise_db or options.tilt or by_telephone):
            return waveform
        size = fast_size(length + (0 if room is None else len(room)))
        frequencies, spectrum = frequencies_of(size), torch.fft.rfft(waveform, size)
        if room is not None:
            reverberant = spectrum * torch.fft.rfft(room, size)
            spectrum = reverberant * (energy(spectrum) / energy(reverberant)) ** 0.5
        if options.noise_db:
            spectrum = spectrum + self._noise(frequencies, energy(spectrum), length, size, random_numbers)
        if options.tilt:
            spectrum = spectrum * microphone(frequencies, random_numbers.uniform(-options.tilt, options.tilt))
        if by_telephone:
            band = random_numbers.uniform(*TELEPHONE_FROM), random_numbers.uniform(*TELEPHONE_TO)
            spectrum = spectrum * telephone(frequencies, band) * (frequencies < TELEPHONE_LIMIT)
        changed = torch.fft.irfft(spectrum, size)[:length]
        if not by_telephone:
            return changed
        return with_codec_noise(changed, random_numbers.uniform(*CODEC_NOISE), random_numbers)

    def _room(self, random_numbers: np.random.Generator) -> Tensor:
        """Returns an impulse response that begins with the direct sound. Raises AudioError."""
        if not self.rooms:
            seconds = random_numbers.uniform(*ROOM_SECONDS)
            level = random_numbers.uniform(*ROOM_LEVEL)
            return impulse_response(round(SAMPLE_RATE * seconds), seconds, level, random_numbers)
        path, _ = self.rooms[random_numbers.integers(len(self.rooms))]
        response = load_audio(path, part=(0.0, LONGEST_ROOM))
        if not response.any():
            raise AudioError(path, "silent, so it is no impulse response: take it out of --reverb_dir")
        response = response[response.abs().argmax() :]
        return response / response[0]

    def _noise(self, frequencies: Tensor, speech_energy: float, length: int, size: int,
               random_numbers: np.random.Generator) -> Tensor:
        """Returns the spectrum of noise that lies by a ratio of --noise_db below the speech. Raises AudioError."""
        if self.noises:
            noise, kept = torch.fft.rfft(self._recorded_noise(length, random_numbers), size), 1.0
        else:  # over all of `size`, of which the waveform's length is kept
            noise = coloured_noise(frequencies, random_numbers.uniform(*NOISE_SLOPE), random_numbers)
            kept = length / size
        wanted = speech_energy * 10 ** (-random_numbers.uniform(*self.options.noise_db) / 10)
        given = energy(noise) * kept
        return noise * (wanted / given) ** 0.5 if given else noise

    def _recorded_noise(self, length: int, random_numbers: np.random.Generator) -> Tensor:
        """Returns (length,) samples from a random place of a file, which begins anew at its end."""
        path, seconds = self.noises[random_numbers.integers(len(self.noises))]
        wanted = length / SAMPLE_RATE + ROUNDING
        noise = load_audio(path, part=(random_numbers.uniform(0, max(0.0, seconds - wanted)), wanted))
        return noise.repeat(-(-length // len(noise)))[:length]


def find_sounds(flag: str, folder: str, cache_dir: Path) -> list[tuple[str, float]]:
    """Returns the path and the seconds of each recording in a folder of a flag, and says which cannot be read.

    Raises DataError where none can.
    """
    try:
        paths = [str(parent / name) for parent, names in walk(Path(folder).expanduser()) for name in names
                 if name.lower().endswith(EXTENSIONS)]
    except OSError as error:
        raise DataError(f"--{flag} {printable(folder)}: cannot be listed ({error.strerror})") from None
    found = dict(zip(paths, probe_all(flag, paths, cache_dir), strict=True))
    sounds = sorted((path, seconds) for path, seconds in found.items() if isinstance(seconds, float))
    faults = [f"{printable(path)}: {fault}" for path, fault in found.items() if isinstance(fault, str)]
    if not sounds:
        raise DataError(f"--{flag} {printable(folder)}: no {', '.join(EXTENSIONS)} there that can be read"
                        + (f" ({faults[0]})" if faults else ""))
    if faults and is_first_process():
        print(f"--{flag}: {len(sounds):,} recordings; {len(faults):,} left out, such as {faults[0]}", flush=True)
    return sounds


@contextmanager
def _one_thread() -> Iterator[None]:
    """Computes as a data worker does: how many threads share a sum or a transform can change its last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
