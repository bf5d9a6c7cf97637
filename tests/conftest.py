"""Shared fixtures: real speech, and tiny networks of every registered kind."""

import signal
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from models import Recognizer
from utils.process import find_device

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "corpus"  # train, dev and test folders of real recordings
SPEECH = sorted(CORPUS.rglob("*.opus"))

torch.set_num_threads(1)  # these networks are too small for more, and test runs often share a machine

TINY = {  # options that make a network small enough for a test, by model
    "deepspeech2": {"n_mels": 20, "conv_channels": 4, "residual_blocks": 1, "rnn_size": 16, "rnn_layers": 2},
    "conformer": {"n_mels": 20, "conv_channels": 4, "encoder_size": 16, "encoder_layers": 2, "attention_heads": 2,
                  "conv_kernel": 5},
    "las": {"n_mels": 20, "conv_channels": 4, "listener_size": 12, "pyramid_layers": 2, "attention_size": 16,
            "speller_size": 16, "speller_layers": 2, "embedding_size": 16},
}
PIECES = ["ed", "▁ad", "ded", "▁no", "ir", "oo", "ood", "nd", "end", "iend", "▁fr", "▁friend", "ow"]  # for bpe
VARIANTS = {  # every branch of every model
    "gru": ("deepspeech2", {"rnn_type": "gru"}),
    "lstm": ("deepspeech2", {"rnn_type": "lstm"}),
    "mingru": ("deepspeech2", {"rnn_type": "mingru"}),
    "mingru-log": ("deepspeech2", {"rnn_type": "mingru", "mingru_scan": "log"}),
    "batchnorm": ("deepspeech2", {"rnn_norm": "batch", "time_stride": 4}),
    "lookahead": ("deepspeech2", {"rnn_type": "mingru", "bidirectional": False, "lookahead": 3}),
    "residual": ("deepspeech2", {"rnn_type": "mingru", "rnn_conv": 5, "rnn_residual": True,
                                 "rnn_feedforward": 24, "consistency_weight": 0.2}),
    "local-ctc": ("deepspeech2", {"rnn_type": "mingru", "local_ctc_weight": 0.3}),
    "conformer": ("conformer", {"time_stride": 2}),
    "conformer-local-ctc": ("conformer", {"local_ctc_weight": 0.3, "head": "linear"}),
    "las": ("las", {"guided_weight": 1.0}),
    "las-bahdanau": ("las", {"attention": "bahdanau", "frontend": "vgg", "pyramid_layers": 1}),
    "las-location": ("las", {"attention": "location", "frontend": "rescnn", "tied_embedding": True}),
    "las-multihead": ("las", {"attention": "multihead", "ctc_weight": 0.0, "pyramid_layers": 3}),
    "bpe": ("deepspeech2", {"rnn_type": "mingru", "tokenizer": "bpe", "vocabulary": PIECES}),
    "las-bpe": ("las", {"tokenizer": "bpe", "vocabulary": PIECES}),
    "global": ("deepspeech2", {"feature_norm": "global", "head": "linear", "time_stride": 4}),
    "mfcc": ("deepspeech2", {"features": "mfcc", "n_mfcc": 13, "rnn_type": "mingru", "feature_norm": "global"}),
    "las-mfcc": ("las", {"features": "mfcc", "n_mfcc": 13, "frontend": "rescnn"}),
}


def tiny_network(variant: str) -> Recognizer:
    """A small network of a variant, with seeded weights."""
    model, options = VARIANTS[variant]
    torch.manual_seed(0)
    return Recognizer.build(model, **{**TINY[model], **options})


def device_of(network: Recognizer) -> torch.device:
    return next(network.parameters()).device


@torch.inference_mode()
def greedy_texts(network: Recognizer, waveforms: list[torch.Tensor]) -> list[str]:
    """The greedy texts of (S,) waveforms as one batch, without what `Transcriber` does around the network."""
    counts = torch.tensor([len(waveform) for waveform in waveforms])
    padded, device = pad_sequence(waveforms, batch_first=True), device_of(network)
    return network.eval().decode(network.encode(padded.to(device), counts.to(device)))


def pytest_addoption(parser) -> None:
    parser.addoption("--device", default="cuda", help="where tests marked gpu run; cpu tries them without a GPU")


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    """The device of the tests marked gpu."""
    name = request.config.getoption("--device")
    if torch.device(name).type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return find_device(name)  # in float32 as evaluation has it, not in TF32


@pytest.fixture(params=VARIANTS)
def network(request) -> Recognizer:
    """Each variant of each registered model, in evaluation mode."""
    return tiny_network(request.param).eval()


def from_keyboard() -> None:
    """Lets a child process take SIGINT as from a terminal, also where the tests run in the background of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skips a test that asks for pyctcdecode on a Python for which it cannot be installed."""
    try:
        return (yield)
    except ImportError as error:
        if sys.version_info >= (3, 13) and "needs pyctcdecode" in str(error):
            pytest.skip("pyctcdecode does not install on Python 3.13 and later")
        raise
