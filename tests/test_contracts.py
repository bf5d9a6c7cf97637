"""What every network promises, over every variant of every registered model."""

import copy
import gc

import pytest
import torch
from conftest import SPEECH, VARIANTS, device_of, greedy_texts, tiny_network
from torch.nn.utils.rnn import pad_sequence

from models import Recognizer, Transcriber
from utils.audio import load_audio
from utils.tokenizer import ctc_frames_needed
from utils.types import Batch

TEXTS = ["no sir", "he added", "good friends now"]


def speech(count: int = 3) -> list[torch.Tensor]:
    """Real utterances of different lengths, the longest in the middle."""
    waveforms = sorted((load_audio(path) for path in SPEECH[:count]), key=len)
    return [waveforms[0][:9_001], waveforms[-1], *waveforms[1:-1]]


def make_batch(network: Recognizer, waveforms: list[torch.Tensor]) -> Batch:
    tokens = [torch.tensor(network.tokenizer.encode(text)) for text in TEXTS[: len(waveforms)]]
    tensors = (pad_sequence(waveforms, batch_first=True), torch.tensor([len(w) for w in waveforms]),
               pad_sequence(tokens, batch_first=True), torch.tensor([len(t) for t in tokens]))
    return Batch(*(tensor.to(device_of(network)) for tensor in tensors),
                 TEXTS[: len(waveforms)], [str(i) for i in range(len(waveforms))], [])


def test_every_model_has_variants():
    assert {model for model, _ in VARIANTS.values()} == set(Recognizer.registry)


def one_of(batch: Batch, i: int) -> Batch:
    """Utterance i by itself, without padding."""
    return Batch(batch.waveforms[i : i + 1, : batch.sample_counts[i]], batch.sample_counts[i : i + 1],
                 batch.tokens[i : i + 1, : batch.token_counts[i]], batch.token_counts[i : i + 1],
                 [batch.texts[i]], [batch.ids[i]], [])


def outputs(network: Recognizer, batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All log-probabilities of a network for a batch, as (B, N, ...) tensors and their lengths."""
    ctc = network.ctc_log_probs(network.encode(batch.waveforms, batch.sample_counts))
    return [network(batch)] if ctc is None else [network(batch), ctc]


def test_padding_never_matters(network):
    """Alone, in a batch, and with ten seconds of noise where padding should be: the same output."""
    batch = make_batch(network, speech())
    noisy = torch.cat([batch.waveforms, batch.waveforms.new_zeros(len(batch.ids), 160_000)], dim=1)
    beyond = torch.arange(noisy.shape[1], device=noisy.device) >= batch.sample_counts[:, None]
    noisy[beyond] = torch.randn(int(beyond.sum()), device=noisy.device)
    with torch.no_grad():
        together, padded = outputs(network, batch), outputs(network, batch._replace(waveforms=noisy))
        for i in range(len(batch.ids)):
            for alone, one, other in zip(outputs(network, one_of(batch, i)), together, padded, strict=True):
                length = alone[1].item()
                assert length == alone[0].shape[1] == one[1][i] == other[1][i]
                torch.testing.assert_close(one[0][i, :length], alone[0][0], atol=1e-4, rtol=0)
                torch.testing.assert_close(other[0][i, :length], alone[0][0], atol=1e-4, rtol=0)


def test_gradients_ignore_padding(network):
    """The loss of a batch moves the weights as the sum of the losses of its utterances does."""
    waveforms = speech()
    batch = make_batch(network, waveforms)
    network.loss(network.encode(batch.waveforms, batch.sample_counts), batch)["loss"].backward()
    together = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    strides = {name: p.grad.stride() for name, p in network.named_parameters() if p.grad is not None}
    assert strides == {name: p.stride() for name, p in network.named_parameters()}, "DDP copies what lies otherwise"
    network.zero_grad()
    for i in range(len(waveforms)):
        one = one_of(batch, i)
        network.loss(network.encode(one.waveforms, one.sample_counts), one)["loss"].backward()
    assert together.keys() == {name for name, _ in network.named_parameters()}, "parameters without a gradient"
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name], atol=2e-3, rtol=2e-3, msg=name)


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 8_000, 16_001])
def test_lengths_are_the_layers_own(network, samples):
    device = device_of(network)
    encoding = network.encode(torch.randn(1, samples, device=device), torch.tensor([samples], device=device))
    assert encoding.lengths.dtype == torch.int64
    assert encoding.frames.shape[1] == encoding.lengths.item() > 0
    if (ctc := network.ctc_log_probs(encoding)) is not None:
        log_probs, lengths = ctc
        assert lengths.dtype == torch.int64
        assert log_probs.shape[1] == lengths.item() == network.output_frames(samples)


def test_forward_gives_log_probabilities(network):
    """In training and in evaluation alike."""
    batch = make_batch(network, speech())
    for mode in (True, False):
        for log_probs, _ in outputs(network.train(mode), batch):
            assert log_probs.dtype == torch.float32
            sums = log_probs.exp().sum(-1)
            torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-4, rtol=0)


def test_precision(network):
    """Under bfloat16 the features are exactly those of float32, and the loss stays near and in float32."""
    batch = make_batch(network, speech())
    if network.name == "las" and not (batch.waveforms.is_cuda or torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        pytest.skip("PyTorch has no LSTM in bfloat16 for a processor without its instructions")
    with torch.no_grad():
        features, _ = network.features(batch.waveforms, batch.sample_counts)
        exact = network.loss(network.encode(batch.waveforms, batch.sample_counts), batch)["loss"]
        with torch.autocast(batch.waveforms.device.type, dtype=torch.bfloat16):
            same, _ = network.features(batch.waveforms, batch.sample_counts)
            log_probs, _ = network(batch)
            near = network.loss(network.encode(batch.waveforms, batch.sample_counts), batch)["loss"]
    assert log_probs.dtype == near.dtype == torch.float32
    assert torch.equal(features, same)
    torch.testing.assert_close(near, exact, rtol=0.02, atol=0)


def test_loss_is_a_sum_over_utterances(network):
    batch = make_batch(network, speech())
    doubled = Batch(*(torch.cat([part, part]) if torch.is_tensor(part) else part + part for part in batch))
    with torch.no_grad():
        once = network.loss(network.encode(batch.waveforms, batch.sample_counts), batch)["loss"]
        twice = network.loss(network.encode(doubled.waveforms, doubled.sample_counts), doubled)["loss"]
    torch.testing.assert_close(twice, 2 * once, rtol=1e-5, atol=0)


@pytest.fixture
def young_objects():
    """Has the garbage collector look at what is made from now on alone: the packages' objects take seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_a_step_leaves_nothing_behind(network, young_objects):
    """A tensor that a graph and its own node keep alive is freed by nobody, and a day of training takes all memory."""
    batch, alive = make_batch(network.train(), speech(2)), []
    for _ in range(4):
        network.loss(network.encode(batch.waveforms, batch.sample_counts), batch)["loss"].backward()
        network.zero_grad()
        gc.collect()
        alive.append(sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()))
    assert len(set(alive[1:])) == 1, alive


@pytest.mark.parametrize("variant", ["mingru", "las"])
def test_it_learns_two_utterances(variant):
    """Real speech, real texts: fifty steps must make the loss fall to a fraction."""
    network = tiny_network(variant).train()
    batch = make_batch(network, speech(2))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(50):
        loss = network.loss(network.encode(batch.waveforms, batch.sample_counts), batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_checkpoint_rebuilds_everything(network, tmp_path):
    """Weights, features, tokenizer and options, from one file of plain values."""
    path = tmp_path / "x.ckpt"
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"recognizer": network.config, "state_dict": state}, path)
    again = Recognizer.from_checkpoint(path)
    assert again.config == network.config
    waveforms = speech()
    batch = make_batch(network, waveforms)
    with torch.no_grad():
        expected, _ = network(batch)
        found, _ = again(batch)
    assert torch.equal(expected, found)
    assert greedy_texts(again, waveforms) == greedy_texts(network, waveforms)


def test_transcribing_leaves_batches_out_of_it(network):
    """One by one or together: the same texts; silence has none."""
    waveforms = speech()
    alone = [greedy_texts(network, [waveform])[0] for waveform in waveforms]
    assert greedy_texts(network, waveforms) == alone == [Transcriber(network).transcribe(one).text for one in waveforms]
    assert Transcriber(network).transcribe(torch.zeros(16_000)).text == ""


def test_same_seed_same_step(network):
    """Dropout and SpecAugment draw from the one generator that a training step seeds."""
    batch = make_batch(network, speech())
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        copied = copy.deepcopy(network).train()
        losses.append(copied.loss(copied.encode(batch.waveforms, batch.sample_counts), batch)["loss"].item())
    assert losses[0] == losses[1] != losses[2]


def test_short_audio_and_long_text_are_no_infinity(network):
    """Text that needs more frames than there are counts as 0, and the gradient stays finite."""
    tokens = torch.tensor([network.tokenizer.encode("too much to say in a hundredth of a second")])
    assert network.output_frames(320) < ctc_frames_needed(tokens[0].tolist())
    tensors = torch.randn(1, 320) * 0.1, torch.tensor([320]), tokens, torch.tensor([tokens.shape[1]])
    batch = Batch(*(tensor.to(device_of(network)) for tensor in tensors), ["x"], ["x"], [])
    loss = network.loss(network.encode(batch.waveforms, batch.sample_counts), batch)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
