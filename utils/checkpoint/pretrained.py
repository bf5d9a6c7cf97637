"""The networks that ship with the repository: each is a folder in `pretrained/`, and its name stands for its weights.

A folder holds the weights, its model card, and perhaps an n-gram with the flags that `evaluate.py --tune` found for it.
"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "pretrained"  # wherever the program was started
DEFAULT, STREAMING = "english", "english-streaming"
WEIGHTS, TUNED_FLAGS, NGRAMS = "model.safetensors", "decoding.yaml", ("lm.bin", "lm.arpa.gz")


def network_names() -> list[str]:
    """Returns the names of the networks whose weights are there."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{WEIGHTS}"))


def find_folder(name) -> Path | None:
    """Returns the folder of a network by its name; None for any other text, and where a file of that name exists."""
    folders = {path.name: path for path in FOLDER.glob("*/")}
    return None if Path(name).is_file() else folders.get(str(name))


def find_ngram(name) -> Path | None:
    """Returns the n-gram that ships with the network of this name; None where there is none."""
    folder = find_folder(name)
    files = [folder / file for file in NGRAMS] if folder else []
    return next((file for file in files if file.is_file()), None)
