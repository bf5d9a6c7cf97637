"""What is particular to Listen, Attend and Spell."""

import pytest
import torch
import torch.nn.functional as F
from conftest import SPEECH, TINY, tiny_network
from test_contracts import make_batch, speech

from models import Recognizer
from models.components.attention import ATTENTIONS, soft_diagonal
from models.fast_speller import fast_forward
from models.listener import Listener, PyramidalLayer
from models.speller import SpellerScorer, sample
from utils.audio import load_audio
from utils.decoding.beam_search import beam_search
from utils.decoding.decoder import Decoder
from utils.decoding.options import DecodingOptions
from utils.errors import UsageError


def las(**options) -> Recognizer:
    torch.manual_seed(0)
    return Recognizer.build("las", **{**TINY["las"], **options}).eval()


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_pyramid_joins_neighbours(frames):
    """Frame u of the result sees frames 2u and 2u + 1; a last odd one is joined with zeros."""
    layer = PyramidalLayer(3, 4, dropout=0.0)
    x = torch.randn(2, 9, 3)
    seen = []
    layer.norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    out, lengths = layer(x, torch.tensor([frames, 9]))
    assert out.shape == (2, 5, 8) and lengths.tolist() == [-(-frames // 2), 5]
    joined = seen[0][0]
    for u in range(lengths[0]):
        right = x[0, 2 * u + 1] if 2 * u + 1 < frames else torch.zeros(3)
        assert torch.equal(joined[u], torch.cat([x[0, 2 * u], right]))


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention_weights(kind):
    """Weights sum to 1 over valid frames and are 0 beyond; they are float32 under bfloat16, as the context is."""
    torch.manual_seed(0)
    attention, lengths = ATTENTIONS[kind](6, 8, 12), torch.tensor([5, 2])
    frames, query = torch.randn(2, 5, 8), torch.randn(2, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory = attention.precompute(frames, lengths)
        context, weights = attention(query, memory, torch.zeros(2, 5))
    assert weights.dtype == context.dtype == torch.float32
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert (weights[1, 2:] == 0).all() and (weights[0] > 0).all()
    if kind != "multihead":
        torch.testing.assert_close(context, torch.einsum("bt,bth->bh", weights, frames))


def test_location_attention_knows_where_it_looked():
    torch.manual_seed(0)
    attention = ATTENTIONS["location"](6, 8, 12)
    memory = attention.precompute(torch.randn(1, 20, 8), torch.tensor([20]))
    query, here, there = torch.randn(1, 6), F.one_hot(torch.tensor([3]), 20).float(), F.one_hot(torch.tensor([16]), 20)
    assert not torch.allclose(attention(query, memory, here)[1], attention(query, memory, there.float())[1])


@pytest.mark.parametrize("options", [{}, {"attention": "location", "speller_layers": 3}, {"attention": "multihead"}],
                         ids=str)
def test_steps_are_the_teacher_forced_pass(options):
    """Fed with the reference one by one, `step` gives what `forward` gives at once."""
    network = las(**options)
    batch = make_batch(network, speech())
    with torch.no_grad():
        encoding = network.encode(batch.waveforms, batch.sample_counts)
        expected, weights = network.attend_and_spell(encoding, batch)
        memory = network.speller.attention.precompute(encoding.frames, encoding.lengths)
        state = network.speller.initial(memory)
        inputs = F.pad(batch.tokens, (1, 0), value=network.tokenizer.sos)
        for u in range(inputs.shape[1]):
            log_probs, state = network.speller.step(inputs[:, u], state, memory)
            torch.testing.assert_close(log_probs, expected[:, u], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(state.weights, weights[:, u], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state.coverage, weights.sum(1), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("sampling", [0.0, 0.5])
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_the_fast_path_is_the_speller(kind, sampling, layers):
    """The same outputs, and the same gradients of every parameter and of the encoder's frames."""
    speller = las(attention=kind, speller_layers=layers, dropout=0.0).speller
    frames, lengths = torch.randn(3, 7, 24), torch.tensor([7, 4, 6])
    tokens = torch.randint(3, 20, (3, 9))
    direction = torch.randn(3, 9, 7)

    def outputs_and_gradients(forward) -> list[torch.Tensor]:
        torch.manual_seed(1)  # of the sampled inputs
        speller.zero_grad()
        x = frames.clone().requires_grad_()
        log_probs, weights = forward(tokens, speller.attention.precompute(x, lengths), sampling)
        (log_probs.masked_fill(speller.impossible, 0.0).square().mean() + (weights * direction).mean()).backward()
        return [log_probs.detach(), weights.detach(), x.grad, *(p.grad for p in speller.parameters())]

    plain = outputs_and_gradients(speller)
    fast = outputs_and_gradients(lambda *inputs: fast_forward(speller, *inputs))
    for a, b in zip(plain, fast, strict=True):
        torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-5)


def test_blank_and_start_are_never_spelled():
    network = las()
    log_probs, _ = network(make_batch(network, speech()))
    assert log_probs[..., [network.tokenizer.blank, network.tokenizer.sos]].isneginf().all()


@pytest.mark.parametrize(("frontend", "layers"), [("none", 1), ("none", 3), ("vgg", 0), ("vgg", 1), ("rescnn", 0),
                                                  ("rescnn", 2)])
def test_where_a_listener_frame_is_centred(monkeypatch, frontend, layers):
    """In the middle of the feature frames that reach it through convolutions, pooling and joining."""
    monkeypatch.setattr(F, "max_pool2d", F.avg_pool2d)  # which has a gradient for all that it pools
    listener = Listener(80, 8, layers, frontend=frontend, conv_channels=4, residual_blocks=1, dropout=0.0).eval()
    for parameter in listener.parameters():
        parameter.data.abs_().add_(0.1)  # so that ReLU passes everything
    features = torch.zeros(1, 256, 80, requires_grad=True)
    x = features if listener.frontend is None else listener.frontend(features, torch.tensor([256]))[0]
    for _ in range(layers):
        x = x.unflatten(1, (-1, 2)).flatten(2)
    x[0, 4].sum().backward()
    reached = features.grad[0].any(dim=-1).nonzero().flatten().float()
    assert reached.mean() == listener.first_centre + 4 * listener.reduction


def test_scheduled_sampling_ramps_up_and_leaves_evaluation_alone(monkeypatch):
    network, rates = las(scheduled_sampling=0.4, scheduled_sampling_steps=100), []
    batch = make_batch(network, speech())
    encoding = network.encode(batch.waveforms, batch.sample_counts)
    monkeypatch.setattr("models.las.fast_forward",
                        lambda *args: rates.append(args[-1]) or fast_forward(*args))
    for training, steps in ((True, 0), (True, 50), (True, 1000), (False, 1000)):
        network.train(training).set_step(steps)
        network.attend_and_spell(encoding, batch)
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.0])


def test_sampled_inputs_replace_the_references():
    """At a rate of 1 the reference's characters, after the start, change nothing."""
    network = las(dropout=0.0)
    memory = network.speller.attention.precompute(torch.randn(1, 6, 24), torch.tensor([6]))
    outputs = []
    for tokens in ([30, 4, 5, 6], [30, 9, 8, 7]):
        for rate in (1.0, 0.0):
            torch.manual_seed(1)
            outputs.append(fast_forward(network.speller, torch.tensor([tokens]), memory, rate)[0])
    assert torch.equal(outputs[0], outputs[2]) and not torch.equal(outputs[1], outputs[3])


def test_samples_follow_the_distribution():
    torch.manual_seed(0)
    probabilities = torch.tensor([0.7, 0.2, 0.1, 0.0])
    counts = sample(probabilities.log().expand(20_000, -1)).bincount(minlength=4) / 20_000
    torch.testing.assert_close(counts, probabilities, atol=0.02, rtol=0)


def test_label_smoothing_is_torch_s_own_over_what_can_be_spelled():
    network = las(label_smoothing=0.1)
    batch = make_batch(network, speech())
    with torch.no_grad():
        log_probs, lengths = network(batch)
        found = network.cross_entropy(log_probs, batch)
    possible = ~network.speller.impossible
    index = possible.cumsum(0) - 1  # classes without blank and <sos>
    expected = 0.0
    for one, length, tokens in zip(log_probs, lengths, batch.tokens, strict=True):
        targets = torch.cat([tokens[: length - 1], torch.tensor([network.tokenizer.eos])])
        expected += F.cross_entropy(one[:length][:, possible], index[targets], label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(found, expected)


def test_losses_and_their_weights():
    batch = make_batch(las(), speech())

    def losses(steps=0, **options):
        network = las(dropout=0.0, freq_masks=0, time_masks=0, **options).train()
        network.set_step(steps)
        sums = network.loss(network.encode(batch.waveforms, batch.sample_counts), batch)
        return {name: value.item() for name, value in sums.items()}

    joint = losses(ctc_weight=0.3)
    assert joint["loss"] == pytest.approx(0.7 * joint["attention"] + 0.3 * joint["ctc"], rel=1e-5)
    assert losses(ctc_weight=0.0).keys() == {"loss", "attention", "diagonality"}
    guided = losses(guided_weight=2.0, guided_steps=10)
    tokens = int(batch.token_counts.sum())
    assert guided["loss"] == pytest.approx(joint["loss"] + 2 * (tokens - guided["diagonality"]), rel=1e-5)
    assert losses(steps=10, guided_weight=2.0, guided_steps=10)["loss"] == pytest.approx(joint["loss"], rel=1e-5)
    assert not [name for name, _ in las(ctc_weight=0.0).named_parameters() if name.startswith("ctc")]


def test_diagonality_tells_aligned_attention_from_a_blur():
    steps, frames = torch.tensor([20]), torch.tensor([40])
    near = soft_diagonal(steps, frames, (20, 40))[0]
    aligned = torch.eye(20).repeat_interleave(2, dim=1) / 2
    uniform = torch.full((20, 40), 1 / 40)
    assert (aligned * near).sum() / 20 > 0.98
    assert 0.15 < (uniform * near).sum() / 20 < 0.3
    assert (aligned.flip(0) * near).sum() / 20 < 0.3


@pytest.mark.parametrize("options", [{"decoder": "beam", "beam_size": 4}, {"decoder": "beam", "ctc_score_weight": 0.5},
                                     {"decoder": "beam", "beam_size": 4, "coverage_weight": 0.5}, {}], ids=str)
def test_searching_a_batch_is_searching_each(options):
    network = las()
    batch = make_batch(network, speech())
    with torch.no_grad(), Decoder(DecodingOptions(**options), network.tokenizer) as decoder:
        together = network.search(network.encode(batch.waveforms, batch.sample_counts), decoder)
        for i, found in enumerate(together):
            waveform = batch.waveforms[i : i + 1, : batch.sample_counts[i]]
            alone, = network.search(network.encode(waveform, batch.sample_counts[i : i + 1]), decoder)
            assert alone[0].text == found[0].text
            assert alone[0].score == pytest.approx(found[0].score, abs=1e-4)


def test_a_wide_beam_scores_at_least_as_well_as_greedy():
    """Both are ranked by the probability per character."""
    network = las()
    batch = make_batch(network, speech())
    with torch.no_grad():
        encoding = network.encode(batch.waveforms[:, :4000], batch.sample_counts.clamp(max=4000))
        memory = network.speller.attention.precompute(encoding.frames, encoding.lengths)
        best = []
        for width in (1, 64):
            found = beam_search([(1.0, SpellerScorer(network.speller, memory.repeat(width)))],
                                start=network.tokenizer.sos, eos=network.tokenizer.eos, beam_size=width,
                                max_tokens=network.max_tokens(encoding), length_power=1.0)
            best.append(torch.tensor([hypotheses[0].score for hypotheses in found]))
    assert (best[1] >= best[0] - 1e-6).all()


@pytest.mark.parametrize(("options", "message"), [
    ({"ctc_weight": 1.0}, "ctc_weight 1.0"), ({"scheduled_sampling": -0.1}, "scheduled_sampling -0.1"),
    ({"attention": "multihead", "attention_size": 10}, "heads must divide")])
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        las(**options)


def test_text_longer_than_ctc_can_spell_is_aligned_by_attention():
    network = tiny_network("las").eval()
    waveform = speech()[0][:3200]
    with torch.no_grad():
        encoding = network.encode(waveform[None], torch.tensor([len(waveform)]))
        text = "more words than a fifth of a second can hold"
        words, = network.align(encoding, [text])
    assert [word.word for word in words] == text.split()
    assert all(0 <= word.start <= word.end <= 0.4 for word in words)


def test_hot_words_are_refused():
    """They would do nothing: the attention search knows none."""
    network = tiny_network("las").eval()
    decoder = Decoder(DecodingOptions(decoder="beam", hotwords=["tea"]), network.tokenizer)
    waveform = load_audio(SPEECH[0])[None]
    with pytest.raises(UsageError, match="--hotwords: only CTC networks"):
        network.search(network.encode(waveform, torch.tensor([waveform.shape[1]])), decoder)
