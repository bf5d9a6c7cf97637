"""What a GPU changes: contracts, precisions, kernels, CTC, resuming, several processes, full memory.

`make gpu` runs these next to the timings; `pytest -m gpu --device cpu` tries what a CPU can do of them.
"""

import os

import pytest
import test_contracts as contracts
import torch
from conftest import VARIANTS, tiny_network
from torch import nn
from training_runs import arguments, assert_same_end, checkpoint, run

from models.ctc import ctc_loss
from models.mingru import kernels
from models.mingru.fused import fused_scan
from models.mingru.tiled import TiledScan
from utils.types import Batch

pytestmark = pytest.mark.gpu
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what --deterministic needs before the first product

CONTRACTS = [contracts.test_padding_never_matters, contracts.test_gradients_ignore_padding, contracts.test_precision,
             contracts.test_forward_gives_log_probabilities, contracts.test_loss_is_a_sum_over_utterances,
             contracts.test_transcribing_leaves_batches_out_of_it, contracts.test_same_seed_same_step,
             contracts.test_short_audio_and_long_text_are_no_infinity]
PRECISIONS = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (5e-3, 0.05), torch.float16: (1e-3, 0.01)}  # loss, gradient
SCANS = [  # B, T, directions, channels: lengths of 1, whole tiles of 32 frames and one more or less, blocks of 64
    (1, 1, 1, 1), (2, 95, 1, 5), (5, 31, 2, 64), (5, 32, 2, 64), (5, 33, 2, 64), (64, 257, 2, 65), (17, 1000, 1, 129),
    (1, 4000, 2, 33), (64, 96, 2, 512)]
NETWORKS = {"gru": ["--rnn_type", "gru"], "lstm": ["--rnn_type", "lstm"], "mingru": ["--rnn_type", "mingru"],
            "las": ["-m", "las"], "conformer": ["-m", "conformer"]}


@pytest.fixture(autouse=True)
def nothing_deterministic_left():
    """Nothing of `--deterministic` is left for the next test."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def training():
    """Skips where something is missing that training takes."""
    for package in ("lightning", "jiwer", "dotenv", "yaml", "PIL"):
        pytest.importorskip(package)


def on(device: torch.device, variant: str):
    """A network in evaluation mode, but for cuDNN's recurrent layers, which have no gradient there."""
    network = tiny_network(variant).eval().to(device)
    for module in network.modules():
        module.train(isinstance(module, nn.RNNBase))
    return network


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__.removeprefix("test_"))
@pytest.mark.parametrize("variant", VARIANTS)
def test_contracts(variant, contract, device):
    """As on a CPU, with the same tolerances."""
    contract(on(device, variant))


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_precisions_are_near_the_cpus_float32(variant, dtype, device, record_property):
    """Loss, and the gradient as one vector; the features are those of float32 exactly."""
    expected, features, gradient = losses_and_gradient(tiny_network(variant).eval(), torch.float32)
    network = on(device, variant)
    if device.type == "cpu" and dtype != torch.float32 and any(isinstance(one, nn.LSTM) for one in network.modules()):
        pytest.skip("not every CPU has an LSTM in half precision")
    loss, found, other = losses_and_gradient(network, dtype)
    assert torch.equal(found, losses_and_gradient(network, torch.float32)[1])
    torch.testing.assert_close(found, features, atol=2e-3, rtol=2e-3)
    loss_error, gradient_error = abs(loss / expected - 1), float((other - gradient).norm() / gradient.norm())
    record_property("loss", loss_error)
    record_property("gradient", gradient_error)
    assert loss_error < PRECISIONS[dtype][0] and gradient_error < PRECISIONS[dtype][1]


def losses_and_gradient(network, dtype) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The loss, the features, and all gradients in a row; scaled in between, for float16."""
    batch = contracts.make_batch(network, contracts.speech())
    network.zero_grad()
    with torch.autocast(batch.waveforms.device.type, dtype, enabled=dtype != torch.float32):
        features, _ = network.features(batch.waveforms, batch.sample_counts)
        loss = network.loss(network.encode(batch.waveforms, batch.sample_counts), batch)["loss"]
    assert loss.dtype == torch.float32
    (64 * loss).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    return loss.item(), features.cpu(), gradient.double().cpu() / 64


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_kernels_prove_themselves(dtype, device, capsys):
    kv = torch.zeros(1, 1, 2, 2, 512, device=device, dtype=dtype)
    if not kernels.has_kernels(kv):
        pytest.skip("no Triton, or no CUDA for it")
    assert kernels.kernels_agree(kv.device, dtype, directions=2, hidden=512), capsys.readouterr().err


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("size", SCANS, ids=str)
def test_mingru_is_float64s(size, dtype, device, record_property):
    """States and gradient, with padding and without."""
    batch, frames, directions, hidden = size
    generator = torch.Generator().manual_seed(frames)
    kv = (3 * torch.randn(batch, frames, directions, 2, hidden, generator=generator)).to(dtype)
    grad_h = torch.randn(batch, frames, directions, hidden, generator=generator).to(dtype)
    lengths = torch.randint(1, frames + 1, (batch,), generator=generator)
    lengths[:3] = torch.tensor([frames, 1, max(frames // 64 * 32, 1)])[:batch]  # the last one fills its tiles
    for some in (lengths, None):
        expected = states_and_gradient(TiledScan.apply, kv.double(), some, grad_h.double())
        found = states_and_gradient(fused_scan, kv.to(device), some if some is None else some.to(device),
                                    grad_h.to(device))
        difference = max(map(kernels.relative_difference, found, expected))
        record_property("largest difference", difference)
        assert difference < max(2e-5, 4 * torch.finfo(dtype).eps)


def states_and_gradient(scan, kv, lengths, grad_h) -> list[torch.Tensor]:
    kv = kv.detach().requires_grad_()
    h = scan(kv, lengths)
    h.backward(grad_h)
    return [h.detach().cpu(), kv.grad.cpu()]


@pytest.mark.parametrize("deterministic", [False, True])
def test_ctc(deterministic, device):
    """The CPU's loss and gradient, an utterance without a path included; deterministic, twice the same bits."""
    torch.manual_seed(0)
    logits, lengths, counts = torch.randn(16, 200, 29), torch.randint(60, 201, (16,)), torch.randint(1, 31, (16,))
    lengths[0], counts[0] = 5, 30
    tensors = logits, lengths, torch.randint(1, 29, (16, 30)), counts
    expected = ctc(tensors)
    torch.use_deterministic_algorithms(deterministic)
    found = [ctc([tensor.to(device) for tensor in tensors]) for _ in range(2)]
    for one, other in zip(found[0], expected, strict=True):
        assert one.device.type == device.type
        torch.testing.assert_close(one.cpu(), other, atol=1e-4, rtol=1e-4)
    assert not deterministic or all(map(torch.equal, *found))


def ctc(tensors) -> tuple[torch.Tensor, torch.Tensor]:
    logits, lengths, tokens, counts = tensors
    logits = logits.detach().requires_grad_()
    batch = Batch(logits, lengths, tokens, counts, [], [], [])
    loss = ctc_loss(logits.log_softmax(-1), lengths, batch, blank=0)
    loss.backward()
    return loss.detach(), logits.grad


def gpus(device: torch.device, count: int = 1) -> list[str]:
    """The flags of a run on so many GPUs; on so many processes where a CPU stands in."""
    return ["-g", str(count)] if device.type == "cuda" else ["-g", "0", "--cpu_processes", str(count)]


def model_of(network: str) -> str:
    return network if network in ("las", "conformer") else "deepspeech2"


@pytest.mark.parametrize("network", NETWORKS)
def test_a_resumed_run_ends_as_the_unbroken_one(network, device, training, tmp_path):
    """From within an epoch, with dropout, SpecAugment and averaging, in the precision that the GPU is given."""
    import train

    flags = ["--epochs", "2", "--batch_size", "3", "--ema_decay", "0.9", "--checkpoint_every", "3", "--deterministic",
             "--test_sets", *NETWORKS[network], *gpus(device)]
    train.main(arguments(tmp_path / "whole", *flags, model=model_of(network)))
    path = tmp_path / "whole" / "checkpoints" / "periodic.ckpt"
    assert checkpoint(tmp_path / "whole", "periodic")["LibriSpeechDataModule"]["segments"], "not within an epoch"
    train.main(arguments(tmp_path / "resumed", *flags, "--checkpoint_path", str(path), model=model_of(network)))
    assert_same_end(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_other_precisions_train(precision, device, training, tmp_path):
    import train

    train.main(arguments(tmp_path, "--epochs", "2", "--precision", precision, "--rnn_type", "mingru", *gpus(device)))
    assert checkpoint(tmp_path)["global_step"] == 4


@pytest.mark.parametrize("model", ["deepspeech2", "las"])
def test_processes_are_one(model, device, training, tmp_path):
    """One step on ten utterances by one process without NCCL, by one with it, and by as many as there are GPUs."""
    still = ["--dropout", "0", "--freq_masks", "0", "--time_masks", "0", "--warmup_steps", "0", "--epochs", "1",
             "--grad_clip", "0", "--val_sets", "train", "--test_sets", "--precision", "32-true"]
    count = min(torch.cuda.device_count(), 10) if device.type == "cuda" else 2
    moments = {}
    for processes, strategy in {(1, "auto"), (1, "ddp"), (count, "ddp")}:
        output = tmp_path / f"{processes}{strategy}"
        done = run(*arguments(output, *still, "--batch_size", str(-(-10 // processes)), "--strategy", strategy,
                              *gpus(device, processes), model=model), NVIDIA_TF32_OVERRIDE="0")
        assert done.returncode == 0, done.stderr
        kept = checkpoint(output)
        assert kept["global_step"] == 1
        states = kept["optimizer_states"][0]["state"].values()
        moments[processes, strategy] = torch.cat([state["exp_avg"].flatten() for state in states]).cpu()
    expected = moments.pop((1, "auto"))
    for moment in moments.values():
        torch.testing.assert_close(moment, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-3)


def test_full_memory_is_named(device, training, tmp_path, monkeypatch, capsys):
    """A GPU that gives no more than it has given names the batch and the flags."""
    if device.type != "cuda":
        pytest.skip("the limit is CUDA's")
    import train
    from models.lightning_module import SpeechModule

    step = SpeechModule.training_step

    def limited(module, batch, batch_idx):
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
        return step(module, batch, batch_idx)

    monkeypatch.setattr(SpeechModule, "training_step", limited)
    large = ["--conv_channels", "64", "--n_mels", "80", "--batch_size", "10", "--precision", "32-true"]
    try:
        with pytest.raises(SystemExit, match="2"):
            train.main(arguments(tmp_path / "run", "--epochs", "1", *large, *gpus(device)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train.py: error: the device's memory is full at a batch of 10 utterances")
