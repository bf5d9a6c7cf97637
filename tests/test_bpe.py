"""Pieces of words in the place of characters, in everything that a run makes and a reader uses."""

import itertools
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CORPUS, PIECES, ROOT, SPEECH, greedy_texts, tiny_network
from test_ctc_beam import ARPA, CHARACTERS
from torch.nn.utils.rnn import pad_sequence
from training_runs import arguments, assert_same_end, checkpoint, run_together

import evaluate
import train
from models import Recognizer, Transcriber
from models.inference.strategies import joined_parts, piece_lengths
from utils.audio import load_audio
from utils.checkpoint.__main__ import export
from utils.checkpoint.reading import read_checkpoint
from utils.decoding.alignment import align_ctc
from utils.decoding.decoder import Decoder
from utils.decoding.options import DecodingOptions
from utils.errors import UsageError
from utils.lm.ngram import LanguageModelError, NGram
from utils.report.plots import attention_figure, diagnostic_images
from utils.tokenizer import BPETokenizer, learn_vocabulary, normalize
from utils.training.resuming import resume_from
from utils.types import Batch

TOKENIZER = BPETokenizer(vocabulary=PIECES)
FLAGS = ["--tokenizer", "bpe", "--vocab_size", "80"]
needs_sentencepiece = pytest.mark.skipif(find_spec("sentencepiece") is None, reason="sentencepiece is not installed")


def emissions(text: str, each: int = 4) -> torch.Tensor:
    """(T, C) log-probabilities of `text`: each piece for one frame, then blanks."""
    path = [token for token in TOKENIZER.encode(text) for token in [token] + [0] * (each - 1)]
    return (0.999 * torch.nn.functional.one_hot(torch.tensor(path), TOKENIZER.ctc_size) + 1e-5).log()


def train_texts() -> list[str]:
    return [normalize(line.split(" ", 1)[1]) for path in (CORPUS / "train").rglob("*.trans.txt")
            for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of two epochs with 80 pieces."""
    pytest.importorskip("sentencepiece")
    output = tmp_path_factory.mktemp("bpe") / "whole"
    train.main(arguments(output, *FLAGS, "--epochs", "2"))
    return output


# -- training ------------------------------------------------------------------------------------


def test_a_run_learns_its_pieces_and_keeps_them(whole):
    """They are those of the training transcripts, in the checkpoint as plain values; the flags stay flags."""
    saved = checkpoint(whole, "best")["recognizer"]
    assert saved["tokenizer"] == "bpe" and saved["vocabulary"] == learn_vocabulary(
        train_texts(), alphabet=saved["alphabet"], vocab_size=80)
    network = Recognizer.from_checkpoint(whole / "checkpoints" / "best.ckpt")
    assert network.tokenizer.ctc_size == 81 == network.head[-1].out_features
    assert network.tokenizer.config == {name: saved[name] for name in ("tokenizer", "alphabet", "vocabulary")}
    flags = yaml.safe_load((whole / "config.yaml").read_text())
    assert flags["vocab_size"] == 80 and "vocabulary" not in flags
    assert train.parse_arguments(["--config", str(whole / "config.yaml")]).tokenizer == "bpe"
    assert json.loads((whole / "results.json").read_text())["test"]["utterances"] == 5


@pytest.mark.parametrize("model", Recognizer.registry)
def test_a_resumed_run_learns_nothing_anew(whole, tmp_path, monkeypatch, model):
    """It ends as the unbroken one, with the pieces of its checkpoint, whatever the transcripts are by now."""
    if model != "deepspeech2":
        train.main(arguments(tmp_path / "whole", *FLAGS, "--epochs", "2", model=model))
    whole = whole if model == "deepspeech2" else tmp_path / "whole"
    first = next((whole / "checkpoints").glob("epoch000*.ckpt"))
    monkeypatch.setattr(train, "learn_vocabulary", lambda *_, **__: pytest.fail("it learns again"))
    train.main(arguments(tmp_path / "resumed", *FLAGS, "--epochs", "2", "--checkpoint_path", str(first), model=model))
    assert_same_end(whole, tmp_path / "resumed")
    assert checkpoint(tmp_path / "resumed")["recognizer"] == checkpoint(whole)["recognizer"]


@pytest.mark.parametrize(("flags", "reason"), [
    (["--tokenizer", "bpe", "--vocab_size", "90"], "--vocab_size was 80, is 90"),
    (["--tokenizer", "char"], "--tokenizer was 'bpe', is 'char'"),
    (["--tokenizer", "bpe", "--alphabet", " abcdefghijklmnopqrstuvwxyz'."], "--alphabet was "),
])
def test_another_tokenizer_does_not_go_on(whole, tmp_path, flags, reason):
    args = train.parse_arguments(arguments(tmp_path / "run", *flags, "--checkpoint_path",
                                           str(whole / "checkpoints" / "last.ckpt")))
    with pytest.raises(UsageError, match=reason):
        train.train(args)
    args = train.parse_arguments(arguments(tmp_path / "run", "--tokenizer", "bpe", "--checkpoint_path",
                                           str(whole / "checkpoints" / "last.ckpt")))
    assert train.find_vocabulary(args, resume_from(args)[1]) == checkpoint(whole)["recognizer"]["vocabulary"]


@needs_sentencepiece
@pytest.mark.parametrize(("flags", "reason"), [
    (["--tokenizer", "bpe", "--vocab_size", "54"], "--vocab_size 54 must be above 54"),
    (["--tokenizer", "bpe"], "--vocab_size 500 must be at most "),
    (["--tokenizer", "bpe", "--vocab_size", "1000000"], "--vocab_size 1000000 must be at most "),
    (["--tokenizer", "bpe", "--vocab_size", "4000000000"], "--vocab_size: 4000000000 must be at least 1 and at most "),
    (["--tokenizer", "bpe", "--print_model", "--train_sets", "train-clean-100"], "learnt from train-clean-100, "),
    (["--vocab_size", "80"], "--vocab_size 80: goes with --tokenizer bpe"),
    (["--tokenizer", "bpe", "--alphabet", " ▁ab"], "alphabet must not hold ▁"),
    (["--tokenizer", "words"], "invalid choice: 'words'"),
    (["--tokenizer", "bpe", "--vocab_size", "80", "--train_sets", "absent"], "no split 'absent'"),
])
def test_what_cannot_be_learnt_is_said_in_one_line(tmp_path, capsys, flags, reason):
    with pytest.raises(SystemExit, match="2"):
        train.main(arguments(tmp_path / "run", *flags))
    said = capsys.readouterr().err
    assert said.startswith("train.py: error: ") and reason in said and said.count("\n") == 1


def test_the_missing_library_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(SystemExit, match="2"):
        train.main(arguments(tmp_path / "run", *FLAGS))
    assert "--tokenizer bpe needs sentencepiece; pip install -r requirements.txt" in capsys.readouterr().err


@needs_sentencepiece
def test_two_processes_learn_the_same(whole, tmp_path):
    """Were they to differ, one of them would have another network, or other targets for it."""
    done = run_together(2, *arguments(tmp_path / "run", *FLAGS, "--epochs", "1", "--batch_size", "3"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("80 pieces learnt from 10 transcripts") == 1
    assert checkpoint(tmp_path / "run")["recognizer"]["vocabulary"] == checkpoint(whole)["recognizer"]["vocabulary"]


def test_a_shared_file_holds_the_pieces(whole, tmp_path):
    """As safetensors: the same network, text and words, without the library that learnt them."""
    source, target = whole / "checkpoints" / "best.ckpt", tmp_path / "x.safetensors"
    export([source], target)
    assert read_checkpoint(target)["recognizer"] == read_checkpoint(source)["recognizer"]
    program = ("import sys; sys.modules['sentencepiece'] = None; from models import Transcriber\n"
               "for path in sys.argv[2:]: print(Transcriber(path).transcribe(sys.argv[1]))")
    done = subprocess.run([sys.executable, "-c", program, *map(str, (SPEECH[0], source, target))], cwd=ROOT,
                          capture_output=True, text=True, timeout=100)
    one, other = done.stdout.splitlines()
    assert one == other and one.startswith("Transcript(") and not done.stderr


# -- decoding --------------------------------------------------------------------------------------


def speller(seed: int) -> tuple[Recognizer, Batch]:
    """A network of strong opinions over six pieces, and an utterance of at most 4 tokens."""
    torch.manual_seed(seed)
    network = Recognizer.build("las", n_mels=20, listener_size=12, pyramid_layers=2, attention_size=16, speller_size=16,
                               embedding_size=16, tokenizer="bpe", alphabet=" ab", vocabulary=["ba", "▁ab"]).eval()
    network.speller.perceptron.weight.data *= 4
    network.speller.output.weight.data *= 12
    network.speller.output.bias.data[network.tokenizer.eos] -= 8  # it would end at once
    return network, torch.randn(1, 1600)


def all_scores(network: Recognizer, waveform: torch.Tensor) -> dict[tuple[int, ...], float]:
    """The log-probability of every token sequence, given as the reference."""
    tokenizer = network.tokenizer
    strings = [list(s) for length in range(5) for s in itertools.product(range(1, 7), repeat=length)]
    counts = torch.tensor([len(s) for s in strings])
    batch = Batch(waveform.expand(len(strings), -1), torch.full((len(strings),), 1600),
                  torch.tensor([s + [0] * (4 - len(s)) for s in strings]), counts, [], [], [])
    log_probs, _ = network(batch)
    return {tuple(s): log_probs[row].double()[range(len(s) + 1), [*s, tokenizer.eos]].sum().item()
            for row, s in enumerate(strings)}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 2.0])
@torch.no_grad()
def test_attention_with_an_ngram_over_words_scores_every_text(tmp_path, alpha):
    """ln P of the speller + alpha ln P_LM of the words that pieces make, wherever a mark or the end closes them."""
    (tmp_path / "words.arpa").write_text(ARPA)
    for seed in range(3):
        network, waveform = speller(seed)
        ngram, expected = NGram(tmp_path / "words.arpa", network.tokenizer), {}
        for tokens, score in all_scores(network, waveform).items():  # of pieces that make one text, the best counts
            text = network.tokenizer.text(tokens)
            expected[text] = max(score + alpha * ngram.log_prob(text), expected.get(text, -1e9))
        options = DecodingOptions(decoder="beam", beam_size=3000, nbest=3000, length_power=0.0, alpha=alpha,
                                  lm=str(ngram.path))
        with Decoder(options, network.tokenizer) as decoder:
            found, = network.search(network.encode(waveform, torch.tensor([1600])), decoder)
        assert {one.text: one.score for one in found} == pytest.approx(expected, abs=1e-4)
        assert found[0].text == max(expected, key=expected.get)


@torch.no_grad()
def test_an_ngram_over_characters_orders_texts_but_does_not_steer_pieces(tmp_path):
    (tmp_path / "characters.arpa").write_text(CHARACTERS)
    network, waveform = speller(0)
    encoding = network.encode(waveform, torch.tensor([1600]))
    options = {"decoder": "beam", "beam_size": 8, "nbest": 8, "lm": str(tmp_path / "characters.arpa"), "alpha": 0.8}
    with Decoder(DecodingOptions(**options), network.tokenizer) as decoder, pytest.raises(
            LanguageModelError, match="characters.arpa: .* --unit word, or add --lm_fusion rescore$"):
        network.search(encoding, decoder)
    with Decoder(DecodingOptions(**{**options, "lm": None}), network.tokenizer) as decoder:
        plain, = network.search(encoding, decoder)
    with Decoder(DecodingOptions(**options, lm_fusion="rescore"), network.tokenizer) as decoder:
        rescored, = network.search(encoding, decoder)
        ngram = decoder.ngram
    expected = {one.text: one.score + 0.8 * ngram.log_prob(one.text) for one in plain}
    assert {one.text: one.score for one in rescored} == pytest.approx(expected, abs=1e-9)


# -- words in time, long recordings --------------------------------------------------------------------


def test_a_word_lasts_from_its_first_to_its_last_piece():
    """`added` is two pieces, `sir` is two, `friend` one; all others letters."""
    text = "no sir added friend x"
    words = align_ctc(emissions(text, each=5), text, TOKENIZER, frame_seconds=0.04)
    assert [word.word for word in words] == text.split()
    places = [span.first for span in TOKENIZER.words(TOKENIZER.encode(text))]
    assert [TOKENIZER.labels[TOKENIZER.encode(text)[place]][0] for place in places] == ["▁"] * 5
    for word, (_, first, last) in zip(words, TOKENIZER.words(TOKENIZER.encode(text)), strict=True):
        assert word.start == pytest.approx(max(0, (5 * first - 1) * 0.04), abs=1e-3)
        assert word.end == pytest.approx((5 * last + 0.5) * 0.04, abs=1e-3)
        assert word.confidence > 0.99
    assert align_ctc(emissions("no"), "no sir said the man to him", TOKENIZER, 0.04) is None


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_windows_join_before_a_piece_that_begins_a_word(shift):
    """Also where one window has its pieces a frame earlier or later than the other: no word is lost or comes twice."""
    words = "the quick brown fox jumps over the lazy dog and then it sleeps in the sun for a while".split() * 3
    whole, step, overlap = emissions(" ".join(words)), 80, 48
    windows = [whole[start : start + step + overlap].clone() for start in range(0, len(whole) - overlap, step)]
    for window in windows[1:]:
        window[:8] = emissions("zz")  # the beginning of a window is wrong
    for window in windows[:-1]:
        window[-8:] = emissions("zz")
    silence = emissions("x")[1:2]  # one frame
    windows[1::2] = [torch.cat([silence, window, silence])[1 - shift :][: len(window)] for window in windows[1::2]]
    parts = joined_parts(windows, step, TOKENIZER.boundaries)
    joined = torch.cat([window[part] for window, part in zip(windows, parts, strict=True)])
    with Decoder(DecodingOptions(), TOKENIZER) as decoder:
        (best,), = decoder.search_ctc(joined[None], torch.tensor([len(joined)]))
    assert best.text.split() == words
    assert shift or torch.equal(joined, whole)


def test_pieces_of_log_probabilities_end_between_words():
    text = "one two three four five six seven eight nine ten eleven twelve"
    whole, read = emissions(text), []
    parts = whole.split(piece_lengths(whole, 60, TOKENIZER.boundaries))
    assert len(parts) > 2 and all(len(part) <= 60 for part in parts) and torch.equal(torch.cat(parts), whole)
    for part in parts:
        tokens = [token for token in part.argmax(-1).tolist() if token]
        assert tokens[0] in TOKENIZER.boundaries
        read += TOKENIZER.text(tokens).split()
    assert read == text.split()


@pytest.mark.parametrize("variant", ["bpe", "las-bpe"])
def test_long_recordings_have_words_in_time(variant):
    waveform = torch.cat([load_audio(path) for path in SPEECH])
    waveform = waveform.repeat(-(-80 * 16_000 // len(waveform)))[: 80 * 16_000]
    with Transcriber(tiny_network(variant), batch_size=3, segment_seconds=5) as transcriber:
        long, short = (transcriber.transcribe(samples) for samples in (waveform, load_audio(SPEECH[0])))
    assert short.text == greedy_texts(transcriber.network, [load_audio(SPEECH[0])])[0]
    for transcript in (long, short):
        assert [word.word for word in transcript.words] == transcript.text.split()
        assert all(0 <= word.start <= word.end <= transcript.seconds + 0.5 for word in transcript.words)


# -- reports -------------------------------------------------------------------------------------------


def test_figures_name_pieces():
    """The rows of attention are pieces, as many as there are; posteriors have one line for each."""
    network = tiny_network("las-bpe").eval()
    tokens = [torch.tensor(network.tokenizer.encode(text)) for text in ("no sir", "he added")]
    waveforms = [load_audio(path)[:20_000] for path in SPEECH[:2]]
    batch = Batch(pad_sequence(waveforms, batch_first=True), torch.tensor([20_000, 20_000]),
                  pad_sequence(tokens, batch_first=True), torch.tensor([len(one) for one in tokens]),
                  ["no sir", "he added"], ["a", "b"], [])
    with torch.no_grad():
        weights = network.diagnostics(batch)["attention"]
        assert set(diagnostic_images(network, batch)) == {"attention", "posteriors"}
    labels = [[network.tokenizer.labels[token] for token in one.tolist()] for one in tokens]
    figure = attention_figure(weights, batch.texts, labels)
    assert [[tick.get_text() for tick in axis.get_yticklabels()] for axis in figure.axes] == labels
    assert labels == [["▁no", "▁s", "ir"], ["▁h", "e", "▁ad", "ded"]]


def test_characters_and_pieces_are_compared_on_the_same_utterances(whole, tmp_path, capsys):
    """Their alphabets are the same, so one evaluation takes both, with a report."""
    train.main(arguments(tmp_path / "char", "--epochs", "1"))
    networks = [str(run / "checkpoints" / "best.ckpt") for run in (whole, tmp_path / "char")]
    evaluate.main([f"--data_root={CORPUS}", "--test_sets", "test", "--checkpoint", *networks, "-w", "0",
                   "--device", "cpu", "--report", str(tmp_path / "report"), "--cache_dir", str(tmp_path / "cache")])
    assert "whole/best" in capsys.readouterr().out and (tmp_path / "report" / "report.html").is_file()
