"""How many words are wrong, and how long does it take: the shipped networks and ready-made recognisers?

    python -m benchmarks.recognisers --data_root FOLDER --sets librispeech/test kathleen/test --figure recognisers.png
    python -m benchmarks.recognisers ... --others whisper pocketsphinx --python .venv-others/bin/python

Each recogniser is one process that transcribes a whole set, from its start to its end; the real-time factor is that
time for a second of audio. Texts are compared after one normalisation: lower case, numbers in words, no punctuation.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import benchmark_parser, prepare, show
from data import readers
from utils.audio import probe_seconds
from utils.metrics import ErrorCounts, count_errors
from utils.normalizers import ProseCleaner
from utils.tokenizer import ENGLISH, CharTokenizer, normalize

ROOT = Path(__file__).resolve().parent.parent


class Run(NamedTuple):
    """Result of one recogniser on one set."""

    errors: ErrorCounts
    seconds: float
    megabytes: float  # peak memory


def references(data_root: Path, name: str) -> dict[str, str]:
    """Returns the text of each recording of a split by its path."""
    entries, _ = readers.list_split(data_root, name)
    return {str(entry.audio): entry.text for entry in entries}


def own_systems(checkpoint: str, streaming: str | None) -> dict[str, list[str]]:
    """Returns the commands of this project's ways to transcribe: the paths of recordings are added to them."""
    ours = [sys.executable, "inference.py", "--output_format", "json", "--checkpoint"]
    systems = {"greedy": [*ours, checkpoint, "--audio"],
               "beam search": [*ours, checkpoint, "--decoder", "beam", "--audio"]}
    if streaming:
        systems["streaming"] = [sys.executable, "-m", "benchmarks.recognisers", "--stream_files", streaming]
    return systems


def other_systems(python: str, names: list[str]) -> dict[str, list[str]]:
    """Returns the commands of ready-made recognisers, as `other_recognisers.py` has them."""
    return {name: [python, "benchmarks/other_recognisers.py", name] for name in names}


def run_system(command: list[str], texts: dict[str, str]) -> Run:
    """Transcribes the recordings of `texts` in one process, and compares its output with their texts."""
    paths, by_argument = list(texts), command[-1] == "--audio"
    started = time.perf_counter()
    process = subprocess.Popen([*command, *(paths if by_argument else [])], cwd=ROOT, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with process.stdin as stdin:
        stdin.write("" if by_argument else "".join(f"{path}\n" for path in paths))
    lines = process.stdout.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status or len(lines) != len(paths):
        raise SystemExit(f"{' '.join(command)}: status {status}, {len(lines)} texts of {len(paths)} recordings")
    hypotheses = [json.loads(line)["text"] if by_argument else line for line in lines]
    clean = ProseCleaner(CharTokenizer(alphabet=ENGLISH))
    errors = count_errors([clean(normalize(text)) for text in texts.values()],
                          [clean(normalize(text)) for text in hypotheses])
    return Run(errors, seconds, usage.ru_maxrss / 1024)


def stream_files(checkpoint: str) -> None:
    """Transcribes the recordings that standard input names in chunks of 0.25 s, as from a microphone."""
    from models import Recognizer
    from models.inference.streaming import StreamingRecognizer
    from utils.audio import SAMPLE_RATE, load_audio

    network = Recognizer.from_checkpoint(checkpoint)
    for line in sys.stdin:
        recognizer = StreamingRecognizer(network)
        chunks = load_audio(line.rstrip("\n")).split(SAMPLE_RATE // 4)
        print("".join(recognizer.feed(chunk) for chunk in chunks) + recognizer.finish(), flush=True)


def draw(rows: list[dict], path: Path) -> None:
    """Writes the figure: word error rate against real-time factor, a panel per set, a point per recogniser."""
    import matplotlib.pyplot as plt

    sets = list(dict.fromkeys(row["set"] for row in rows))
    figure, panels = plt.subplots(1, len(sets), figsize=(3.4 * len(sets), 3.4), sharey=True, squeeze=False)
    for panel, name in zip(panels[0], sets, strict=True):
        for row in (row for row in rows if row["set"] == name):
            panel.plot(row["real-time factor"], row["WER %"], "o", color="C0" if row["ours"] else "C1")
            panel.annotate(row["recogniser"], (row["real-time factor"], row["WER %"]), fontsize=8,
                           xytext=(4, 4), textcoords="offset points")
        panel.set(title=name, xlabel="seconds of work per second of audio", xscale="log", xlim=(0.01, 2), ylim=(0, 105))
        panel.set_xticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("word error rate, %")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=1)
    parser.add_argument("--data_root", type=Path, default=Path("data"), help="folder of the corpora")
    parser.add_argument("--sets", nargs="+", default=["test-other"], help="splits to transcribe")
    parser.add_argument("--checkpoint", default="english", help="network for greedy decoding and beam search")
    parser.add_argument("--streaming", help="network for streaming; without one it is left out")
    parser.add_argument("--others", nargs="*", default=[], help="ready-made recognisers: whisper, pocketsphinx")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the ready-made ones")
    parser.add_argument("--figure", type=Path, help="NAME.png of error rates and real-time factors")
    parser.add_argument("--stream_files", metavar="CHECKPOINT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stream_files:
        return stream_files(args.stream_files)
    prepare(args)
    own, rows = own_systems(args.checkpoint, args.streaming), []
    for name in args.sets:
        texts = references(args.data_root, name)
        audio = sum(map(probe_seconds, texts))
        for system, command in {**own, **other_systems(args.python, args.others)}.items():
            run = run_system(command, texts)
            rows.append({"set": name, "recogniser": system, "ours": system in own, "words": run.errors.words,
                         "WER %": 100 * run.errors.wer, "CER %": 100 * run.errors.cer,
                         "real-time factor": run.seconds / audio, "MB": round(run.megabytes)})
    show("recognisers", rows, json_path=args.json)
    if args.figure:
        draw(rows, args.figure)


if __name__ == "__main__":
    main()
