"""Augmentation of training waveforms: what each flag does, that the seed alone decides it, and what is refused."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import CORPUS, SPEECH
from test_data import data_module, same
from test_resume_flags import refused
from training_runs import arguments, assert_same_end

import train
from data.augment import Augmentation
from data.index import DataError
from data.options import AugmentationOptions
from utils.audio import SAMPLE_RATE, AudioError, load_audio
from utils.errors import UsageError

ALL = {"noise_db": [5, 30], "reverb_share": 0.5, "tilt": 0.35, "telephone_share": 0.5, "gain_db": [-20, 10]}
FLAGS = ["--noise_db", "5", "30", "--reverb_share", "0.5", "--tilt", "0.35", "--telephone_share", "0.5", "--gain_db",
         "-20", "10"]


@pytest.fixture
def speech() -> torch.Tensor:
    waveform = load_audio(SPEECH[0])
    return waveform * (0.5 / waveform.abs().max())  # so that full scale limits nothing


@pytest.fixture
def sounds(tmp_path) -> Path:
    """A folder of recordings: 50 ms and 20 s of a 1 kHz tone, at other rates too."""
    folder = tmp_path / "sounds" / "deeper"
    folder.mkdir(parents=True)
    for seconds, rate in ((0.05, 16_000), (20, 16_000), (3, 8_000)):
        tone = np.sin(2 * math.pi * 1000 * np.arange(round(rate * seconds)) / rate) / 4
        soundfile.write(folder / f"{seconds}.wav", tone, rate)
    return folder.parent


def augmentation(tmp_path: Path, **options) -> Augmentation:
    return Augmentation(AugmentationOptions(**options), tmp_path / "cache")


def decibels(ratio: torch.Tensor) -> float:
    return 10 * math.log10(float(ratio))


def power(waveform: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """The energy of a (S,) waveform between two frequencies in Hz."""
    frequencies = torch.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)
    return torch.fft.rfft(waveform).abs()[(frequencies >= low) & (frequencies < high)].square().sum()


# -- each flag -------------------------------------------------------------------------------------


def test_nothing_is_done_by_default(tmp_path, speech):
    assert augmentation(tmp_path)(speech, 1) is speech


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("ratio", [-5, 10, 30])
def test_noise_lies_so_far_below_the_speech(tmp_path, speech, sounds, ratio, recorded):
    augment = augmentation(tmp_path, noise_db=[ratio, ratio], noise_dir=str(sounds) if recorded else None)
    for seed in range(8):
        noisy = augment(speech, seed)
        if ratio > 0:  # else full scale may limit both
            assert decibels(speech.square().sum() / (noisy - speech).square().sum()) == pytest.approx(ratio, abs=0.6)
        noise = noisy - speech * (noisy @ speech / (speech @ speech))
        assert decibels(speech.square().sum() / noise.square().sum()) > ratio - 7
        if recorded:
            assert power(noise, 950, 1050) > 0.8 * noise.square().sum() * len(noise) / 2, "it is the tone of the files"


def test_ratios_and_colours_of_noise_vary(tmp_path, speech):
    augment = augmentation(tmp_path, noise_db=[0, 40])
    noises = [augment(speech, seed) - speech for seed in range(40)]
    ratios = [decibels(speech.square().sum() / noise.square().sum()) for noise in noises]
    slopes = [decibels(power(noise, 100, 200) / power(noise, 6400, 6500)) for noise in noises]
    assert min(ratios) < 10 and max(ratios) > 30 and min(ratios) > -1
    assert min(slopes) < 6 and max(slopes) > 24, "about 0 dB is white, 36 brown"


def test_a_room_dies_away(tmp_path):
    """A click keeps its place and its energy, which falls off behind it."""
    click = torch.zeros(SAMPLE_RATE)
    click[1000] = 0.5
    for seed in range(8):
        heard = augmentation(tmp_path, reverb_share=1.0)(click, seed)
        assert heard.abs().argmax() == 1000 and heard[:1000].abs().max() < 1e-5
        assert decibels(heard.square().sum() / 0.25) == pytest.approx(0, abs=0.5)
        parts = heard[1001:].square().unfold(0, 1600, 1600).sum(dim=1)
        assert parts[0] > 1e-4
        assert all(decibels(a / b) > 4 for a, b in pairwise(parts) if b > 1e-9), "7.5 dB in 100 ms, or more"


def test_a_given_impulse_response_is_taken_from_its_peak(tmp_path, speech):
    response = np.zeros(4000)
    response[[500, 900]] = 0.8, 0.4  # an echo, 400 samples after the direct sound
    (tmp_path / "rooms").mkdir()
    soundfile.write(tmp_path / "rooms" / "a.wav", response, SAMPLE_RATE)
    heard = augmentation(tmp_path, reverb_share=1.0, reverb_dir=str(tmp_path / "rooms"))(speech, 3)
    expected = speech.clone()
    expected[400:] += 0.5 * speech[:-400]
    scale = heard @ expected / (expected @ expected)
    torch.testing.assert_close(heard, expected * scale, atol=1e-4, rtol=0)
    assert decibels(heard.square().sum() / speech.square().sum()) == pytest.approx(0, abs=0.3)


def test_a_telephone_leaves_its_band_and_its_codec_a_noise_as_loud_as_the_moment(tmp_path):
    noise = 0.1 * torch.randn(2 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    noise[SAMPLE_RATE:] /= 100  # 40 dB less in the second half
    augment, kept, window = augmentation(tmp_path, telephone_share=1.0), [], torch.hann_window(SAMPLE_RATE)
    for seed in range(20):
        for half in augment(noise, seed).split(SAMPLE_RATE):
            kept.append([decibels(power(half * window, *band) / power(noise[:SAMPLE_RATE] * window, *band))
                         for band in ((20, 150), (500, 2800), (4050, 8000))])
    lowest, middle, highest = torch.tensor(kept).view(20, 2, 3).unbind(-1)
    torch.testing.assert_close(middle, torch.tensor([[0.0, -40.0]]).expand(20, 2), atol=0.7, rtol=0)
    assert lowest[:, 0].min() < -20 and lowest[:, 0].max() > -6, "bands begin at 0 to 300 Hz"
    assert -65 < highest[:, 0].min() < -50 and -45 < highest[:, 0].max() < -35, "of the codec"
    torch.testing.assert_close(highest[:, 1], highest[:, 0] - 40, atol=1.0, rtol=0)


def test_a_microphone_tilts_the_spectrum(tmp_path):
    noise = 0.1 * torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    tilts = []
    for seed in range(20):
        heard = augmentation(tmp_path, tilt=0.35)(noise, seed)
        low, high = (decibels(power(heard, *band) / power(noise, *band)) for band in ((0, 500), (7500, 8000)))
        tilts.append(high - low)
    assert min(tilts) < -3 and max(tilts) > 3 and max(map(abs, tilts)) < 6.4, "20 log10(1.35 / 0.65)"


def test_the_level_changes_and_never_beyond_full_scale(tmp_path, speech):
    for seed in range(20):
        quieter = augmentation(tmp_path, gain_db=[-20, -10])(speech, seed)
        gain = 20 * math.log10(float(quieter.abs().max() / speech.abs().max()))
        assert -20 <= gain <= -10
        torch.testing.assert_close(quieter, speech * 10 ** (gain / 20))
    louder = augmentation(tmp_path, gain_db=[40, 40])(speech, 0)
    torch.testing.assert_close(louder, speech * 2)  # as loud as full scale, with no sample cut


def test_shares_are_of_the_utterances(tmp_path, speech):
    for flag in ("reverb_share", "telephone_share"):
        augment = augmentation(tmp_path, **{flag: 0.3})
        changed = sum(not torch.allclose(augment(speech[:4000], seed), speech[:4000]) for seed in range(200))
        assert 40 <= changed <= 80


@pytest.mark.parametrize("length", [1, 2, 160, 16_001])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 1.0, 1e30])
def test_any_length_and_level_stays_finite(tmp_path, sounds, length, scale):
    waveform = scale * torch.randn(length, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    for folder in (None, str(sounds)):
        augment = augmentation(tmp_path, **ALL, noise_dir=folder, reverb_dir=folder)
        for seed in range(20):
            heard = augment(waveform, seed)
            assert heard.shape == waveform.shape and heard.dtype == torch.float32
            assert heard.isfinite().all() and heard.abs().max() <= 1 + 1e-6
            assert scale or not heard.any(), "silence stays silent"


# -- the seed alone decides ------------------------------------------------------------------------


def test_neither_order_nor_threads_nor_other_random_numbers_matter(tmp_path, sounds):
    waveform = torch.randn(12 * SAMPLE_RATE + 77, generator=torch.Generator().manual_seed(0)) / 5
    augment = augmentation(tmp_path, **ALL, noise_dir=str(sounds))
    first = [augment(waveform, seed) for seed in range(6)]
    assert not any(torch.equal(a, b) for a, b in pairwise(first))
    try:
        torch.set_num_threads(2)
        torch.manual_seed(5), np.random.seed(5)
        assert all(torch.equal(augment(waveform, seed), first[seed]) for seed in reversed(range(6)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_workers_change_nothing_and_epochs_do(tmp_path, sounds):
    options = {**ALL, "noise_dir": str(sounds), "cache_dir": str(tmp_path)}
    one, two = (data_module(CORPUS, num_workers=workers, **options).train_dataloader() for workers in (0, 2))
    epochs = []
    for epoch in (0, 1):
        one.batch_sampler.set_epoch(epoch), two.batch_sampler.set_epoch(epoch)
        epochs.append(list(one))
        assert all(same(a, b) for a, b in zip(epochs[-1], two, strict=True))
    waveforms = [{id: row for batch in batches for id, row in zip(batch.ids, batch.waveforms, strict=True)}
                 for batches in epochs]
    assert not any(torch.equal(row[:8000], waveforms[1][id][:8000]) for id, row in waveforms[0].items())


def test_nothing_but_training_is_augmented(tmp_path):
    plain, other = (data_module(CORPUS, cache_dir=str(tmp_path), **options) for options in ({}, ALL))
    for loaders in ("val_dataloader", "test_dataloader"):
        pairs = zip(getattr(plain, loaders)()[0], getattr(other, loaders)()[0], strict=True)
        assert all(same(a, b) for a, b in pairs)
    assert not same(next(iter(plain.train_dataloader())), next(iter(other.train_dataloader())))


def test_a_resumed_run_ends_as_the_unbroken_one(tmp_path):
    """From within an epoch; and it may go on with other flags, as with another speed."""
    flags = ["--epochs", "2", "--batch_size", "3", "--checkpoint_every", "5", "--test_sets", *FLAGS]
    train.main(arguments(tmp_path / "whole", *flags))
    path = str(tmp_path / "whole" / "checkpoints" / "periodic.ckpt")
    train.main(arguments(tmp_path / "resumed", *flags, "--checkpoint_path", path))
    assert_same_end(tmp_path / "whole", tmp_path / "resumed")
    train.main(arguments(tmp_path / "other", *flags, "--noise_db", "--gain_db", "-3", "3", "--checkpoint_path", path))
    config = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())
    assert config["noise_db"] == [] and config["gain_db"] == [-3, 3]
    with pytest.raises(AssertionError):
        assert_same_end(tmp_path / "whole", tmp_path / "other")


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "message"), [
    (["--noise_db", "30", "5"], "--noise_db 30.0 5.0: give the lowest and the highest"),
    (["--noise_db", "5"], "--noise_db 5.0: give the lowest and the highest"),
    (["--gain_db", "1", "0"], "--gain_db 1.0 0.0: give the lowest and the highest"),
    (["--gain_db", "nan", "0"], "nan must be from -100 to 100"),
    (["--noise_db", "5", "1000"], "1000 must be from -100 to 100"),
    (["--reverb_share", "1.5"], "1.5 must be from 0 to 1"),
    (["--telephone_share", "nan"], "nan must be from 0 to 1"),
    (["--tilt", "1"], "1 must be at least 0 and below 1"),
    (["--noise_dir", "noises"], "--noise_dir noises: needs --noise_db"),
    (["--reverb_dir", "rooms"], "--reverb_dir rooms: needs --reverb_share"),
    (["--noise_db", "5", "9", "--noise_dir", "/nowhere"], "--noise_dir /nowhere: cannot be listed (No such file"),
    (["--reverb_share", "1", "--reverb_dir", "/nowhere"], "--reverb_dir /nowhere: cannot be listed (No such file"),
])
def test_bad_values_are_refused_in_one_line(tmp_path, capsys, flags, message):
    assert message in refused(capsys, *arguments(tmp_path / "run", *flags))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_folder_without_sound_is_refused(tmp_path):
    (tmp_path / "noises").mkdir()
    (tmp_path / "noises" / "readme.txt").write_text("nothing to hear")
    with pytest.raises(DataError, match=r"--noise_dir .*/noises: no \.flac, .* there that can be read$"):
        augmentation(tmp_path, noise_db=[5, 9], noise_dir=str(tmp_path / "noises"))
    (tmp_path / "noises" / "a.wav").write_text("no sound")
    with pytest.raises(DataError, match=r"there that can be read \(.*a\.wav: not audio"):
        augmentation(tmp_path, noise_db=[5, 9], noise_dir=str(tmp_path / "noises"))


def test_a_noise_that_cannot_be_read_is_named_and_left_out(tmp_path, sounds, capsys, speech):
    (sounds / "bad.wav").write_text("no sound")
    augment = augmentation(tmp_path, noise_db=[5, 9], noise_dir=str(sounds))
    line, = capsys.readouterr().out.splitlines()
    assert line.startswith("--noise_dir: 3 recordings; 1 left out, such as ") and "bad.wav: not audio" in line
    assert all(augment(speech, seed).isfinite().all() for seed in range(20))


def test_what_goes_bad_later_ends_the_run_in_one_line(tmp_path, sounds, speech):
    augment = augmentation(tmp_path, noise_db=[5, 9], noise_dir=str(sounds))
    for path in sounds.rglob("*.wav"):
        path.unlink()
    with pytest.raises(AudioError, match="no such file"):
        augment(speech, 0)


def test_a_silent_impulse_response_is_named(tmp_path, speech):
    (tmp_path / "rooms").mkdir()
    soundfile.write(tmp_path / "rooms" / "a.wav", np.zeros(100), SAMPLE_RATE)
    with pytest.raises(AudioError, match="rooms/a.wav: silent"):
        augmentation(tmp_path, reverb_share=1.0, reverb_dir=str(tmp_path / "rooms"))(speech, 0)


def test_options_from_python_are_checked_too():
    with pytest.raises(UsageError, match="--noise_db"):
        AugmentationOptions(noise_db=[9.0, 5.0])
