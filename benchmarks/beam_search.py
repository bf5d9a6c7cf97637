"""CTC beam search: do both backends write the same text, and how fast?

    python evaluate.py --checkpoint X.ckpt --test_sets dev --save_emissions dev.pt
    python -m benchmarks.beam_search --emissions dev.pt --lm X.arpa

Each backend decodes the same utterances in one process and in as many as there are cores, in turn, and
the median of the rounds counts.
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median

import torch
from torch.nn.utils.rnn import pad_sequence

from utils.decoding import Decoder, Decoding
from utils.metrics import count_errors
from utils.text import CharTokenizer


def decode(emissions: list[torch.Tensor], options: Decoding, tokenizer: CharTokenizer, workers: int):
    """Texts and seconds, loading apart."""
    lengths = torch.tensor([len(one) for one in emissions])
    padded = pad_sequence(emissions, batch_first=True)
    with Decoder(options, tokenizer, workers=workers) as decoder:
        decoder.search_ctc(padded[:1], lengths[:1])
        started = time.perf_counter()
        found = decoder.search_ctc(padded, lengths)
        return [candidates[0].text for candidates in found], time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emissions", required=True, type=Path, help="of evaluate.py --save_emissions")
    parser.add_argument("--lm", help="n-gram")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--beam_size", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    content = torch.load(args.emissions, weights_only=True)
    tokenizer = CharTokenizer(alphabet=content["alphabet"])
    emissions = [one["log_probs"] for one in content["utterances"]]
    references = [one["text"] for one in content["utterances"]]
    cases = [(backend, workers) for workers in (1, os.cpu_count()) for backend in ("pyctcdecode", "native")]
    texts, seconds = {}, {case: [] for case in cases}
    for _ in range(args.rounds):
        for case in cases:
            options = Decoding(decoder="beam", beam_size=args.beam_size, lm=args.lm, alpha=args.alpha, beta=args.beta,
                               decoder_backend=case[0])
            texts[case], taken = decode(emissions, options, tokenizer, case[1])
            seconds[case].append(taken)
    slowest = median(seconds[cases[0]])
    print(f"{len(emissions)} utterances, beam {args.beam_size}, {args.lm or 'no n-gram'}, median of {args.rounds}")
    print(f"{'backend':14}{'workers':>8}{'utt/s':>8}{'ratio':>7}{'WER %':>8}{'same text':>11}")
    rows = []
    for case in cases:
        same = sum(a == b for a, b in zip(texts[case], texts[cases[0]], strict=True)) / len(emissions)
        row = {"backend": case[0], "workers": case[1], "utterances_per_second": len(emissions) / median(seconds[case]),
               "ratio": slowest / median(seconds[case]), "wer": count_errors(references, texts[case]).wer, "same": same}
        rows.append(row)
        print(f"{case[0]:14}{case[1]:8}{row['utterances_per_second']:8.0f}{row['ratio']:7.1f}{100 * row['wer']:8.2f}"
              f"{100 * same:10.1f}%")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
