"""`evaluate.py --tune`, and the search for the weights of decoding."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CORPUS
from test_evaluate import noisy, save
from test_ngram import ARPA, CHARACTERS, emissions

import evaluate
from models import Recognizer
from models.inference import tuning
from utils.audio import load_audio
from utils.cli.config import config_arguments
from utils.cli.parser import OneLineParser, add_constructor_flags
from utils.decoding import tune
from utils.decoding.options import DecodingOptions
from utils.metrics import ErrorCounts, count_errors

pytest.importorskip("kenlm")
DATA = ["--data_root", str(CORPUS), "-w", "0", "--device", "cpu", "--val_sets", "dev"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """Checkpoints and n-grams."""
    folder = tmp_path_factory.mktemp("tune")
    texts = {"x": ARPA, "char": CHARACTERS, "cut": ARPA[:90],
             "upper": ARPA.replace("sea", "SEA").replace("see", "SEE")}
    for name, content in texts.items():
        (folder / f"{name}.arpa").write_text(content)
    checkpoints = {"ctc": "mingru", "las": "las", "no_ctc": "las-multihead"}
    return {**{name: str(save(folder / f"{name}.ckpt", noisy(0, kind))) for name, kind in checkpoints.items()},
            **{name: str(folder / f"{name}.arpa") for name in texts}}


def run(*argv) -> None:
    evaluate.main([str(argument) for argument in (*argv, *DATA)])


def fail(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as ended:
        run(*argv)
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1 and lines[0].startswith("evaluate.py: error: ")
    return lines[0]


@pytest.fixture
def sea(monkeypatch) -> None:
    """A validation set whose sounds leave open what the n-gram of test_ngram.py knows: after `see` comes `sea`."""
    log_probs = [emissions("see sea", swap="ea", seed=i) for i in range(6)]
    monkeypatch.setattr(tuning, "collect_log_probs", lambda *_: (["see sea"] * 6, log_probs))


def options_of(path: Path) -> DecodingOptions:
    parser = OneLineParser()
    add_constructor_flags(parser, DecodingOptions)
    return DecodingOptions(**vars(parser.parse_args(config_arguments(str(path), parser))))


def test_weights_that_help_are_found(files, sea, tmp_path, capfd):
    output = tmp_path / "new" / "decoding.yaml"
    run("--checkpoint", files["ctc"], "--tune", "--lm", files["x"], "--output", output)
    out, err = capfd.readouterr()
    assert "WER 0.00%" in out and "without an n-gram 0.00%" not in out and err == ""
    lines = output.read_text().splitlines()
    assert lines[1].startswith("# python evaluate.py --checkpoint ") and f"--lm {files['x']}" in lines[1]
    flags = yaml.safe_load(output.read_text())
    assert flags["alpha"] > 0 and list(flags) == ["decoder", "lm", "alpha", "beta", "beam_size"]
    assert (output.parent / "decoding.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(output.parent.iterdir())) == 2
    assert options_of(output).lm == files["x"]


def test_the_other_options_of_the_search_are_kept(files, sea, tmp_path):
    pytest.importorskip("pyctcdecode")
    run("--checkpoint", files["ctc"], "--tune", "--lm", files["x"], "--output", tmp_path / "d.yaml", "--beam_size", 7,
        "--grid", "beta=0.5", "alpha=1,0.5", "--rounds", 0, "--hotwords", "Sea", "--decoder_backend", "pyctcdecode")
    assert options_of(tmp_path / "d.yaml") == DecodingOptions(
        decoder="beam", lm=files["x"], alpha=0.5, beta=0.5, beam_size=7, hotwords=["sea"],
        decoder_backend="pyctcdecode")


def test_a_packed_ngram_is_the_same(files, sea, tmp_path):
    import gzip

    packed = tmp_path / "x.arpa.gz"
    packed.write_bytes(gzip.compress(Path(files["x"]).read_bytes()))
    for name, lm in (("a", files["x"]), ("b", packed)):
        run("--checkpoint", files["ctc"], "--tune", "--lm", lm, "--output", tmp_path / f"{name}.yaml", "--rounds", 0)
    plain, other = (yaml.safe_load((tmp_path / f"{name}.yaml").read_text()) for name in "ab")
    assert other == {**plain, "lm": str(packed)}


def test_it_says_where_nothing_helps(files, tmp_path, capsys, monkeypatch):
    """Sounds that leave nothing open, and words that the n-gram does not know."""
    monkeypatch.setattr(tuning, "collect_log_probs", lambda *_: (["tea"], [emissions("tea")]))
    run("--checkpoint", files["ctc"], "--tune", "--lm", files["x"], "--output", tmp_path / "d.yaml", "--rounds", 0)
    assert f"{files['x']}: no weights make it better than none" in capsys.readouterr().err


def test_log_probs_are_those_of_each_utterance_alone(files):
    """Without padding, in memory too."""
    network = Recognizer.from_checkpoint(files["ctc"])
    args = evaluate.parse_arguments(["--checkpoint", "x", "--tune", "--output", "d.yaml", "--batch_size", "3", *DATA])
    data = evaluate.build_data(args, network)
    batches = (batch for loader in data.val_dataloader() for batch in loader)
    texts, log_probs = tuning.collect_log_probs(network, batches)
    utterances = {utterance.text: utterance for utterance in data.index("dev").utterances}
    assert sorted(texts) == sorted(utterances) and len(texts) == len(log_probs)
    for text, one in zip(texts, log_probs, strict=True):
        waveform = load_audio(utterances[text].audio)[None]
        with torch.inference_mode():
            expected, lengths = network.ctc_log_probs(network.encode(waveform, torch.tensor([waveform.shape[1]])))
        assert one.dtype == torch.float32 and len(one) == lengths
        torch.testing.assert_close(one, expected[0], rtol=1e-3, atol=1e-3)
        assert one.untyped_storage().nbytes() == one.numel() * 4, "padding is not kept"


@pytest.mark.parametrize(("name", "lm", "weights"), [
    ("las", None, ["length_power", "ctc_score_weight", "coverage_weight"]),
    ("las", "x", ["alpha", "length_power", "ctc_score_weight", "coverage_weight"]),
    ("no_ctc", None, ["length_power", "coverage_weight"])])
def test_attention_models(files, tmp_path, capsys, monkeypatch, name, lm, weights):
    """Each batch is encoded once for the whole grid; the best point is what evaluation gives for it."""
    network, encoded = Recognizer.from_checkpoint(files[name]), []
    monkeypatch.setattr(tuning, "_encode", lambda network, batch, encode=tuning._encode: (
        encoded.append(len(batch.texts)), encode(network, batch))[1])
    output = tmp_path / "d.yaml"
    command = ["--checkpoint", files[name], "--tune", "--output", output, "--rounds", 0, "--beam_size", 3]
    run(*command, *(["--lm", files[lm]] if lm else []))
    out, _ = capsys.readouterr()
    assert sum(encoded) == 2 * 5, "once for what it is compared with, once for the grid"
    flags = yaml.safe_load(output.read_text())
    assert list(flags) == ["decoder", *(["lm"] if lm else []), *weights, "beam_size"]
    assert f" of {math.prod(len(tune.ATTENTION_GRID[weight]) for weight in weights)} points" in out
    found = evaluate.main(["--checkpoint", files[name], "--config", str(output), *DATA[:-2], "--test_sets", "dev"])
    assert found is None
    wer = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("dev  ")).split()
    assert f"val WER {float(wer[wer.index('x.arpa') + 1] if lm else wer[3]):.2f}%" in out
    assert (tmp_path / "d.png").read_bytes()[:4] == b"\x89PNG" and network.autoregressive


def counts(errors: float) -> ErrorCounts:
    return ErrorCounts(word_errors=errors, words=100)


def search(error, grid: dict, rounds: int) -> dict:
    return tune.pattern_search(lambda points: [counts(error(*point)) for point in points], grid, rounds)


def test_search_leaves_the_grid_and_refines():
    surface = search(lambda a, b: (a - 2.6) ** 2 + (b + 1.3) ** 2, {"alpha": [0, 1, 2], "beta": [0, 1]}, rounds=3)
    assert tune.best_point(surface) == (2.625, -1.25) and min(alpha for alpha, _ in surface) == 0
    assert len(surface) < 60
    assert search(lambda *_: 0, {"alpha": [0.5], "beta": [1.0]}, rounds=5).keys() == {(0.5, 1.0)}


def test_search_over_four_weights():
    """Along the axes, within the limits of each weight."""
    target = {"alpha": 0.45, "length_power": 0.25, "ctc_score_weight": 1.3, "coverage_weight": 0.0}
    surface = search(lambda *point: sum((x - y) ** 2 for x, y in zip(point, target.values(), strict=True)),
                     dict(tune.ATTENTION_GRID), rounds=3)
    assert tune.best_point(surface) == pytest.approx((0.45, 0.25, 0.975, 0.0))
    assert all(0 <= weight <= 1 for _, _, weight, _ in surface) and len(surface) < 130


def test_ties_go_to_fewer_character_errors_then_smaller_weights():
    errors = {(2.0, 1.0): (3, 9, 8), (1.0, 1.0): (3, 9, 9), (1.0, -0.5): (3, 9, 8), (1.0, 2.0): (3, 9, 8),
              (0.0, 0.0): (4, 9, 1)}
    surface, ranked = {point: ErrorCounts(*one) for point, one in errors.items()}, []
    while surface:
        ranked.append(tune.best_point(surface))
        del surface[ranked[-1]]
    assert ranked == [(1.0, -0.5), (1.0, 2.0), (2.0, 1.0), (1.0, 1.0), (0.0, 0.0)]


def test_errors_are_those_of_the_texts(sea):
    """In the order of the utterances, whatever their lengths."""
    texts = ["see", "tea", "see sea"]
    log_probs = [emissions(text) for text in texts]
    found, = tuning.count_ctc_errors([*texts[:2], "sea"], log_probs, noisy(0).tokenizer, [DecodingOptions()])
    assert found == count_errors([*texts[:2], "sea"], texts)


@pytest.mark.parametrize(("flags", "message"), [
    (["--val_sets", "dev", "test-clean"], "--val_sets test-clean: test sets choose nothing"),
    (["--val_sets", "x/test.jsonl"], "--val_sets x/test.jsonl: test sets choose nothing"),
    (["--val_sets", "nowhere"], "no split 'nowhere'"),
    (["--lm", "nowhere.arpa"], "nowhere.arpa: no such language model"),
    (["--lm", "{char}"], "char.arpa: is an n-gram over characters"),
    (["--lm", "{cut}"], "cut.arpa: cut off"),
    (["--lm", "{upper}"], "upper.arpa: the network's alphabet cannot write 2 of its 2 words; 2 can in the other"),
    (["--output", "x.json"], "--output x.json: --tune needs the name of a file that ends in .yaml"),
    (["--output", "folder.yaml"], "--output folder.yaml: --tune needs the name of a file"),
    (["--grid", "alpha=-1"], "--alpha -1.0 must be at least 0"),
    (["--grid", "beta=0,nan"], "--beta nan must be finite"),
    (["--grid", "length_power=1"], "--grid length_power: no weight of this search; there are alpha, beta"),
    (["--grid", "alpha"], "--grid"),
    (["--grid", "alpha=x"], "--grid"),
    (["--rounds", "-1"], "--rounds: -1 must be at least 0"),
    (["--checkpoint", "{ctc}", "{las}"], "--tune takes one --checkpoint"),
    (["--compare_greedy"], "--tune takes one --checkpoint, and neither --compare_greedy nor --report"),
    (["--report", "r"], "nor --report"),
], ids=str)
def test_bad_tuning(files, capsys, monkeypatch, tmp_path, flags, message):
    """One line, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    Path("folder.yaml").mkdir()
    flags = [files[flag[1:-1]] if flag[0] == "{" else flag for flag in flags]
    monkeypatch.setattr("test_tune.DATA", DATA[:-2] if "--val_sets" in flags else DATA)
    command = ["--checkpoint", files["ctc"], "--tune", "--lm", files["x"], "--output", "d.yaml", *flags]
    assert message in fail(capsys, *command)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".cache"] == ["folder.yaml"]


def test_what_tuning_needs(files, capsys, tmp_path):
    assert "add --lm" in fail(capsys, "--checkpoint", files["ctc"], "--tune", "--output", tmp_path / "d.yaml")
    assert "--tune needs the name of a file" in fail(capsys, "--checkpoint", files["ctc"], "--tune", "--lm", files["x"])
