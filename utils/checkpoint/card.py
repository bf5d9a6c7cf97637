"""Model cards for the Hugging Face Hub: what a network is, how it is used, and its error rates."""

import json
from typing import NamedTuple

import yaml

from utils.errors import UsageError

TEXT = """
# {title}

A {model} network for speech recognition from 16 kHz mono sound.

```
python inference.py --checkpoint hf://{name} --audio a.wav
```

`model.safetensors` holds the weights and all options, `config.json` the options alone.

{results}
"""


class ErrorRate(NamedTuple):
    """A line of a card's results, rates as fractions."""

    split: str
    decoding: str
    wer: float
    cer: float


def read_error_rates(path) -> list[ErrorRate]:
    """Returns the error rates in train.py's `results.json` or in `report.json` of evaluate.py. Raises UsageError."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        rows = content.get("results") or [{"split": split, "system": "greedy"} | row for split, row in content.items()]
        return [ErrorRate(str(row["split"]), str(row["system"]), float(row["wer"]), float(row["cer"])) for row in rows]
    except OSError as error:
        raise UsageError(f"--results {path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UsageError(f"--results {path}: neither results.json of train.py nor report.json of evaluate.py") from None


def model_card(name: str, config: dict, rates: list[ErrorRate]) -> str:
    """Returns the card of the model user/name: YAML that the Hub reads, then Markdown.

    Args:
        name: user/name.
        config: the network's model and options.
        rates: its error rates, which the card states as `model-index`.
    """
    title = name.split("/")[-1]
    head = {"pipeline_tag": "automatic-speech-recognition", "tags": ["speech-recognition", config["model"]],
            "metrics": ["wer", "cer"], "model-index": [{"name": title, "results": [_result(rate) for rate in rates]}]}
    if not rates:
        del head["model-index"], head["metrics"]
    rows = "".join(f"| {one.split} | {one.decoding} | {100 * one.wer:.2f} | {100 * one.cer:.2f} |\n" for one in rates)
    table = f"| test set | decoding | WER % | CER % |\n| --- | --- | --- | --- |\n{rows}" if rates else (
        "No error rates were stated when it was uploaded.")
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n" + TEXT.format(
        title=title, name=name, model=config["model"], results=table).rstrip() + "\n"


def _result(rate: ErrorRate) -> dict:
    """Returns an entry of `model-index`, rates in percent as the Hub shows them."""
    return {"task": {"type": "automatic-speech-recognition", "name": "Speech Recognition"},
            "dataset": {"type": rate.split, "name": rate.split},
            "metrics": [{"type": kind, "name": f"{kind.upper()} %, {rate.decoding}", "value": round(100 * value, 2)}
                        for kind, value in (("wer", rate.wer), ("cer", rate.cer))]}
