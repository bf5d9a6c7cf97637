"""CTC beam search with an n-gram: how fast is each program, and is its text the same?

    python -m benchmarks.beam_search
    python evaluate.py --checkpoint X.ckpt --test_sets dev --save_emissions dev.pt
    python -m benchmarks.beam_search --emissions dev.pt --lm X.arpa

Each program decodes the same utterances in one process and in as many as there are cores, with all
frames and with sure blanks skipped, in turn. Without --emissions, probabilities are made from the test corpus's
texts: each letter a frame, three quarters blanks nearly sure, some letters in doubt; the n-gram is those texts' own.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks.material import CORPUS
from benchmarks.measure import benchmark_parser, medians, prepare, show
from utils.decoding.options import Decoder, DecodingOptions
from utils.lm import build as lm_build
from utils.metrics import count_errors
from utils.tokenizer import CharTokenizer, build_tokenizer, normalize


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


def synthetic(count: int, folder: Path) -> tuple[dict, str]:
    """What `evaluate.py --save_emissions` would hold, and the n-gram."""
    transcripts = sorted(CORPUS.rglob("*.trans.txt"))
    lines = [line for path in transcripts for line in path.read_text().splitlines() if line]
    texts = [normalize(line.partition(" ")[2]) for line in lines]
    (folder / "text").write_text("\n".join(texts) + "\n")
    lm_build.train(folder / "text", 3, folder / "x.arpa")
    tokenizer, random = CharTokenizer(), torch.Generator().manual_seed(0)
    chosen = [texts[i % len(texts)] for i in range(count)]
    rows = [{"text": text, "log_probs": peaky(text, tokenizer, random)} for text in chosen]
    return {"tokenizer": tokenizer.config, "utterances": rows}, str(folder / "x.arpa")


def case_of(decoder: Decoder, emissions: list[torch.Tensor], texts: list[str]) -> Callable[[], None]:
    """A search through all utterances, whose texts it leaves in `texts`."""
    padded, lengths = pad_sequence(emissions, batch_first=True), torch.tensor([len(one) for one in emissions])

    def search() -> None:
        texts[:] = [candidates[0].text for candidates in decoder.search_ctc(padded, lengths)]
    return search


def compare(content: dict, lm: str | None, args) -> list[dict]:
    """A row for each program, count of workers, and threshold."""
    tokenizer = build_tokenizer(**content["tokenizer"])
    emissions = [one["log_probs"] for one in content["utterances"]]
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
    references, first = [one["text"] for one in content["utterances"]], kinds[0]
    return [{"program": backend, "workers": workers, "skip blanks": skip,
             "utt/s": len(emissions) / seconds[kind], "ratio": seconds[first] / seconds[kind],
             "WER %": 100 * count_errors(references, texts[kind]).wer,
             "same text %": 100 * sum(a == b for a, b in zip(texts[kind], texts[first], strict=True)) / len(emissions)}
            for kind in kinds for backend, workers, skip in [kind]]


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--emissions", type=Path, help="of evaluate.py --save_emissions; made up by default")
    parser.add_argument("--lm", help="n-gram, with --emissions")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--beam_size", type=int, default=100)
    parser.add_argument("--skip_blanks", type=float, default=0.98)
    parser.add_argument("--utterances", type=int, default=100, help="to make up, or most to take")
    args = parser.parse_args()
    prepare(args)
    if args.lm and not args.emissions:
        sys.exit("--lm needs --emissions: probabilities that are made up come with their own n-gram")
    with tempfile.TemporaryDirectory() as folder:
        content, lm = ((torch.load(args.emissions, weights_only=True), args.lm) if args.emissions
                       else synthetic(args.utterances, Path(folder)))
        content["utterances"] = content["utterances"][: args.utterances]
        frames = torch.cat([one["log_probs"][:, 0] for one in content["utterances"]]).exp()
        rows = compare(content, lm, args)
    show(f"CTC beam search, beam {args.beam_size}, {'an n-gram' if lm else 'no n-gram'}, "
         f"{args.emissions.name if args.emissions else 'made-up probabilities'}", rows, json_path=args.json,
         **{"frames surely blank %": round(100 * float((frames > args.skip_blanks).float().mean()), 1)})


if __name__ == "__main__":
    main()
