"""Alignments, intervals, comparisons, and the files and the page of a report."""

import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import soundfile
import torch
from conftest import SPEECH, TINY, tiny_network

from models import Recognizer
from utils.metrics import Edit, align_words, count_errors
from utils.report import curves, plots
from utils.report.html import build_html, encode_mp3, illustrate
from utils.report.report import (
    Result,
    alignment_lines,
    build_outcomes,
    compare,
    confusions,
    report_files,
    table,
    trn_lines,
    worst_utterances,
)
from utils.report.significance import DRAWS, bootstrap_interval, compare_systems

HOSTILE_ID = "</h3><script>alert('x')</script> (1) $\\frac"
HOSTILE_TEXT = "</p><img src='http' onerror=\"a()\"> &amp; $x^{"


def utterance(name: str, text: str, speaker: str = "ann", seconds: float = 1.0) -> SimpleNamespace:
    return SimpleNamespace(id=name, speaker=speaker, seconds=seconds, audio=str(SPEECH[0]), part=None,
                           text=text)


def result(pairs: list[tuple[str, str]], *, system: str = "greedy", split: str = "test") -> Result:
    utterances = [utterance(f"ann-{i}", reference, seconds=1.0 + i) for i, (reference, _) in enumerate(pairs)]
    outcomes = build_outcomes(utterances, [[hypothesis] for _, hypothesis in pairs])
    return Result(system=system, split=split, outcomes=outcomes, compute_seconds=0.5)


def random_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices("abcd", k=draw.randint(0, 6))) for _ in range(2 * count)]
    return list(zip(texts[:count], texts[count:], strict=True))


def test_alignment_by_hand():
    assert align_words(["a b c d", "", "x"], ["a x c e d", "q r", ""]) == [
        [Edit("a", "a"), Edit("b", "x"), Edit("c", "c"), Edit("", "e"), Edit("d", "d")],
        [Edit("", "q"), Edit("", "r")], [Edit("x", "")]]
    assert [edit.kind for edit in (Edit("a", "a"), Edit("a", "b"), Edit("", "b"), Edit("a", ""))] == [
        "hit", "substitution", "insertion", "deletion"]
    assert align_words([], []) == []
    with pytest.raises(ValueError, match="1 references, but 2"):
        align_words(["a"], ["a", "b"])


def test_alignments_spell_both_texts_and_count_as_the_error_rate():
    references, hypotheses = map(list, zip(*random_pairs(200), strict=True))
    aligned = align_words(references, hypotheses)
    assert [" ".join(edit.reference for edit in edits if edit.reference) for edits in aligned] == references
    assert [" ".join(edit.hypothesis for edit in edits if edit.hypothesis) for edits in aligned] == hypotheses
    assert sum(one.errors for one in result(random_pairs(200)).outcomes) == count_errors(
        references, hypotheses).word_errors


def test_bootstrap_interval_is_that_of_the_binomial():
    """One word each: the interval of a share of n draws is 1.96 standard errors wide on both sides."""
    low, high = bootstrap_interval([1] * 100 + [0] * 900, [1] * 1000)
    error = (0.1 * 0.9 / 1000) ** 0.5
    assert low == pytest.approx(0.1 - 1.96 * error, abs=2e-3) and high == pytest.approx(0.1 + 1.96 * error, abs=2e-3)
    assert bootstrap_interval([1, 1], [4, 4]) == (0.25, 0.25)
    assert bootstrap_interval([0, 2], [0, 0]) == (0.0, 4.0)  # no words: the rate counts as over one


def test_bootstrap_is_seeded():
    errors, words = [0, 3, 1, 0, 2], [5, 9, 4, 7, 6]
    assert bootstrap_interval(errors, words) == bootstrap_interval(errors, words)
    assert bootstrap_interval(errors, words, seed=1) != bootstrap_interval(errors, words)
    assert compare_systems(errors, words, words) == compare_systems(errors, words, words)


@pytest.mark.parametrize("words", [[], [1]])
def test_bootstrap_refuses_what_does_not_fit(words):
    with pytest.raises(ValueError):
        bootstrap_interval([] if not words else [0, 0], words)


def test_matched_pairs_see_a_small_true_difference():
    """Utterances differ far more than the systems, whose separate intervals overlap."""
    draw = random.Random(0)
    first = [draw.choice((0, 0, 0, 1, 8)) for _ in range(400)]
    second = [errors - (errors > 0 and draw.random() < 0.15) for errors in first]
    found = compare_systems(first, second, [10] * 400)
    assert bootstrap_interval(first, [10] * 400).low < bootstrap_interval(second, [10] * 400).high
    assert found.difference == pytest.approx((sum(second) - sum(first)) / 4000)
    assert found.low <= found.difference <= found.high < 0 and found.p_value < 0.01
    assert found.verdict == "significantly better"
    swapped = compare_systems(second, first, [10] * 400)
    assert swapped.difference == -found.difference and swapped.verdict == "significantly worse"


def test_matched_pairs_see_no_difference_where_there_is_none():
    """About one in twenty pairs of equal systems may look different, not more."""
    draw = random.Random(1)
    found = [compare_systems(*([draw.choice((0, 0, 1, 2)) for _ in range(150)] for _ in range(2)), [5] * 150)
             for _ in range(40)]
    assert sum(one.p_value < 0.05 for one in found) <= 5
    same = compare_systems([1, 0, 2], [1, 0, 2], [3, 3, 3])
    assert same == (0.0, 0.0, 0.0, 1.0) and same.verdict == "no significant difference"


def test_p_is_never_zero():
    found = compare_systems([5] * 50, [0] * 50, [5] * 50)
    assert found.p_value == pytest.approx(2 / (DRAWS + 1)) and found.p_text == "< 0.001"


def test_trn_is_what_sclite_reads():
    """Text, then the id in parentheses, the speaker before its first dash; every id once, none with spaces."""
    utterances = [utterance("ann-1", "one two"), utterance("clip (3)", "three", speaker="bo-b x"),
                  utterance("clip  3)", ""), utterance("ann-1", "four")]
    outcomes = build_outcomes(utterances, [["one"], ["three"], ["q"], [""]])
    one = Result(system="greedy", split="test", outcomes=outcomes, compute_seconds=0.0)
    assert trn_lines([one], "reference").splitlines() == [
        "one two (ann-1)", "three (bo.b_x-clip__3_)", "(ann-clip__3_)", "four (ann-1.1)"]
    assert trn_lines([one], "hypothesis").splitlines() == [
        "one (ann-1)", "three (bo.b_x-clip__3_)", "q (ann-clip__3_)", "(ann-1.1)"]


def test_alignments_stand_word_under_word():
    assert alignment_lines([result([("a long word", "a lng x word")])]) == (
        "test ann-0: 2 errors in 3 words\n"
        "REF: a *** long word\n"
        "HYP: a lng x    word\n"
        "       I   S\n\n")


def test_confusions_and_worst_utterances_in_order():
    first = result([("a b", "a c"), ("a b", "a c"), ("a", "b"), ("d", "d"), ("a b c", "")])
    assert confusions(first.outcomes) == {
        "substitution": [(Edit("b", "c"), 2), (Edit("a", "b"), 1)], "insertion": [],
        "deletion": [(Edit("a", ""), 1), (Edit("b", ""), 1), (Edit("c", ""), 1)]}
    second = result([("a b", "a b"), ("a b", "a c"), ("a", "a"), ("d", "d"), ("a b c", "a b c")], system="beam 8")
    worst = worst_utterances([first, second], 10)
    assert [row[0][1].id for row in worst] == ["ann-4", "ann-1", "ann-2", "ann-0"]
    assert [(system.system, one.errors) for system, one in worst[0]] == [("greedy", 3), ("beam 8", 0)]
    assert len(worst_utterances([first, second], 2)) == 2


def test_table_states_what_was_counted():
    first, second = (result(random_pairs(30, seed), system=name) for seed, name in enumerate(("greedy", "beam 8")))
    second = result([(a.reference, b.hypothesis) for a, b in zip(first.outcomes, second.outcomes, strict=True)],
                    system="beam 8")
    lines = table([first, second]).splitlines()
    for one, line in zip((first, second), lines[1:], strict=False):
        counts = count_errors([o.reference for o in one.outcomes], [o.hypothesis for o in one.outcomes])
        columns = line.replace(one.system, "x").split()
        assert columns[2] == f"{100 * counts.wer:.2f}" and columns[4] == f"{100 * counts.cer:.2f}"
        assert sum(map(int, columns[5:8])) == counts.word_errors and columns[8:10] == [str(counts.words), "30"]
    assert lines[3] == f"test: beam 8 against greedy: {compare([first, second])[0][2]}"
    assert "oracle" not in lines[0]


def test_oracle_counts_the_best_of_n():
    outcomes = build_outcomes([utterance("a", "one two")], [["one", "one two", "x y z"]])
    one = Result(system="beam", split="test", outcomes=outcomes, compute_seconds=0.0, nbest=3)
    assert (one.counts.word_errors, one.oracle_wer) == (1, 0.0) and "oracle WER" in table([one])


class Page(HTMLParser):
    """Refuses tags that do not close, keeps texts, attributes, and what leads out of the page."""

    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self, page: str):
        super().__init__()
        self.open, self.texts, self.attributes, self.tags, self.leads = [], [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.leads += [value for name, value in attributes if name in ("src", "href", "action", "data", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def hostile_page() -> str:
    """A report whose ids and texts try to be markup and formulas, with both kinds of figures."""
    alphabet = "".join(sorted(set(HOSTILE_TEXT + " abc")))
    torch.manual_seed(0)
    networks = {name: Recognizer.build(model, **TINY[model], alphabet=alphabet).eval()
                for name, model in ((HOSTILE_TEXT, "deepspeech2"), ("las", "las"))}
    utterances = [utterance(HOSTILE_ID, HOSTILE_TEXT, speaker="<b>"), utterance("plain", "a b c", seconds=2.0)]
    results = [Result(system=name, split="<i>test", compute_seconds=1.0,
                      outcomes=build_outcomes(utterances, [[text], ["a c"]])) for name, text in
               (("greedy", "<script>x</script>"), (HOSTILE_TEXT, HOSTILE_TEXT))]
    about = {"systems": [{"name": one.system, "weights": [HOSTILE_ID], "decoding": {"decoder": "greedy"}}
                         for one in results], "code": "<u>", "date": "today", "device": "cpu", "data_root": "<data>",
             "test_sets": ["<i>test"], "limit": 3}
    worst = [(row, illustrate(networks, row[0][1])) for row in worst_utterances(results, 5)]
    return build_html(about=about, results=results, notes=[HOSTILE_TEXT], worst=worst)


@pytest.fixture(scope="module")
def page() -> str:
    return hostile_page()


def test_page_needs_nothing_but_itself(page):
    parsed = Page(page)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(parsed.tags)
    assert parsed.leads and all(re.match(r"#\w+$|data:(audio/mpeg|image/webp);base64,", lead) for lead in parsed.leads)
    assert not re.search(r"https?://|file:|url\(|@import", re.sub(r"base64,[\w+/=]+", "", page))
    ids = {value for name, value in parsed.attributes if name == "id"}
    assert {lead[1:] for lead in parsed.leads if lead.startswith("#")} <= ids
    assert parsed.tags.count("article") == parsed.tags.count("audio") == 2
    assert parsed.tags.count("img") == 2 * 3  # posteriors of both networks, attention of one


def test_page_escapes_what_comes_from_data(page):
    parsed = Page(page)
    texts = "".join(parsed.texts)
    assert HOSTILE_ID in texts and HOSTILE_TEXT in texts and "<script>x</script>" in texts
    assert not any(name.startswith("on") for name, _ in parsed.attributes)
    assert {"b", "h3"} <= set(parsed.tags) and "u" not in parsed.tags and "i" not in parsed.tags
    assert "$" + "body" not in page


def test_page_of_a_perfect_result():
    perfect = result([("a b", "a b"), ("c", "c")])
    about = {"systems": [], "code": "", "date": "", "device": "", "data_root": "", "test_sets": ["test"], "limit": None}
    page = build_html(about=about, results=[perfect], notes=[], worst=[])
    assert "Every word was recognised" in page and "no deletions" in page and Page(page)
    wrong = build_html(about=about, results=[result([("a b", "x y")])], notes=[], worst=[])
    assert "Every word was recognised" not in wrong and "--worst 0" in wrong


def test_page_in_a_browser(page, tmp_path):
    """It opens, shows every utterance, and its own policy refuses nothing that it holds."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium on PATH: the page is not opened in a browser")
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--enable-logging=stderr", "--dump-dom", (tmp_path / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stdout.count("<article>") == 2
    assert not re.search("CONSOLE|Refused|Content Security Policy", done.stderr)


def test_clips_play_at_their_own_length(tmp_path):
    wave = torch.sin(torch.arange(24_000) * 0.2) * 1.5  # louder than full scale
    (tmp_path / "a.mp3").write_bytes(encode_mp3(wave))
    assert soundfile.info(tmp_path / "a.mp3").duration == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize("setting", [{}, {"text.usetex": True}, {"font.family": "No Such Font"},
                                     {"figure.dpi": 1e5, "savefig.dpi": 1e5}], ids=str)
def test_no_name_and_no_setting_ends_a_drawing(setting, capfd, recwarn):
    """LaTeX that is not installed, formulas that are none, characters that the font lacks, bytes that are no text."""
    attention, posteriors = torch.rand(3, 4), torch.rand(9, 5).log_softmax(-1)
    with matplotlib.rc_context(setting):
        for text in ["clip_$1_$2_a"] if setting else ["$x^{", r"\frac{a} % # &", "日本", "caf\udce9 \0\n"]:
            for draw in (lambda text=text: plots.posterior_figure(torch.rand(9, 4), posteriors, list("-abcd"), text),
                         lambda text=text: plots.attention_figure([attention] * 2, [text] * 2, [list(text)] * 2),
                         lambda text=text: plots.surface_figure({(0.0,): 0.5, (1.0,): 0.6}, ["a"], (0.0,), text)):
                assert plots.render(draw)[:4] == b"\x89PNG"
    assert capfd.readouterr().err == "" and not [one for one in recwarn if "Glyph" in str(one.message)]


def test_a_figure_that_cannot_be_drawn_is_left_out(capfd, monkeypatch):
    """The others are there, and it is said once."""
    def broken(*_, **__):
        raise OSError("no font\nat all")

    plots._warn_once.cache_clear()
    monkeypatch.setattr(plots, "attention_figure", broken)
    row = build_outcomes([utterance("a", "hello")], [["x"]])[0]
    for _ in range(2):
        figures = illustrate({"x": tiny_network("las")}, row).figures
        assert [caption.split(":")[1][:8] for caption, _ in figures] == [" log-mel"]
    assert capfd.readouterr().err == (
        "note: a figure was left out, matplotlib cannot draw it (OSError: no font\\nat all)\n")


def history(path: Path, row: dict) -> str:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(row) + "\n")
    return str(path)


def test_curves_of_runs_in_folders_of_one_name(tmp_path, monkeypatch):
    drawn, draw = [], curves.curve_figure
    monkeypatch.setattr(curves, "curve_figure", lambda histories: (drawn.append(histories), draw(histories))[1])
    paths = [history(tmp_path / name / "history.jsonl", {"epoch": 0, "train/loss": loss, "val/wer": 0.5})
             for loss, name in enumerate(("a/x", "b/x", "c/y"), start=1)]
    for kind in curves.FORMATS:
        curves.main([*paths, "--output", str(tmp_path / "new" / f"curves.{kind}")])
    assert {name: rows[0]["train/loss"] for name, rows in drawn[0].items()} == {paths[0]: 1, paths[1]: 2, "y": 3}
    assert (tmp_path / "new" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list((tmp_path / "new").iterdir())) == len(curves.FORMATS)


@pytest.mark.parametrize(("losses", "labels"), [((4.7, 2.3), {"3", "4"}), ((3, 0.02), {"0.1", "1"})])
def test_the_loss_axis_is_labelled_in_plain_numbers(losses, labels):
    """As matplotlib labels it, it shows the source of a formula: no text of a figure is typeset as one."""
    rows = [{"epoch": i, "train/loss": loss, "val/wer": 0.5} for i, loss in enumerate(losses)]
    figure = curves.curve_figure({"run": rows})
    assert plots.render(lambda: figure)
    axis = figure.axes[0].yaxis
    shown = {label.get_text() for label in (*axis.get_majorticklabels(), *axis.get_minorticklabels())} - {""}
    assert labels <= shown and not any("$" in text for text in shown)


@pytest.mark.parametrize(("row", "flags", "reason"), [
    ({}, ["--output", "c.xyz"], "--output c.xyz: must end in .png, "),
    ({"epoch": 0, "val/wer": 1.0}, ["--output", "c.png"], "history.jsonl: not the history.jsonl of a run (a line "
                                                          "without 'train/loss')"),
    ({"epoch": 0, "train/loss": "x", "val/wer": 1.0}, ["--output", "c.png"], "not the history.jsonl of a run"),
    ({}, [], "the following arguments are required: --output"),
    ({}, ["--output", "c.png", "--colour"], "unrecognized arguments: --colour")])
def test_wrong_curves_are_one_line(row, flags, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        curves.main([history(tmp_path / "x" / "history.jsonl", row), *flags])
    error = capsys.readouterr().err
    assert error.startswith("utils.report.curves: error: ") and reason in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_sound_of_a_part_of_a_file(tmp_path):
    whole, part = utterance("a", "hello"), utterance("b", "hello")
    soundfile.write(tmp_path / "a.wav", torch.rand(16_000).numpy(), 16_000)
    whole.audio = part.audio = tmp_path / "a.wav"
    part.part = 0.25, 0.5
    waveforms = [illustrate({}, one).waveform for one in build_outcomes([whole, part], [["x"], ["x"]])]
    assert len(waveforms[1]) == 8_000 and torch.equal(waveforms[0][4_000:12_000], waveforms[1])


def test_figures_of_networks_by_name():
    found = illustrate({"x": tiny_network("las"), "y": tiny_network("gru")},
                    build_outcomes([utterance("a", "hello")], [["x"]])[0])
    assert [caption.split(":")[0] for caption, _ in found.figures] == ["x", "x", "y"]
    assert all(image[:4] == b"RIFF" and image[8:12] == b"WEBP" for _, image in found.figures)


def test_files_of_several_systems():
    first = result([("a b", "a c")])
    files = report_files([first, result([("a b", "a b")], system="beam")], {"code": "x"})
    assert set(files) == {"report.json", "hypotheses.jsonl", "ref.trn", "hyp.trn", "hyp-2.trn", "alignments.txt",
                          "alignments-2.txt"}
    assert files["hyp.trn"] == "a c (ann-0)\n" and files["hyp-2.trn"] == "a b (ann-0)\n"
