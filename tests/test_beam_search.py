"""The searches against exhaustive ones on tiny alphabets, where every text can be tried."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from utils.decoding.beam_search import beam_search, select
from utils.decoding.scorers import CTCPrefixScorer, Scorer
from utils.tokenizer import CharTokenizer

TOKENIZER, LONGEST = CharTokenizer(alphabet="abc"), 4  # tokens 1 to 3 are characters, 0 is the blank
START, EOS, CLASSES = TOKENIZER.sos, TOKENIZER.eos, TOKENIZER.size
TEXTS = [text for length in range(LONGEST + 1) for text in itertools.product((1, 2, 3), repeat=length)]


class Model(Scorer):
    """A function of tokens and state, and the first state."""

    def __init__(self, step, state, final=lambda state: 0.0):
        self.step, self.state, self.final = step, state, final

    def initial(self):
        return self.state

    def score(self, tokens, state):
        return self.step(tokens, state)

    def final_score(self, state):
        return self.final(state)


def random_model(seed: int, utterances: int, copies: int) -> Model:
    """A model whose prediction depends on the whole history: a random recurrent network. Each utterance its own."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(8, 8, generator=generator)
    embedding, out = torch.randn(CLASSES, 8, generator=generator), 3 * torch.randn(8, CLASSES, generator=generator)
    state = torch.randn(utterances, 8, generator=generator).repeat_interleave(copies, dim=0)

    def step(tokens, state):
        state = (state @ weights + embedding[tokens]).tanh()
        scores = state @ out
        scores[:, [0, START]] = -torch.inf
        return scores.log_softmax(-1), state

    return Model(step, state)


def ctc_model(log_probs: torch.Tensor, lengths) -> CTCPrefixScorer:
    return CTCPrefixScorer(log_probs, torch.as_tensor(lengths), TOKENIZER)


def search(*scorers: Scorer, **options):
    """`beam_search` with weights of 1."""
    return beam_search([(1.0, scorer) for scorer in scorers], start=START, eos=EOS, **options)


def log_prob(scorer: Scorer, text) -> float:
    """Returns log P of a text and its end, by feeding it to the model of one hypothesis."""
    total, last, state = 0.0, START, scorer.initial()
    for token in (*text, EOS):
        scores, state = scorer.score(torch.tensor([last]), state)
        total, last = total + scores[0, token].double().item(), token
    return total


def exhaustive(scorer: Scorer, power: float = 0.0, texts=TEXTS) -> list[tuple[float, list[int]]]:
    found = [(log_prob(scorer, text) / (len(text) + 1) ** power, list(text)) for text in texts]
    return sorted(found, key=lambda pair: -pair[0])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_wide_beam_finds_the_best_texts(power):
    """Three utterances at once, each with its own longest text."""
    width, limits = 3 * len(TEXTS), torch.tensor([LONGEST, 2, 3])
    for seed in range(5):
        model = random_model(seed, 3, width)
        found = search(model, max_tokens=limits, beam_size=width, nbest=3, length_power=power)
        for i, hypotheses in enumerate(found):
            texts = [text for text in TEXTS if len(text) <= limits[i]]
            one = Model(model.step, model.state[i * width : i * width + 1])
            expected = exhaustive(one, power, texts)[:3]
            assert [h.tokens for h in hypotheses] == [text for _, text in expected]
            assert [h.score for h in hypotheses] == pytest.approx([score for score, _ in expected], abs=1e-5)


def test_a_wider_beam_is_never_worse():
    """Scores of the search itself, greedy, then wider; an utterance among others is as it is alone."""
    for seed in range(20):
        best = []
        for width in (1, 2, 8, 128):
            model = random_model(seed, 2, width)
            both = search(model, max_tokens=torch.tensor([LONGEST, LONGEST]), beam_size=width)
            alone = search(Model(model.step, model.state[width:]), max_tokens=torch.tensor([LONGEST]), beam_size=width)
            assert alone[0][0].tokens == both[1][0].tokens
            best.append(both[0][0].score)
        assert best[-1] >= max(best) - 1e-9


def test_greedy_takes_the_likeliest_token():
    model = random_model(3, 1, 1)
    found, = search(model, max_tokens=torch.tensor([20]), beam_size=1)
    last, tokens, state = START, [], model.initial()
    while len(tokens) < 20:
        scores, state = model.score(torch.tensor([last]), state)
        last = scores[0].argmax().item()
        if last == EOS:
            break
        tokens.append(last)
    assert found[0].tokens == tokens


def test_a_text_that_never_ends_is_ended():
    """A model that repeats itself for ever stops at the longest text."""

    def step(tokens, state):
        scores = torch.full((len(tokens), CLASSES), -20.0)
        scores[:, 2] = 0.0
        return scores.log_softmax(-1), state

    found, = search(Model(step, torch.zeros(4, 1)), max_tokens=torch.tensor([7]), beam_size=4, length_power=1.0)
    assert found[0].tokens == [2] * 7


def test_early_ends_do_not_stop_the_search():
    """Each step offers a poor end; the good text, of eight tokens, must still be found by a narrow beam."""

    def step(tokens, state):
        scores = torch.full((len(tokens), CLASSES), -6.0)
        scores[:, 2], scores[:, 3] = -0.1, -3.0
        scores[:, EOS] = torch.where(state[:, 0] == 8, -0.1, -4.0)
        scores[:, 2] = torch.where(state[:, 0] == 8, -8.0, -0.1)
        return scores, state + 1

    found, = search(Model(step, torch.zeros(3, 1)), max_tokens=torch.tensor([30]), beam_size=3, length_power=1.0)
    assert found[0].tokens == [2] * 8


def test_final_scores_change_the_order():
    """Penalised for its length, a text loses to a shorter one; never the other way round. Weights do not apply."""

    def step(tokens, state):
        scores = torch.tensor([-torch.inf, 0.5, 0.0, 0.0, -torch.inf, 0.0]).expand(len(tokens), -1)
        return scores.log_softmax(-1), state + 1

    options = {"start": START, "eos": EOS, "max_tokens": torch.tensor([3]), "beam_size": 200, "length_power": 1.0}
    plain, = beam_search([(1.0, Model(step, torch.zeros(200)))], **options)
    punishing = Model(step, torch.zeros(200), lambda state: -(state - 1))
    short, = beam_search([(1.0, punishing)], **options)
    assert (plain[0].tokens, short[0].tokens) == ([1, 1, 1], [])
    light, = beam_search([(0.5, punishing), (0.5, Model(step, torch.zeros(200)))], **options)
    assert light == short


def test_more_results_than_hypotheses_are_refused():
    with pytest.raises(ValueError, match="3 best of a beam of 2"):
        beam_search([], start=0, eos=1, max_tokens=torch.tensor([1]), beam_size=2, nbest=3)


def test_states_of_every_kind_follow_their_hypotheses():
    rows = torch.tensor([2, 0])
    state = (torch.arange(3), ["a", "b", "c"], (torch.arange(6).view(3, 2),))
    numbers, names, (pairs,) = select(state, rows)
    assert numbers.tolist() == [2, 0] and names == ["c", "a"] and pairs.tolist() == [[4, 5], [0, 1]]


def ctc_log_prob(log_probs: torch.Tensor, text) -> float:
    """Returns log P(text) of (T, C) CTC log-probabilities, by PyTorch's loss."""
    loss = F.ctc_loss(log_probs[:, None], torch.tensor([list(text)], dtype=torch.long), torch.tensor([len(log_probs)]),
                      torch.tensor([len(text)]), reduction="sum")
    return -loss.item()


def test_ctc_prefixes_sum_to_the_probabilities_of_texts():
    """Chained over a text and its end, the steps give log P(text); over all next tokens, they sum to 1."""
    torch.manual_seed(0)
    log_probs = torch.randn(2, 5, 4).double().mul(2).log_softmax(-1)
    lengths = torch.tensor([5, 3])
    both = ctc_model(log_probs, lengths)
    first, _ = both.score(torch.tensor([START, START]), both.initial())
    torch.testing.assert_close(first.exp().sum(-1), torch.ones(2, dtype=torch.float64))
    for row, length in enumerate(lengths.tolist()):
        one = ctc_model(log_probs[row : row + 1], lengths[row : row + 1])
        for text in TEXTS:
            expected = ctc_log_prob(log_probs[row, :length], text)
            assert log_prob(one, text) == pytest.approx(expected, abs=1e-9), text


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_ctc_alone_and_with_another_model(weight):
    """The best text of CTC, summed over its paths, and of the joint score, against trying every text."""
    for seed in range(5):
        torch.manual_seed(seed)
        width = 3 * len(TEXTS)
        log_probs = torch.randn(1, 5, 4).double().mul(2).log_softmax(-1)
        scorers = [(1.0, ctc_model(log_probs.expand(width, -1, -1), [5] * width))]
        if weight:
            scorers = [(weight, scorers[0][1]), (1 - weight, random_model(seed, 1, width))]
        found, = beam_search(scorers, start=START, eos=EOS, max_tokens=torch.tensor([LONGEST]), beam_size=width)

        def truth(text, log_probs=log_probs, seed=seed):
            score = ctc_log_prob(log_probs[0], text)
            if weight:
                score = weight * score + (1 - weight) * log_prob(random_model(seed, 1, 1), text)
            return score

        best = max(TEXTS, key=truth)
        assert tuple(found[0].tokens) == best
        assert math.isclose(found[0].score, truth(best), abs_tol=1e-5)
