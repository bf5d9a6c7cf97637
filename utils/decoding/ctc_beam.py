"""Prefix beam search over CTC log-probabilities, with a word n-gram.

Two packages do it, with the same algorithm and the same options: `ctc-beam-decoder` (C++) and its reference,
pyctcdecode (Python). Each is imported when it is first used.
"""

import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import numpy as np
from torch import Tensor

from utils.errors import printable
from utils.lm.ngram import (
    SPACE,
    LanguageModelError,
    check_words,
    decompressed,
    load_kenlm,
    quiet_stderr,
    read_words,
    word_list,
)
from utils.tokenizer import Tokenizer

INSTALL = "pip install -r requirements.txt installs it"
END = "</s>"
LOWEST = -34.0  # natural log; both packages raise lower values to ln 1e-15 = -34.5


class CTCBeamSearch:
    """Finds the n-best texts of CTC log-probabilities.

    A text's score is ln P_CTC + alpha ln P_LM(text and its end) + beta for each word, and -10 alpha ln 10 for
    each word that the n-gram does not list. Both packages add that for the empty word too, to texts some
    of whose paths end in a space, and to the empty text. So, with an n-gram, its end is decoded as one
    more word, in two more frames; what the packages score after that is the same for all texts.

    Args:
        options: a `utils.decoding.options.DecodingOptions`.
        tokenizer: the network's; column i of its log-probabilities is token i.
        workers: utterances that are decoded at a time; as many as there are cores by default.

    Raises LanguageModelError, and ImportError that names the missing package.
    """

    def __init__(self, options, tokenizer: Tokenizer, workers: int | None = None):
        self.options = options
        labels = list(tokenizer.labels)
        words = read_words(options.lm) if options.lm else None
        if options.lm and words is None:
            print(f"{options.lm}: without {word_list(options.lm)} its words are unknown to the search",
                  file=sys.stderr)
        if words is not None and SPACE in words:
            raise LanguageModelError(options.lm, "is an n-gram over characters, which CTC beam search cannot use; "
                                                 "build one with --unit word")
        # Before the end comes a space, or, where a piece itself says that it begins a word, nothing.
        separators = [tokenizer.blank] if tokenizer.mark else tokenizer.boundaries
        self.separator = separators[0] if options.lm and separators else None
        labels += [tokenizer.mark + END] if self.separator is not None else []
        if words is not None:
            words = [*check_words(options.lm, words, tokenizer), END]
        backend = _Native if options.decoder_backend == "native" else _PyCTCDecode
        self.backend = backend(options, labels, words, workers or os.cpu_count())
        self.after_end = self._score_after_end(tokenizer.ctc_size) if self.separator is not None else 0.0

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[list[tuple[str, float]]]:
        """Returns the (text, score) pairs of each utterance, best first, of (B, T, C) log-probabilities."""
        arrays = [one[:length].cpu().numpy() for one, length in zip(log_probs.float(), lengths.tolist(), strict=True)]
        if self.options.skip_blanks < 1:
            arrays = [without_sure_blanks(array, self.options.skip_blanks) for array in arrays]
        if self.separator is not None:
            arrays = [self._ended(array) for array in arrays]
        return [[(" ".join(beam[0].removesuffix(END).split()), float(beam[-1]) - self.after_end)
                 for beam in beams[: self.options.nbest]] or [("", 0.0)] for beams in self.backend.search(arrays)]

    def _ended(self, array: np.ndarray, ends: int = 1) -> np.ndarray:
        """Appends frames of the separator and of the end to (T, C) log-probabilities: (T + 2 ends, C + 1)."""
        frames, classes = array.shape
        ended = np.full((frames + 2 * ends, classes + 1), -np.inf, dtype=np.float32)
        ended[:frames, :classes] = array
        ended[frames::2, self.separator] = ended[frames + 1 :: 2, classes] = 0.0
        return ended

    def _score_after_end(self, classes: int) -> float:
        """Returns what all scores hold too much: by how much two ends exceed one."""
        nothing = np.zeros((0, classes), dtype=np.float32)
        (one, *_), (two, *_) = self.backend.search([self._ended(nothing), self._ended(nothing, ends=2)])
        return float(two[-1]) - float(one[-1])

    def close(self) -> None:
        """Ends worker processes."""
        self.backend.close()


def without_sure_blanks(log_probs: np.ndarray, threshold: float) -> np.ndarray:
    """Leaves out frames whose blank is likelier than `threshold`, except the first of each run of them.

    That one keeps repeated tokens apart, which is all that a sure blank does to a text. The blank is column 0 of
    the (T, C) log-probabilities. The frames left out would have lowered scores by next to nothing.
    """
    sure = log_probs[:, 0] > np.log(threshold)
    return log_probs[~(sure & np.roll(sure, 1) & (np.arange(len(sure)) > 0))]


class _Native:
    """Runs `ctc-beam-decoder` in threads: its search does not hold Python's interpreter lock."""

    def __init__(self, options, labels: list[str], words: list[str] | None, workers: int):
        try:
            import ctc_beam_decoder
        except ImportError:
            raise ImportError(f"--decoder_backend native needs ctc-beam-decoder; {INSTALL}") from None
        self.options = options
        if options.lm:
            with decompressed(options.lm) as path, quiet_stderr():  # KenLM's progress bar
                try:
                    self.decoder = ctc_beam_decoder.BeamSearchDecoder(
                        labels, kenlm_model_path=path, unigrams=words, alpha=options.alpha, beta=options.beta)
                except (ValueError, RuntimeError, OSError) as error:
                    raise LanguageModelError(options.lm, f"KenLM cannot load it ({printable(error)})") from None
        else:
            self.decoder = ctc_beam_decoder.BeamSearchDecoder(labels)
        self.threads = ThreadPoolExecutor(workers)

    def search(self, arrays: list[np.ndarray]) -> list[list[tuple]]:
        return list(self.threads.map(self._one, arrays))

    def _one(self, array: np.ndarray) -> list[tuple]:
        options = self.options
        if not len(array):  # ctc-beam-decoder refuses an array without frames
            return []
        return self.decoder.decode_beams(
            array, beam_width=options.beam_size, beam_prune_logp=options.beam_prune_logp,
            token_min_logp=max(options.token_min_logp, LOWEST), prune_history=options.nbest == 1,
            hotwords=list(options.hotwords), hotword_weight=options.hotword_weight)

    def close(self) -> None:
        self.threads.shutdown()


class _PyCTCDecode:
    """Runs pyctcdecode in processes that are forked once."""

    def __init__(self, options, labels: list[str], words: list[str] | None, workers: int):
        try:
            from pyctcdecode.alphabet import BPE_TOKEN, Alphabet
            from pyctcdecode.decoder import BeamSearchDecoderCTC
            from pyctcdecode.language_model import LanguageModel
        except ImportError:
            raise ImportError(f"--decoder_backend pyctcdecode needs pyctcdecode; {INSTALL}") from None
        self.options = options
        model = LanguageModel(load_kenlm(options.lm), words, options.alpha, options.beta) if options.lm else None
        pieces = any(label.startswith(BPE_TOKEN) for label in labels)  # as the other program tells it
        self.decoder = BeamSearchDecoderCTC(Alphabet(labels, pieces), model)
        # It forks when it is first used, after the model; unlike a `Pool`, it notices a process that is killed.
        self.pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), signal.signal,
                                        (signal.SIGINT, signal.SIG_IGN))  # Ctrl-C is for the main process

    def search(self, arrays: list[np.ndarray]) -> list[list[tuple]]:
        options = self.options
        return list(self.pool.map(partial(
            _decode, self.decoder, beam_width=options.beam_size, beam_prune_logp=options.beam_prune_logp,
            token_min_logp=max(options.token_min_logp, LOWEST), prune_history=options.nbest == 1,
            hotwords=list(options.hotwords) or None, hotword_weight=options.hotword_weight), arrays))

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        self.decoder.cleanup()


def _decode(decoder, array: np.ndarray, **options) -> list[tuple]:
    """Returns pyctcdecode's beams without the states of the n-gram, which no process can send."""
    return [(text, *rest) for text, _, *rest in decoder.decode_beams(array, **options)]
