"""What docs/extending.md shows works as it stands there."""

import math
import re
import sys
import types

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, SPEECH

from data import readers
from data.datamodule import LibriSpeechDataModule
from data.options import TrainingDataOptions
from models import Recognizer
from models.components.features import FEATURES, build_features
from models.optim import OPTIMIZERS, SCHEDULES, OptimizerConfig, build_optimizer
from utils.audio import load_audio
from utils.normalizers import NORMALIZERS
from utils.tokenizer import TOKENIZERS, CharTokenizer, build_tokenizer

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
MODEL, CORPUS, NORMALIZER, TOKENIZER, FEATURE, OPTIMISER = BLOCKS


def run(source: str, monkeypatch) -> types.ModuleType:
    """Returns the module that a code block of the page makes."""
    module = types.ModuleType("block")
    monkeypatch.setitem(sys.modules, "block", module)
    exec(compile(source, "extending.md", "exec"), module.__dict__)
    return module


@pytest.fixture(autouse=True)
def registries():
    """Registries are after a test what they were before."""
    registries = (Recognizer.registry, NORMALIZERS, TOKENIZERS, FEATURES, OPTIMIZERS, SCHEDULES)
    kept = [(registry, dict(registry)) for registry in registries]
    yield
    for registry, entries in kept:
        registry.clear()
        registry.update(entries)


def test_a_model(monkeypatch):
    """It is built by name, and an utterance's output is the same alone and in a batch."""
    run(MODEL, monkeypatch)
    network = Recognizer.build("mine", hidden=16, n_mels=20).eval()
    assert network.config["hidden"] == 16
    short, long = (load_audio(path) for path in SPEECH[:2])
    counts = torch.tensor([len(short), len(long)])
    batch = torch.nn.utils.rnn.pad_sequence([short, long], batch_first=True)
    together, lengths = network.ctc_log_probs(network.encode(batch, counts))
    alone, one = network.ctc_log_probs(network.encode(short[None], counts[:1]))
    assert lengths[0] == one[0] == network.output_frames(len(short))
    torch.testing.assert_close(together[0, : one[0]], alone[0], rtol=0, atol=1e-4)


def test_a_corpus(monkeypatch, tmp_path):
    """Recordings with a text each are indexed; the one without is counted."""
    module = run(CORPUS, monkeypatch)
    monkeypatch.setattr(readers, "READERS", (*readers.READERS[:1], module, *readers.READERS[1:]))
    folder = tmp_path / "train"
    folder.mkdir()
    for name in ("a", "b", "c"):
        soundfile.write(folder / f"{name}.wav", np.full(16000, 0.1), 16000)
    (folder / "a.txt").write_text("Hello there\n")
    (folder / "b.txt").write_text("good bye")
    options = TrainingDataOptions(data_root=str(tmp_path), train_sets=["train"], val_sets=["train"], test_sets=[],
                                  cache_dir=str(tmp_path / "cache"), num_workers=0)
    data = LibriSpeechDataModule(options, CharTokenizer())
    index = data.index("train")
    assert [utterance.text for utterance in index.utterances] == ["hello there", "good bye"]
    assert index.left_out == {"without a transcript": ["c.wav"]}


def test_a_normalizer(monkeypatch):
    run(NORMALIZER, monkeypatch)
    assert NORMALIZERS["german"]("Über die Straße, bitte!") == "ueber die strasse bitte"


def test_a_tokenizer(monkeypatch):
    """It is built from its config, and a text comes back."""
    run(TOKENIZER, monkeypatch)
    tokenizer = build_tokenizer("pairs")
    assert build_tokenizer(**tokenizer.config).labels == tokenizer.labels
    tokens = tokenizer.encode("the hen is there")
    assert len(tokens) < len("the hen is there") and tokenizer.text(tokens) == "the hen is there"
    assert [span.word for span in tokenizer.words(tokens)] == ["the", "hen", "is", "there"]


def test_features(monkeypatch):
    """They have one feature per frame, the same alone and in a batch."""
    run(FEATURE, monkeypatch)
    features = build_features("energy", feature_norm="utterance", window_ms=25.0, hop_ms=10.0)
    waveform = load_audio(SPEECH[0])
    counts = torch.tensor([len(waveform), len(waveform) // 2])
    out, lengths = features(torch.stack([waveform, waveform]), counts)
    alone, _ = features(waveform[None, : counts[1]], counts[1:])
    assert out.shape[2] == 1 and lengths.tolist() == [1 + int(count) // 160 for count in counts]
    torch.testing.assert_close(out[1, : lengths[1]], alone[0], rtol=0, atol=1e-4)


def test_an_optimiser_and_a_schedule(monkeypatch):
    """A step of it moves the weights; the schedule rises to 1 and ends at 0."""
    run(OPTIMISER, monkeypatch)
    network = torch.nn.Linear(3, 2)
    before = network.weight.detach().clone()
    optimizer = build_optimizer(network, OptimizerConfig(optimizer="nadam"), fused=False)
    network(torch.ones(3)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, network.weight)
    factors = [SCHEDULES["linear"](step, 5, 50) for step in range(51)]
    assert math.isclose(max(factors), 1.0) and factors[-1] == 0.0 and factors[0] == 0.2
