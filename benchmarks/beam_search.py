"""CTC beam search with an n-gram: how fast is each program, and is its text the same?

    python -m benchmarks.beam_search
    python -m benchmarks.beam_search --checkpoint X.ckpt --data_root data/corpora/kathleen --split dev --lm X.arpa

Each program decodes the same utterances in one process and in as many as there are cores, with all
frames and with sure blanks skipped, in turn. Without --checkpoint, log-probabilities are made from the test corpus's
texts: each letter a frame, three quarters blanks nearly sure, some letters in doubt; the n-gram is those texts' own.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks.material import CORPUS
from benchmarks.measure import benchmark_parser, medians, prepare, show
from data.datamodule import LibriSpeechDataModule
from data.options import TrainingDataOptions
from models import Recognizer
from models.inference.tuning import collect_log_probs
from utils.decoding.decoder import Decoder
from utils.decoding.options import DecodingOptions
from utils.lm.kneser_ney import BackoffModel, number_words
from utils.metrics import count_errors
from utils.tokenizer import CharTokenizer, Tokenizer, normalize


def peaky(text: str, tokenizer: CharTokenizer, random: torch.Generator) -> torch.Tensor:
    """(T, C) log-probabilities as a trained network writes a text: a frame a letter, then blanks."""
    frames = []
    for token in tokenizer.encode(text):
        letter = torch.randn(tokenizer.ctc_size, generator=random)
        letter[token] += 2 + 6 * torch.rand((), generator=random)  # from in doubt to sure
        blanks = torch.randn(3, tokenizer.ctc_size, generator=random)
        blanks[:, tokenizer.blank] += 6 + 6 * torch.rand(3, generator=random)
        frames += [letter[None], blanks]
    return torch.cat(frames).log_softmax(dim=-1)


class Utterances(NamedTuple):
    """The log-probabilities and texts to decode."""

    tokenizer: Tokenizer
    texts: list[str]  # references
    log_probs: list[torch.Tensor]  # (T, C) each


def synthetic(count: int, folder: Path) -> tuple[Utterances, str]:
    """Made-up log-probabilities, and the n-gram."""
    transcripts = sorted(CORPUS.rglob("*.trans.txt"))
    lines = [line for path in transcripts for line in path.read_text().splitlines() if line]
    texts = [normalize(line.partition(" ")[2]) for line in lines]
    BackoffModel(number_words(map(str.split, texts)), 3).write(folder / "x.arpa")
    tokenizer, random = CharTokenizer(), torch.Generator().manual_seed(0)
    chosen = [texts[i % len(texts)] for i in range(count)]
    return Utterances(tokenizer, chosen, [peaky(text, tokenizer, random) for text in chosen]), str(folder / "x.arpa")


def of_network(args) -> Utterances:
    """The log-probabilities of a checkpoint's network."""
    network = Recognizer.from_checkpoint(args.checkpoint)
    options = TrainingDataOptions(data_root=args.data_root, train_sets=[], val_sets=[args.split], test_sets=[])
    data = LibriSpeechDataModule(options, network.tokenizer)
    data.prepare_data()
    texts, log_probs = collect_log_probs(network, data.val_dataloader()[0])
    return Utterances(network.tokenizer, texts[: args.utterances], log_probs[: args.utterances])


def case_of(decoder: Decoder, emissions: list[torch.Tensor], texts: list[str]) -> Callable[[], None]:
    """A search through all utterances, whose texts it leaves in `texts`."""
    padded, lengths = pad_sequence(emissions, batch_first=True), torch.tensor([len(one) for one in emissions])

    def search() -> None:
        texts[:] = [candidates[0].text for candidates in decoder.search_ctc(padded, lengths)]
    return search


def compare(utterances: Utterances, lm: str | None, args) -> list[dict]:
    """A row for each program, count of workers, and threshold."""
    tokenizer, references, emissions = utterances
    kinds = [(backend, workers, skip) for skip in (1.0, args.skip_blanks)
             for workers in sorted({1, os.cpu_count()}) for backend in ("pyctcdecode", "native")]
    texts, cases, decoders = {kind: [] for kind in kinds}, {}, []
    for kind in kinds:
        options = DecodingOptions(decoder="beam", beam_size=args.beam_size, lm=lm, alpha=args.alpha, beta=args.beta,
                           decoder_backend=kind[0], skip_blanks=kind[2])
        decoders.append(Decoder(options, tokenizer, workers=kind[1]))
        cases[kind] = case_of(decoders[-1], emissions, texts[kind])
    try:
        seconds = medians(cases, rounds=args.rounds)
    finally:
        for decoder in decoders:
            decoder.__exit__()
    first = kinds[0]
    return [{"program": backend, "workers": workers, "skip blanks": skip,
             "utt/s": len(emissions) / seconds[kind], "ratio": seconds[first] / seconds[kind],
             "WER %": 100 * count_errors(references, texts[kind]).wer,
             "same text %": 100 * sum(a == b for a, b in zip(texts[kind], texts[first], strict=True)) / len(emissions)}
            for kind in kinds for backend, workers, skip in [kind]]


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--checkpoint", help="a CTC model; log-probabilities are made up by default")
    parser.add_argument("--data_root", default="data", help="with --checkpoint: folder of the corpora")
    parser.add_argument("--split", default="dev-clean", help="with --checkpoint: what is decoded")
    parser.add_argument("--lm", help="with --checkpoint: n-gram")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--beam_size", type=int, default=100)
    parser.add_argument("--skip_blanks", type=float, default=0.98)
    parser.add_argument("--utterances", type=int, default=100, help="to make up, or most to take")
    args = parser.parse_args()
    prepare(args)
    if args.lm and not args.checkpoint:
        sys.exit("--lm needs --checkpoint: log-probabilities that are made up come with their own n-gram")
    with tempfile.TemporaryDirectory() as folder:
        utterances, lm = (of_network(args), args.lm) if args.checkpoint else synthetic(args.utterances, Path(folder))
        frames = torch.cat([one[:, 0] for one in utterances.log_probs]).exp()
        rows = compare(utterances, lm, args)
    show(f"CTC beam search, beam {args.beam_size}, {'an n-gram' if lm else 'no n-gram'}, "
         f"{args.checkpoint or 'made-up probabilities'}", rows, json_path=args.json,
         **{"frames surely blank %": round(100 * float((frames > args.skip_blanks).float().mean()), 1)})


if __name__ == "__main__":
    main()
