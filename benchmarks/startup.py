"""How long until `inference.py` is ready, against PyTorch's own import?

    python -m benchmarks.startup
    python -m benchmarks.startup --checkpoint X.ckpt --audio a.wav

Processes are started in turn. `ready` is the wall time from a process's start to its first look at the recording:
flags parsed, network built, weights read, decoder chosen. `whole` is all of it, the transcript written.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.material import untrained, write_joined
from benchmarks.measure import benchmark_parser, prepare, show

ROOT = Path(__file__).resolve().parent.parent
STAMPED = """
import sys, time, inference
transcribe = inference.transcribe
def stamped(*args):
    print(time.time(), file=sys.stderr)
    return transcribe(*args)
inference.transcribe = stamped
inference.main()
"""


def run(arguments: list[str]) -> tuple[float, float]:
    """Seconds until the stamp on standard error, where there is one, and until the end."""
    started = time.time()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    ended = time.time()
    if done.returncode:
        sys.exit(f"{' '.join(arguments[-4:])}: {done.stderr.strip()}")
    return float(done.stderr.split()[-1] if done.stderr.strip() else ended) - started, ended - started


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=7)
    parser.add_argument("--checkpoint", type=Path, help="Deep Speech 2 of default size and random weights by default")
    parser.add_argument("--audio", type=Path, help="ten seconds of the test corpus by default")
    args = parser.parse_args()
    prepare(args)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = args.checkpoint or untrained(Path(folder) / "x.ckpt")
        audio = args.audio or write_joined(Path(folder), [10.0])[0]
        flags = ["--checkpoint", str(checkpoint), "--audio", str(audio), "--threads", str(args.threads),
                 "--device", args.device]
        torch_alone, ours = ["-c", "import torch"], ["-c", STAMPED, *flags]
        turns = [(run(torch_alone)[1], *run(ours)) for _ in range(args.rounds)]
        size = checkpoint.stat().st_size
    base, ready, whole = map(median, zip(*turns, strict=True))
    rows = [{"what": name, "s": seconds, "of torch": seconds / base}
            for name, seconds in (("python -c 'import torch'", base), ("ready", ready), ("whole", whole))]
    show("starting inference.py on one recording", rows, json_path=args.json,
         **{"checkpoint MB": round(size / 1e6)})


if __name__ == "__main__":
    main()
