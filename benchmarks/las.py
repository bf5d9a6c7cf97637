"""The fast path of Listen, Attend and Spell's speller: how much faster than a plain loop over its steps?

    python -m benchmarks.las

The plain loop is what the method reads like: at each step it embeds the last character, runs LSTM
cells over it and the last context, projects the listener's frames to keys, attends, and classifies. It
has the speller's own parameters, and the run ends where its loss or its gradient differs.
Forward and backward pass, by default at the sizes of configs/las_librispeech.yaml: 16 utterances of 12 s and
150 characters.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.measure import benchmark_parser, clock_of, machine_rates, medians, prepare, show
from models import Recognizer
from models.fast_speller import fast_forward
from models.speller import Speller
from utils.audio import SAMPLE_RATE
from utils.types import Batch

FRAME = 0.08  # seconds of a listener frame: eight feature frames
TOLERANCE = 1e-4  # relative; float32 summed in two orders


class PlainSpeller(nn.Module):
    """A `Speller` step by step, with the parameters of `speller`, copied into cells of PyTorch's own."""

    def __init__(self, speller: Speller):
        super().__init__()
        self.embedding, self.attention = speller.embedding, speller.attention
        self.perceptron, self.output = speller.perceptron, speller.output
        self.size, self.impossible = speller.size, speller.impossible
        self.cells = nn.ModuleList()
        for i, gates in enumerate(speller.lstm):
            above, below = gates.weight.detach().split([gates.in_features - self.size, self.size], dim=1)
            if i == 0:
                above = torch.cat([speller.inputs.weight.detach(), above], dim=1)
            cell = nn.LSTMCell(above.shape[1], self.size, device=above.device)
            with torch.no_grad():
                cell.weight_ih.copy_(above)
                cell.weight_hh.copy_(below)
                cell.bias_ih.copy_(gates.bias)
                cell.bias_hh.zero_()
            self.cells.append(cell)

    def forward(self, tokens: Tensor, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, U) characters, (B, T, H) listener frames and (B,) lengths to what `fast_forward` gives."""
        states = [(frames.new_zeros(len(tokens), self.size),) * 2 for _ in self.cells]
        context, weights = frames.new_zeros(len(tokens), frames.shape[2]), frames.new_zeros(frames.shape[:2])
        log_probs, maps = [], []
        for u in range(tokens.shape[1]):
            x = torch.cat([self.embedding(tokens[:, u]), context], dim=-1)
            for i, cell in enumerate(self.cells):
                states[i] = cell(x, states[i])
                x = states[i][0]
            context, weights = self.attention(x, self.attention.precompute(frames, lengths), weights)
            scores = self.output(self.perceptron(torch.cat([x, context], dim=-1)).tanh())
            log_probs.append(scores.masked_fill(self.impossible, -torch.inf).log_softmax(dim=-1))
            maps.append(weights)
        return torch.stack(log_probs, dim=1), torch.stack(maps, dim=1)


def make_batch(network: Recognizer, args, device: torch.device) -> Batch:
    """Noise, and random characters: speed asks no more."""
    samples, size = int(args.seconds * SAMPLE_RATE), args.batch_size
    tokens = torch.randint(3, network.tokenizer.size, (size, args.characters))
    batch = Batch(torch.randn(size, samples), torch.full((size,), samples), tokens,
                  torch.full((size,), args.characters), [""] * size, [""] * size, [])
    return Batch(*(part.to(device) if isinstance(part, Tensor) else part for part in batch))


def descent(network: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], tuple[float, float]]:
    """A forward and backward pass, which gives the loss and the norm of the embedding's gradient."""
    def run() -> tuple[float, float]:
        network.zero_grad()
        value = loss()
        value.backward()
        return float(value.detach()), float(network.embedding.weight.grad.norm())
    return run


def compare(name: str, cases: dict[str, Callable], args) -> list[dict]:
    """Rows of seconds and their ratio. Ends the run where the cases do not agree."""
    plain, ours = (torch.tensor(case()) for case in cases.values())
    if not torch.allclose(plain, ours, rtol=TOLERANCE):
        sys.exit(f"{name}: loss and gradient {ours.tolist()}, but {plain.tolist()} by the plain loop")
    seconds = medians(cases, rounds=args.rounds, warmup=0, clock=clock_of(args))
    slow, fast = seconds.values()
    return [{"what": name, "plain ms": 1000 * slow, "ours ms": 1000 * fast, "ratio": slow / fast}]


def speller_rows(attention: str, args, device: torch.device) -> list[dict]:
    """The speller alone, over a random memory; then the whole training step around it."""
    torch.manual_seed(0)
    options = {"listener_size": args.size // 2, "speller_size": args.size, "attention_size": args.size // 2,
               "embedding_size": args.size // 2}
    network = Recognizer.build("las", attention=attention, dropout=0.0, scheduled_sampling=0.0, freq_masks=0,
                               time_masks=0, **options).to(device).train()
    speller, batch = network.speller, make_batch(network, args, device)
    plain = PlainSpeller(speller)
    frames = torch.randn(args.batch_size, round(args.seconds / FRAME), network.listener.outputs, device=device)
    lengths = torch.full((len(frames),), frames.shape[1], device=device)

    def alone(forward: Callable) -> Callable[[], Tensor]:
        x = frames.clone().requires_grad_()
        return lambda: -forward(x)[0].gather(2, batch.tokens[..., None]).mean()

    def whole(forward: Callable | None) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            network.attend_and_spell = forward or type(network).attend_and_spell.__get__(network)
            return network.loss(network.encode(batch.waveforms, batch.sample_counts), batch)["loss"]
        return loss

    def plainly(encoding, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs = torch.cat([torch.full_like(batch.tokens[:, :1], network.tokenizer.sos), batch.tokens], dim=1)
        return plain(inputs, encoding.frames, encoding.lengths)

    rows = compare(f"speller, {attention}", {
        "plain": descent(plain, alone(lambda x: plain(batch.tokens, x, lengths))),
        "ours": descent(speller, alone(
            lambda x: fast_forward(speller, batch.tokens, speller.attention.precompute(x, lengths))))}, args)
    return rows + compare(f"training step, {attention}", {
        "plain": descent(plain, whole(plainly)), "ours": descent(speller, whole(None))}, args)


def floor(args, product_rate: float) -> float:
    """Milliseconds of the speller's matrix products alone, forward and backward, at the machine's rate.

    Two LSTM layers of [input, state] to four gates; two operations a weight, as many again for each gradient.
    """
    weights = 2 * (2 * args.size * 4 * args.size)
    return 1000 * 3 * 2 * weights * args.batch_size * args.characters / product_rate


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--attention", nargs="+", default=["content", "location"])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=12.0, help="of audio an utterance")
    parser.add_argument("--characters", type=int, default=150)
    parser.add_argument("--size", type=int, default=512, help="hidden units of the speller; the others half of it")
    args = parser.parse_args()
    device = prepare(args)
    if device is None:
        return
    products, _ = machine_rates(device)
    rows = [row for attention in args.attention for row in speller_rows(attention, args, device)]
    show(f"LAS, forward and backward, {args.batch_size} x {args.seconds:g} s, {args.characters} characters, "
         f"speller of {args.size}", rows, json_path=args.json, **{
             "GFLOP/s of a large product": round(products / 1e9),
             "ms of the LSTM's products at that rate": round(floor(args, products))})


if __name__ == "__main__":
    main()
