"""Text as the sound comes equals the text of the whole recording."""

import io
import struct
import wave

import numpy as np
import pytest
import torch
from conftest import PIECES, SPEECH, TINY, greedy_texts, tiny_network

import inference
from models import Recognizer
from models.components.streaming import StreamingError
from models.inference.streaming import StreamingRecognizer
from utils.audio import AudioError, load_audio, resample
from utils.wav import StreamResampler, read_stream


def causal_network(**options) -> Recognizer:
    torch.manual_seed(0)
    network = Recognizer.build("deepspeech2", **{**TINY["deepspeech2"], "bidirectional": False,
                                                 "feature_norm": "global", **options}).eval()
    waveform = load_audio(SPEECH[0])
    network.features.fit_global_statistics([(waveform[None], torch.tensor([len(waveform)]))])
    with torch.no_grad():  # an untrained network writes blanks only; this one writes
        network.head[-1].weight.copy_(torch.randn_like(network.head[-1].weight))
        for layer in network.rnn:
            if layer.feedforward is not None:  # it adds zero at first
                layer.feedforward[-2].weight.copy_(torch.randn_like(layer.feedforward[-2].weight))
    return network


@pytest.mark.parametrize("chunk", [160, 1_777, 4_000, 40_000])
@pytest.mark.parametrize("options", [{"rnn_type": "mingru"}, {"rnn_type": "gru", "time_stride": 4, "lookahead": 5},
                                     {"rnn_type": "lstm", "lookahead": 0, "residual_blocks": 2, "rnn_conv": 3},
                                     {"rnn_type": "mingru", "rnn_conv": 5, "rnn_residual": True, "rnn_layers": 3,
                                      "rnn_feedforward": 24},
                                     {"rnn_type": "mingru", "features": "mfcc", "n_mfcc": 20},
                                     {"rnn_type": "mingru", "tokenizer": "bpe", "vocabulary": PIECES}], ids=str)
def test_a_stream_gives_the_text_of_the_whole(options, chunk):
    network, waveform = causal_network(**options), load_audio(SPEECH[0])
    expected, = greedy_texts(network, [waveform])
    recognizer, text, fed = StreamingRecognizer(network), "", 0
    for part in waveform.split(chunk):
        text, fed = text + recognizer.feed(part), fed + len(part)
        encoder = recognizer.encoder
        encoded = encoder.done * encoder.frame  # samples whose frames went through the recurrent layers
        assert encoded > fed - encoder.frame * (encoder.context + 1), "later than the context asks for"
    assert len(expected) > 5
    assert (text + recognizer.finish()).strip() == expected


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize(("window", "hop"), [(25, 10), (100, 10), (50, 5), (400, 20), (5, 5)])
def test_a_stream_waits_for_all_that_a_frame_sees(window, hop, stride):
    network = causal_network(rnn_type="mingru", window_ms=window, hop_ms=hop, time_stride=stride, residual_blocks=1)
    waveform, encoder = load_audio(SPEECH[0]), network.streaming_encoder()
    with torch.inference_mode():
        parts = [*map(encoder.feed, waveform.split(1_600)), encoder.finish()]
        whole, _ = network.ctc_log_probs(network.encode(waveform[None], torch.tensor([len(waveform)])))
    torch.testing.assert_close(torch.cat([part for part in parts if part is not None], dim=1), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("samples", [0, 1, 159, 700])
def test_short_streams(samples):
    network = causal_network(rnn_type="mingru")
    recognizer = StreamingRecognizer(network)
    waveform = 0.1 * torch.randn(samples)
    text = recognizer.feed(waveform) + recognizer.finish()
    assert text.strip() == (greedy_texts(network, [waveform])[0] if samples else "")


def test_memory_does_not_grow():
    """Ten times as long a stream keeps no more samples and states."""
    recognizer = StreamingRecognizer(causal_network(rnn_type="mingru"))
    kept = []
    for _ in range(100):
        recognizer.feed(0.1 * torch.randn(4_000))
        kept.append(len(recognizer.encoder.samples) + sum(state.numel() for state in recognizer.encoder.states))
    assert max(kept[50:]) <= max(kept[:50])


@pytest.mark.parametrize(("variant", "message"), [
    ("mingru", "train with --no-bidirectional --feature_norm global"), ("las", "train --model deepspeech2")])
def test_networks_that_need_the_whole_are_refused(variant, message):
    with pytest.raises(StreamingError, match=message):
        StreamingRecognizer(tiny_network(variant))


def wav(samples: np.ndarray, rate: int, channels: int = 1) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return content.getvalue()


def test_raw_and_wav_streams_are_the_same():
    samples = (load_audio(SPEECH[0]).numpy() * 32_000).astype("<i2")
    raw = torch.cat(list(read_stream(io.BytesIO(samples.tobytes()))))
    plain = torch.cat(list(read_stream(io.BytesIO(wav(samples, 16_000)))))
    stereo = torch.cat(list(read_stream(io.BytesIO(wav(np.repeat(samples, 2), 16_000, channels=2)))))
    assert torch.equal(raw, plain) and torch.equal(raw, stereo) and len(raw) == len(samples)
    with pytest.raises(AudioError, match="^standard input: .*not 8000"):
        list(read_stream(io.BytesIO(wav(samples, 8_000))))
    with pytest.raises(AudioError, match="^standard input: .*cannot be streamed"):
        list(read_stream(io.BytesIO(wav(samples, 16_000).replace(b"fmt \x10", b"fmt \x04"))))


@pytest.mark.parametrize(("code", "kind"), [(3, "<f4"), (1, "<i4")])
def test_an_extensible_wav_says_in_its_subformat_what_its_samples_are(code, kind):
    waveform = load_audio(SPEECH[0])
    samples = waveform.numpy() if code == 3 else (waveform.double().numpy() * (1 << 31)).astype(kind)
    data = samples.astype(kind).tobytes()
    form = struct.pack("<HHIIHHHHIH", 0xFFFE, 1, 16_000, 64_000, 4, 32, 22, 32, 4, code) + b"\0\0\0\0\x10\0" + bytes(8)
    content = b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data))
    found = torch.cat(list(read_stream(io.BytesIO(content + data))))
    assert len(found) == len(waveform) and torch.allclose(found, waveform, atol=1e-6)


@pytest.mark.parametrize("after", [b"", b"LIST\x04\0\0\0INFO", bytes(100), b"ID3\x03" + bytes(50), b"TAGtitle"])
def test_a_wav_ends_with_the_samples_that_it_states(after):
    samples = (load_audio(SPEECH[0]).numpy() * 32_000).astype("<i2")
    found = torch.cat(list(read_stream(io.BytesIO(wav(samples, 16_000) + after))))
    assert torch.equal(found, torch.cat(list(read_stream(io.BytesIO(samples.tobytes())))))


@pytest.mark.parametrize("stated", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_of_unknown_size_ends_with_the_stream(stated):
    content = wav(np.ones(9_000), 16_000)
    content = content[:40] + struct.pack("<I", stated) + content[44:]
    assert sum(map(len, read_stream(io.BytesIO(content)))) == 9_000


@pytest.mark.parametrize("more", [wav(np.ones(900), 16_000), np.full(900, -300, "<i2").tobytes()], ids=["wav", "raw"])
def test_sound_after_the_stated_samples_is_not_lost_in_silence(more):
    chunks = read_stream(io.BytesIO(wav(np.ones(900), 16_000) + more))
    assert len(next(chunks)) == 900
    with pytest.raises(AudioError, match="^standard input: goes on after the samples"):
        next(chunks)


@pytest.mark.parametrize(("start", "kind"), [
    (b"fLaC", "FLAC"), (b"OggS", "Ogg"), (b"ID3\x03", "MP3"), (b"RF64\0\0\0\0WAVE", "RF64"),
    (b"RIFX\0\0\0\0WAVE", "RIFX"), (b"RIFF\0\0\0\0AVI ", "RIFF but no WAV"), (b"\0\0\0\x20ftypM4A ", "MP4")])
def test_other_sound_files_are_not_taken_for_samples(start, kind):
    with pytest.raises(AudioError, match=f"^standard input: {kind}, which cannot be streamed; `ffmpeg "):
        list(read_stream(io.BytesIO(start + bytes(9_000))))


@pytest.mark.parametrize(("rate", "chunk"), [(8_000, 1), (16_000, 333), (22_050, 333), (44_101, 20_000), (48_000, 1),
                                             (48_000, 20_000)])
def test_a_stream_is_resampled_as_the_whole(rate, chunk):
    """And little of it is kept: the reach of the filter, or units that are whole samples of both rates."""
    torch.manual_seed(0)
    whole = torch.randn(1_000 if chunk == 1 else 100_000)
    resampler, parts = StreamResampler(rate), []
    for part in whole.split(chunk):
        parts.append(resampler.feed(part))
        assert len(resampler.samples) <= 3 * max(resampler.unit, 0.02 * rate)
    parts.append(resampler.finish())
    assert torch.allclose(torch.cat(parts), resample(whole, rate, 16_000), atol=1e-5)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    network = causal_network(rnn_type="mingru")
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"recognizer": network.config, "state_dict": state}, tmp_path / "x.ckpt")
    waveform = load_audio(SPEECH[0])
    samples = (waveform.numpy() * 32_767).astype("<i2")
    (tmp_path / "x.raw").write_bytes(samples.tobytes())
    monkeypatch.setattr("sys.stdin", (tmp_path / "x.raw").open())
    with pytest.raises(SystemExit) as leave:
        inference.main(["--checkpoint", str(tmp_path / "x.ckpt"), "--stream"])
    assert leave.value.code == 0
    expected, = greedy_texts(network, [torch.from_numpy(samples.astype(np.float32) / 32_768)])
    assert capsys.readouterr().out.strip() == expected
