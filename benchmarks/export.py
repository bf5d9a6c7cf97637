"""How large is a network in each kind of file, how fast does it run there, and how many words does it get wrong?

    python -m benchmarks.export --checkpoint X.ckpt --data_root FOLDER --sets test

The weights of a checkpoint as float32 and float16 safetensors, which PyTorch runs in float32, and as ONNX files in 32
and in 8 bits, which onnxruntime runs. All of them transcribe the same recordings greedily, in turn. The real-time
factor is processor time for a second of audio on one thread (`--threads`), the reading of files apart.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import benchmark_parser, clock_of, medians, prepare, show
from benchmarks.recognisers import references
from models import Transcriber
from models.export.__main__ import main as export_onnx
from utils.audio import SAMPLE_RATE, load_audio
from utils.checkpoint.__main__ import export
from utils.metrics import count_errors
from utils.tokenizer import normalize


def write_files(checkpoint: str, folder: Path) -> dict[str, Path]:
    """Returns the files of every kind, by its name."""
    files = {"float32, safetensors": folder / "a.safetensors", "float16, safetensors": folder / "b.safetensors",
             "float32, ONNX": folder / "c.onnx", "8-bit integers, ONNX": folder / "d.onnx"}
    paths = list(files.values())
    export([checkpoint], paths[0], torch.float32)
    export([checkpoint], paths[1], torch.float16)
    export_onnx([checkpoint, str(paths[2])])
    export_onnx([checkpoint, str(paths[3]), "--int8"])
    return files


def transcribing(path: Path, waveforms: list[torch.Tensor]) -> Callable[[], list[str]]:
    """Returns a case: the texts of all waveforms, eight at a time, by the network of a file."""
    def refuse(error) -> None:
        raise error

    transcriber = Transcriber(path)
    return lambda: [transcript.text for transcript in transcriber.transcribe_all(waveforms, refuse)]


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=3)
    parser.set_defaults(threads=1)
    parser.add_argument("--checkpoint", default="english", help="whose network is exported")
    parser.add_argument("--data_root", type=Path, default=Path("data"), help="folder of the corpora")
    parser.add_argument("--sets", nargs="+", default=["test-other"], help="splits to transcribe")
    parser.add_argument("--limit", type=int, help="recordings, spread over all of them")
    args = parser.parse_args()
    prepare(args)
    texts = {path: text for name in args.sets for path, text in references(args.data_root, name).items()}
    paths = list(texts)[:: max(1, len(texts) // args.limit) if args.limit else 1][: args.limit]
    waveforms = sorted(((load_audio(path), normalize(texts[path])) for path in paths), key=lambda pair: len(pair[0]))
    waveforms, expected = [list(column) for column in zip(*waveforms, strict=True)]
    audio = sum(map(len, waveforms)) / SAMPLE_RATE
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(args.checkpoint, Path(folder))
        cases = {name: transcribing(path, waveforms) for name, path in files.items()}
        seconds = medians(cases, rounds=args.rounds, clock=clock_of(args))
        errors = {name: count_errors(expected, case()) for name, case in cases.items()}
        sizes = {name: sum(part.stat().st_size for part in path.parent.glob(f"{path.stem}.*"))  # a speller is a part
                 for name, path in files.items()}
        rows = [{"file": name, "MB": sizes[name] / 1e6, "real-time factor": seconds[name] / audio,
                 "WER %": 100 * errors[name].wer, "CER %": 100 * errors[name].cer} for name in files]
    show("exported networks", rows, json_path=args.json, recordings=len(waveforms), seconds=round(audio),
         words=errors[rows[0]["file"]].words)


if __name__ == "__main__":
    main()
