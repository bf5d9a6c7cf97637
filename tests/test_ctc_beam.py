"""CTC beam search and the n-gram in every search, against trying every text of a tiny alphabet."""

import itertools
import logging
import math
import multiprocessing
import sys
import threading
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY

from models import Recognizer
from utils.decoding.ctc_beam import CTCBeamSearch, without_sure_blanks
from utils.decoding.decoder import Decoder
from utils.decoding.options import DecodingOptions
from utils.errors import UsageError
from utils.lm.kneser_ney import BackoffModel, number_words
from utils.lm.ngram import LN10, LanguageModelError, NGram
from utils.lm.scorer import NGramScorer
from utils.tokenizer import BPETokenizer, CharTokenizer, Tokenizer

pytest.importorskip("kenlm")
BACKENDS = ("native", "pyctcdecode")
TOKENIZER = CharTokenizer(alphabet=" ab")
PIECES = BPETokenizer(alphabet=" ab", vocabulary=["ba", "▁ab"])
over_tokenizers = pytest.mark.parametrize("tokenizer", [TOKENIZER, PIECES], ids=["char", "bpe"])
UNKNOWN = -10 * LN10  # what each word that the n-gram does not list costs besides, before alpha
ARPA = """\\data\\
ngram 1=7
ngram 2=6

\\1-grams:
-99\t<s>\t-0.5
-1.0\t</s>
-1.5\t<unk>
-0.4\ta\t-0.3
-0.9\tab\t-0.2
-0.7\tb\t-0.1
-1.2\tbb\t-0.4

\\2-grams:
-1.9\t<s> </s>
-0.3\t<s> ab
-0.2\ta b
-0.3\tb </s>
-0.6\tb a
-0.2\tbb ab

\\end\\
"""
CHARACTERS = """\\data\\
ngram 1=6
ngram 2=4

\\1-grams:
-99\t<s>\t-0.5
-1.0\t</s>\t0
-2.0\t<unk>\t0
-0.4\ta\t-0.3
-0.6\tb\t-0.2
-0.7\t<space>\t-0.1

\\2-grams:
-0.1\t<s> a
-0.2\ta b
-1.8\t<space> <space>
-0.3\tb <space>

\\end\\
"""


@pytest.fixture(autouse=True)
def quiet(caplog):
    """pyctcdecode warns of small n-grams."""
    caplog.set_level(logging.ERROR, logger="pyctcdecode")


@pytest.fixture
def words(tmp_path) -> str:
    (tmp_path / "words.arpa").write_text(ARPA)
    return str(tmp_path / "words.arpa")


@pytest.fixture
def characters(tmp_path) -> str:
    (tmp_path / "characters.arpa").write_text(CHARACTERS)
    return str(tmp_path / "characters.arpa")


def random_emissions(seed: int, frames: int, classes: int = TOKENIZER.ctc_size, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(frames, classes, generator=generator)).log_softmax(dim=-1)


def many_emissions(tokenizer: Tokenizer, count: int = 30) -> list[torch.Tensor]:
    """Of 3 to 5 frames, so that every text can be tried; the more classes there are, the fewer and shorter they are."""
    few = tokenizer.ctc_size > 4
    return [random_emissions(seed, 3 + seed % (2 if few else 3), tokenizer.ctc_size)
            for seed in range(count // 3 if few else count)]


def all_texts(log_probs: torch.Tensor, tokenizer: Tokenizer = TOKENIZER) -> dict[str, float]:
    """ln P_CTC of every text of (T, C) log-probabilities: strings that differ in spaces, or in pieces, are summed."""
    frames, symbols = len(log_probs), range(1, tokenizer.ctc_size)
    strings = [list(s) for length in range(frames + 1) for s in itertools.product(symbols, repeat=length)]
    targets = torch.tensor([s + [1] * (frames - len(s)) for s in strings])
    losses = F.ctc_loss(log_probs.double()[:, None].expand(-1, len(strings), -1), targets,
                        torch.full((len(strings),), frames), torch.tensor([len(s) for s in strings]), reduction="none")
    found: dict[str, list[float]] = {}
    for string, loss in zip(strings, losses.tolist(), strict=True):
        if loss < math.inf:
            found.setdefault(tokenizer.text(string), []).append(-loss)
    return {text: torch.tensor(logs, dtype=torch.float64).logsumexp(0).item() for text, logs in found.items()}


def with_ngram(texts: dict[str, float], ngram: NGram, alpha: float, beta: float) -> dict[str, float]:
    """ln P_CTC + alpha (ln P_LM with the beginning and the end - 10 ln 10 a word not listed) + beta a word."""
    return {text: log_prob + alpha * (ngram.log_prob(text) + UNKNOWN * len([w for w in text.split()
                                                                          if w not in ngram.words]))
            + beta * len(text.split()) for text, log_prob in texts.items()}


def exact(**options) -> DecodingOptions:
    """Beam search that drops nothing."""
    return DecodingOptions(**{"decoder": "beam", "beam_size": 3000, "nbest": 3000, "beam_prune_logp": -1e9,
                              "token_min_logp": -1e9, **options})


def search(emissions: list[torch.Tensor], options: DecodingOptions, tokenizer: Tokenizer = TOKENIZER) -> list[list]:
    padded = torch.nn.utils.rnn.pad_sequence(emissions, batch_first=True)
    with Decoder(options, tokenizer, workers=1) as decoder:
        return decoder.search_ctc(padded, torch.tensor([len(one) for one in emissions]))


def check_all(found: list, expected: dict[str, float]) -> None:
    """Every text once, best first, each with its score, but for those that no path of any weight spells."""
    assert found[0].text == max(expected, key=expected.get)
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
    assert len({c.text for c in found}) == len(found)
    scores = {c.text: c.score for c in found}
    assert scores == pytest.approx(expected, abs=1e-4)


@over_tokenizers
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_text_has_its_probability(backend, tokenizer):
    """A wide beam without pruning lists every text with the sum of its paths, spaces not told apart."""
    emissions = many_emissions(tokenizer)
    for found, one in zip(search(emissions, exact(decoder_backend=backend), tokenizer), emissions, strict=True):
        check_all(found, all_texts(one, tokenizer))


@over_tokenizers
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("alpha", "beta"), [(0.7, 0.4), (2.0, -1.5), (0.0, 3.0)])
def test_every_text_has_its_probability_with_an_ngram(words, backend, alpha, beta, tokenizer):
    """Whatever spaces its paths have, at the end too; the empty text among them."""
    ngram, emissions = NGram(words, tokenizer), many_emissions(tokenizer)
    options = exact(decoder_backend=backend, lm=words, alpha=alpha, beta=beta)
    for found, one in zip(search(emissions, options, tokenizer), emissions, strict=True):
        expected = with_ngram(all_texts(one, tokenizer), ngram, alpha, beta)
        assert "" in expected and "ba" in expected, "an unknown word"
        check_all(found, expected)


@over_tokenizers
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_lm", [False, True])
def test_hotwords_count_for_each_of_their_words(words, backend, with_lm, tokenizer):
    """A phrase favours its words, wherever they stand; alpha does not weigh them."""
    emissions = many_emissions(tokenizer, 10)
    options = exact(decoder_backend=backend, lm=words if with_lm else None, alpha=0.7, beta=0.4,
                    hotwords=["a ba", "b"], hotword_weight=1.5)
    for found, one in zip(search(emissions, options, tokenizer), emissions, strict=True):
        expected = all_texts(one, tokenizer)
        if with_lm:
            expected = with_ngram(expected, NGram(words, tokenizer), 0.7, 0.4)
        check_all(found, {text: score + 1.5 * sum(word in ("a", "ba", "b") for word in text.split())
                          for text, score in expected.items()})


@pytest.mark.parametrize("backend", BACKENDS)
def test_hotwords_in_capitals(backend):
    """As people write names: they are normalised as transcripts are."""
    emissions = [random_emissions(seed, 4) for seed in range(5)]
    small, capital = (search(emissions, exact(decoder_backend=backend, hotwords=words, hotword_weight=2.0))
                      for words in (["a ba", "b"], [" A  BA", "Ｂ"]))
    assert small == capital != search(emissions, exact(decoder_backend=backend))


@pytest.mark.parametrize(("word", "reason"), [("Zoë", "--hotwords Zoë: the network cannot write o z ë"),
                                              (" ", "--hotwords ' ': has no word"), ("a\n\0", r"cannot write \x00")])
def test_hotwords_that_cannot_be_written_are_refused(word, reason):
    with pytest.raises(UsageError) as error:
        Decoder(DecodingOptions(decoder="beam", hotwords=["a", word]), TOKENIZER)
    assert str(error.value).endswith(reason) and str(error.value).isprintable()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [one.name for one in fields(DecodingOptions) if one.type is float])
def test_every_float_is_finite(name, value):
    with pytest.raises(UsageError, match=f"^--{name} {value} must be finite$"):
        DecodingOptions(decoder="beam", **{name: value})


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_best_text_alone(words, backend):
    """For one text the programs also drop hypotheses that agree in all that the n-gram can still see.

    Each symbol that a hypothesis may end in keeps its own best, so paths of the text found may be lost:
    its score is at most the true one. Where nothing can be dropped, in an alphabet without a space, it is exact.
    """
    emissions, ngram = [random_emissions(seed, 3 + seed % 3) for seed in range(30)], NGram(words, TOKENIZER)
    for lm in (None, words):
        options = exact(decoder_backend=backend, nbest=1, lm=lm, alpha=0.7, beta=0.4)
        for found, one in zip(search(emissions, options), emissions, strict=True):
            expected = all_texts(one) if lm is None else with_ngram(all_texts(one), ngram, 0.7, 0.4)
            assert len(found) == 1 and found[0].text == max(expected, key=expected.get)
            assert max(expected.values()) - 0.5 < found[0].score < max(expected.values()) + 1e-4
    letters = CharTokenizer(alphabet="abc")
    for found, one in zip(search(emissions, exact(decoder_backend=backend, nbest=1), letters), emissions, strict=True):
        expected = all_texts(one, letters)
        assert found[0].text == max(expected, key=expected.get)
        assert found[0].score == pytest.approx(max(expected.values()), abs=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_space_at_the_end_costs_nothing(words, backend):
    """With default pruning: `b` wins over the unlisted `ba`, and with the score that it has without the space."""
    probabilities = torch.tensor([[0.001, 0.001, 0.001, 0.997], [0.001, 0.001, 0.499, 0.499],
                                  [0.6, 0.396, 0.002, 0.002]])  # b; a or b; then a blank or a space
    spaced = probabilities.log()
    quiet = torch.cat([spaced[:2], torch.tensor([[0.996, 1e-9, 0.002, 0.002]]).log()])
    options = DecodingOptions(decoder="beam", lm=words, decoder_backend=backend)
    found = [best for best, *_ in search([spaced, quiet], options)]
    assert [best.text for best in found] == ["b", "b"]
    assert found[0].score == pytest.approx(found[1].score, abs=0.01)


@over_tokenizers
@pytest.mark.parametrize("backend", BACKENDS)
def test_silence_and_no_frames(words, backend, tokenizer):
    """The empty text; the n-gram's log-probability of nothing at all is its score."""
    silence = torch.full((4, tokenizer.ctc_size), -20.0)
    silence[:, 0] = 0.0
    silence = silence.log_softmax(-1)
    for lm, score in ((None, 0.0), (words, 0.5 * NGram(words, tokenizer).log_prob(""))):
        options = DecodingOptions(decoder="beam", lm=lm, decoder_backend=backend)
        found = search([silence, silence[:0]], options, tokenizer)
        assert [[c.text for c in candidates] for candidates in found] == [[""], [""]]
        assert [c.score for c, in found] == pytest.approx([score, score], abs=1e-4)


SENTENCES = ["the cat sat", "the dog sat on the mat", "a cat ran", "sat on", "extraordinarily dull cats"]
ENGLISH = CharTokenizer()
ENGLISH_PIECES = BPETokenizer(vocabulary=["at", "▁the", "▁sat", "ll", "on", "▁on", "in", "ar", "▁do", "ra", "or"])


@pytest.fixture
def english(tmp_path) -> str:
    BackoffModel(number_words(map(str.split, SENTENCES)), 3).write(tmp_path / "english.arpa")
    return str(tmp_path / "english.arpa")


def spoken(seed: int, tokenizer: Tokenizer = ENGLISH) -> torch.Tensor:
    """(T, C) log-probabilities of a sentence, the more doubtful the larger its number."""
    generator = torch.Generator().manual_seed(seed)
    text = f" {SENTENCES[seed % len(SENTENCES)]} "[seed % 2 : len(SENTENCES[seed % len(SENTENCES)]) + 1 + seed % 3]
    tokens = tokenizer.encode(text)
    scores = torch.randn(2 * len(tokens), tokenizer.ctc_size, generator=generator)
    for i, token in enumerate(tokens):
        scores[2 * i, token] += 8.0 - seed % 6
        scores[2 * i + 1, tokenizer.blank] += 8.0 - seed % 6
    return scores.log_softmax(dim=-1)


@pytest.mark.parametrize("tokenizer", [ENGLISH, ENGLISH_PIECES], ids=["char", "bpe"])
@pytest.mark.parametrize("options", [
    {}, {"nbest": 5, "beam_size": 10}, {"hotwords": ["cats", "dull dog"], "nbest": 3}, {"lm": True},
    {"lm": True, "nbest": 8, "alpha": 1.5}, {"lm": True, "hotwords": ["zebra", "cat"], "hotword_weight": 4.0},
    {"lm": True, "beam_size": 4, "beta": -2.0}], ids=str)
def test_both_programs_agree(english, options, tokenizer):
    """Texts and scores of sentences more or less clear and of noise, pruned as by default."""
    if "lm" in options:
        options = {**options, "lm": english}
    emissions = [spoken(seed, tokenizer) for seed in range(12)]
    emissions += [random_emissions(seed, 8, tokenizer.ctc_size, scale)
                  for seed in range(4) for scale in (1.0, 2.0, 5.0)]
    native, python = (search(emissions, DecodingOptions(**{"decoder": "beam", "beam_size": 16, **options},
                                                 decoder_backend=backend), tokenizer) for backend in BACKENDS)
    assert [[c.text for c in one] for one in native] == [[c.text for c in one] for one in python]
    for one, other in zip(native, python, strict=True):
        assert [c.score for c in one] == pytest.approx([c.score for c in other], abs=1e-6)
    assert {len(one) for one in native} <= set(range(1, options.get("nbest", 1) + 1))
    assert native[0][0].text == SENTENCES[0]


def test_of_sure_blanks_in_a_row_one_stays():
    """Doubtful ones all stay, and nothing is left out of what holds none."""
    blank = torch.tensor([0.99, 0.999, 0.1, 0.99, 0.97, 0.99, 0.99, 0.99, 0.2])
    log_probs = torch.stack([blank, (1 - blank) / 2, (1 - blank) / 2], dim=1).log().numpy()
    kept = without_sure_blanks(log_probs, 0.98)
    assert kept[:, 0].tolist() == log_probs[[0, 2, 3, 4, 5, 8], 0].tolist()
    assert without_sure_blanks(kept, 0.98).tolist() == kept.tolist()
    assert without_sure_blanks(log_probs[2:3], 0.98).shape == (1, 3)
    assert without_sure_blanks(log_probs[:0], 0.98).shape == (0, 3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_lm", [False, True])
def test_skipped_blanks_leave_the_texts(english, backend, with_lm):
    """Double letters stay apart, scores move by what the blanks left out were in doubt."""
    frames = []
    for token in ENGLISH.encode("dull cats all sat "):
        letter, blank = torch.randn(ENGLISH.ctc_size), torch.randn(4, ENGLISH.ctc_size)
        letter[token] += 8
        blank[:, ENGLISH.blank] += 12
        frames += [letter[None], blank]
    emissions = torch.cat(frames).log_softmax(dim=-1)
    assert len(without_sure_blanks(emissions.numpy(), 0.98)) == 2 * len(frames) / 2
    options = {"decoder": "beam", "decoder_backend": backend, "lm": english if with_lm else None, "alpha": 0.2}
    (whole,), (skipped,) = (search([emissions], DecodingOptions(**options, skip_blanks=skip), ENGLISH)[0]
                            for skip in (1.0, 0.98))
    assert whole.text == skipped.text == "dull cats all sat"
    assert skipped.score == pytest.approx(whole.score, abs=0.02 * len(emissions))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("content", "reason"), [
    (CHARACTERS, "over characters, which CTC beam search cannot use; build one with --unit word"),
    (ARPA.replace("a", "A").replace("b", "B").replace("\\dAtA\\", "\\data\\").replace("ngrAm", "ngram")
     .replace("grAms", "grams"), "cannot write 4 of its 4 words; 4 can in the other case"),
    (ARPA[:100], "cut off: it ends within its 1-grams"),
    (ARPA[:-30], ""),
], ids=["characters", "upper case", "cut in unigrams", "cut in bigrams"])
def test_unfit_ngrams_are_refused(tmp_path, backend, content, reason):
    path = tmp_path / "x.arpa"
    path.write_text(content)
    with pytest.raises(LanguageModelError) as error:
        CTCBeamSearch(DecodingOptions(decoder="beam", lm=str(path), decoder_backend=backend), TOKENIZER, workers=1)
    assert str(error.value).startswith(f"{path}: ") and reason in str(error.value)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("backend", "package"), zip(BACKENDS, ("ctc_beam_decoder", "pyctcdecode"), strict=True))
def test_a_missing_package_is_named(monkeypatch, backend, package):
    """With the command that installs it; greedy decoding goes without."""
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    emissions = random_emissions(0, 5)[None]
    with Decoder(DecodingOptions(decoder="beam", decoder_backend=backend), TOKENIZER) as decoder:
        with pytest.raises(ImportError) as error:
            decoder.search_ctc(emissions, torch.tensor([5]))
        assert f"--decoder_backend {backend} needs {package.replace('_', '-')}" in str(error.value)
        assert "pip install -r requirements.txt" in str(error.value)
    with Decoder(DecodingOptions(decoder_backend=backend), TOKENIZER) as decoder:
        (best,), = decoder.search_ctc(emissions, torch.tensor([5]))
    assert best.score == pytest.approx(emissions.amax(-1).sum().item())


def test_missing_kenlm_is_named(monkeypatch, words):
    """The Python search needs it for an n-gram; the C++ one has its own, and greedy decoding reads none."""
    monkeypatch.setitem(sys.modules, "kenlm", None)
    emissions = random_emissions(0, 5)
    with pytest.raises(LanguageModelError, match="KenLM is not installed: pip install ufal-kenlm"):
        search([emissions], DecodingOptions(decoder="beam", lm=words, decoder_backend="pyctcdecode"))
    assert search([emissions], DecodingOptions(decoder="beam", lm=words))[0]
    assert search([emissions], DecodingOptions())[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("error", [None, KeyError("of the caller"), ValueError("columns")], ids=repr)
def test_workers_end_with_the_decoder(backend, error):
    """Threads and processes, where its block ends by an exception too, of the caller or of the search."""
    threads = threading.active_count()
    options = DecodingOptions(decoder="beam", decoder_backend=backend)
    with pytest.raises(type(error)) if error else nullcontext(), Decoder(options, TOKENIZER, workers=2) as decoder:
        emissions, lengths = random_emissions(0, 5).repeat(4, 1, 1), torch.tensor([5, 4, 3, 2])
        assert len(decoder.search_ctc(emissions, lengths)) == 4
        children = multiprocessing.active_children()
        assert len(children) == (2 if backend == "pyctcdecode" else 0)
        if isinstance(error, ValueError):
            decoder.search_ctc(emissions[..., :3], lengths)
        elif error:
            raise error
    assert not multiprocessing.active_children() and not any(child.is_alive() for child in children)
    assert threading.active_count() == threads


def test_a_process_that_is_killed_is_not_waited_for():
    options = DecodingOptions(decoder="beam", decoder_backend="pyctcdecode")
    emissions, lengths = random_emissions(0, 5).repeat(4, 1, 1), torch.tensor([5, 4, 3, 2])
    with pytest.raises(BrokenProcessPool), Decoder(options, TOKENIZER, workers=2) as decoder:
        decoder.search_ctc(emissions, lengths)
        multiprocessing.active_children()[0].kill()
        for _ in range(100):
            decoder.search_ctc(emissions, lengths)
    assert not multiprocessing.active_children()


def speller(seed: int) -> tuple[Recognizer, object]:
    """A network of strong opinions that spells " ab", and what it heard: two utterances of at most 4 characters."""
    torch.manual_seed(seed)
    network = Recognizer.build("las", **{**TINY["las"], "alphabet": " ab"}).eval()
    network.speller.perceptron.weight.data *= 4
    network.speller.output.weight.data *= 12
    network.speller.output.bias.data[network.tokenizer.eos] -= 8  # it would end at once
    with torch.no_grad():
        encoding = network.encode(torch.randn(2, 1600), torch.tensor([1600, 1400]))
    assert network.max_tokens(encoding).tolist() == [4, 4]
    return network, encoding


def spelled(network: Recognizer, encoding, index: int) -> dict[str, float]:
    """The speller's log-probability of every string of utterance `index`, by teacher forcing."""
    tokenizer = network.tokenizer
    strings = [list(s) for length in range(5) for s in itertools.product((1, 2, 3), repeat=length)]
    inputs = torch.tensor([[tokenizer.sos, *s, *[1] * (4 - len(s))] for s in strings])
    frames, lengths = (part[index : index + 1].expand(len(strings), *part.shape[1:]) for part in encoding[:2])
    log_probs, _ = network.speller(inputs, network.speller.attention.precompute(frames, lengths))
    return {tokenizer.decode(s): log_probs[row].double()[range(len(s) + 1), [*s, tokenizer.eos]].sum().item()
            for row, s in enumerate(strings)}


def search_spelled(network: Recognizer, encoding, **options) -> list[list]:
    options = DecodingOptions(**{"decoder": "beam", "beam_size": 400, "nbest": 400, "length_power": 0.0, **options})
    with torch.no_grad(), Decoder(options, network.tokenizer) as decoder:
        return network.search(encoding, decoder)


@pytest.mark.parametrize("unit", ["words", "characters"])
@pytest.mark.parametrize("alpha", [0.3, 2.0])
@torch.no_grad()
def test_shallow_fusion_scores_every_string(request, unit, alpha):
    """ln P of the speller + alpha ln P_LM; words are those between spaces, but each space is a character."""
    ngram = NGram(request.getfixturevalue(unit), TOKENIZER)
    assert ngram.over_characters == (unit == "characters")
    for seed in range(3):
        network, encoding = speller(seed)
        found = search_spelled(network, encoding, lm=str(ngram.path), alpha=alpha)
        for index, candidates in enumerate(found):
            expected = {}  # of strings that differ in spaces alone, the best counts
            for string, score in spelled(network, encoding, index).items():
                text, score = " ".join(string.split()), score + alpha * ngram.log_prob(string)
                expected[text] = max(score, expected.get(text, score))
            assert {c.text: c.score for c in candidates} == pytest.approx(expected, abs=1e-4)
            assert [c.text for c in candidates] == sorted(expected, key=expected.get, reverse=True)


@pytest.mark.parametrize("spaces", ["", " ", "  "])
def test_spaces_of_no_meaning(words, characters, spaces):
    """Around and between words, they are nothing to an n-gram over words, and improbable to one over characters."""
    text = spaces.join(["", "ab", "b", ""]) if spaces else "ab b"
    for path in (words, characters):
        ngram = NGram(path, TOKENIZER)
        scorer = NGramScorer(ngram, 1)
        total, last, state = 0.0, TOKENIZER.sos, scorer.initial()
        for token in [*TOKENIZER.encode(text), TOKENIZER.eos]:
            scores, state = scorer.score(torch.tensor([last]), state)
            total, last = total + float(scores[0, token]), token
        assert total == pytest.approx(ngram.log_prob(text), abs=1e-5)
        plain = ngram.log_prob("ab b")
        assert total == pytest.approx(plain, abs=1e-5) if path == words or not spaces else total < plain - 1


@torch.no_grad()
def test_a_heavy_ngram_has_its_way(words):
    """In a beam that holds everything: only its words are written, the likeliest text of all that fit."""
    ngram, unlisted = NGram(words, TOKENIZER), 0
    for seed in range(4):
        network, encoding = speller(seed)
        alone = search_spelled(network, encoding)
        unlisted += sum(word not in ngram.words for best, *_ in alone for word in best.text.split())
        most = max(map(ngram.log_prob, spelled(network, encoding, 0)))
        for best, *_ in search_spelled(network, encoding, lm=words, alpha=1e4):
            assert best.text and all(word in ngram.words for word in best.text.split())
            assert ngram.log_prob(best.text) == pytest.approx(most, abs=1e-4)
    assert unlisted, "left alone, the speller writes other words"


@pytest.mark.parametrize("unit", ["words", "characters"])
@pytest.mark.parametrize("length_power", [0.0, 1.0])
def test_rescoring_orders_what_the_search_found(request, unit, length_power):
    """The whole beam's texts, each with its score + alpha ln P_LM(text); the n best of them are returned."""
    ngram, changed = NGram(request.getfixturevalue(unit), TOKENIZER), 0
    for seed in range(4):
        network, encoding = speller(seed)
        plain = search_spelled(network, encoding, beam_size=8, nbest=8, length_power=length_power)
        rescored = search_spelled(network, encoding, beam_size=8, nbest=3, length_power=length_power,
                                  lm=str(ngram.path), alpha=0.8, lm_fusion="rescore")
        for before, after in zip(plain, rescored, strict=True):
            expected = sorted(((c.score + 0.8 * ngram.log_prob(c.text), c.text) for c in before), reverse=True)[:3]
            assert [c.score for c in after] == pytest.approx([score for score, _ in expected], abs=1e-9)
            assert sorted(c.text for c in after) == sorted(text for _, text in expected)
            changed += before[0].text != after[0].text
    assert changed, "the n-gram makes a difference"
