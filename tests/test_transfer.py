"""New runs that begin with another network's weights, and parameters that stay as they are."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from conftest import PIECES, ROOT, TINY, tiny_network
from test_contracts import make_batch, speech
from test_resume_flags import refused
from training_runs import arguments, checkpoint, run_together, weights

import evaluate
import inference
import train
from models import Recognizer
from models.transfer import freeze, kept_vocabulary, shortened, take_weights
from utils.checkpoint.__main__ import export
from utils.checkpoint.reading import PREFIX, CheckpointError
from utils.errors import UsageError

OTHER_ORDER = " 'zyxwvutsrqponmlkjihgfedcba"


def build(model: str = "deepspeech2", *, seed: int = 1, **options) -> Recognizer:
    """A tiny network of other weights than those that it takes."""
    torch.manual_seed(seed)
    return Recognizer.build(model, **{**TINY[model], **options})


def save(network: Recognizer, path: Path) -> Path:
    """A checkpoint of a network's weights."""
    state = {f"{PREFIX}{name}": value for name, value in network.state_dict().items()}
    torch.save({"recognizer": network.config, "state_dict": state}, path)
    return path


@pytest.fixture
def source(tmp_path) -> Path:
    """A checkpoint of a bidirectional network with two layers of GRUs."""
    return save(build(seed=0), tmp_path / "source.ckpt")


def taken(network: Recognizer, path: Path) -> set[str]:
    """The names of the weights that are those of the checkpoint."""
    found = torch.load(path, weights_only=True)["state_dict"]
    return {name for name, value in network.state_dict().items()
            if found.get(PREFIX + name) is not None and torch.equal(value, found[PREFIX + name])}


def test_the_same_network_takes_everything(source):
    network = build()
    assert "project.weight" not in taken(network, source)
    assert take_weights(network, source) == f"{source}: 14 of 14 layers taken"
    assert taken(network, source) == set(network.state_dict())


def test_both_kinds_of_file_are_taken(source, tmp_path):
    export([source], tmp_path / "x.safetensors")
    network = build()
    assert "14 of 14 layers taken" in take_weights(network, tmp_path / "x.safetensors")
    assert taken(network, source) == set(network.state_dict())


@pytest.mark.parametrize(("options", "line"), [
    ({"alphabet": " abcdefg"}, "13 of 14 layers taken; begin anew: head.3"),
    ({"alphabet": OTHER_ORDER}, "13 of 14 layers taken; begin anew: head.3"),
    ({"tokenizer": "bpe", "vocabulary": PIECES}, "13 of 14 layers taken; begin anew: head.3"),
    ({"head": "linear"}, "12 of 13 layers taken; begin anew: head; not used: head"),
    ({"local_ctc_weight": 0.3}, "14 of 15 layers taken; begin anew: local_head"),
    ({"rnn_layers": 3}, "14 of 17 layers taken; begin anew: rnn.2"),
    ({"rnn_layers": 1}, "11 of 11 layers taken; not used: rnn.1"),
    ({"rnn_size": 24}, "5 of 14 layers taken; begin anew: head, project, rnn"),
    ({"rnn_type": "lstm"}, "10 of 14 layers taken; begin anew: rnn.0.backwards, rnn.0.forwards, rnn.1.backwards, "
                           "rnn.1.forwards"),
    ({"bidirectional": False, "lookahead": 3}, "9 of 13 layers taken; begin anew: head.0, lookahead, rnn.1; not used: "
                                               "rnn.0.backwards, rnn.1"),
])
def test_layers_that_differ_begin_anew_and_are_named(source, options, line):
    network = build(**options)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert take_weights(network, source) == f"{source}: {line}"
    found = taken(network, source)
    assert "cnn.stem.convs.0.weight" in found
    new = [name for name in before if name not in found]
    assert all(torch.equal(before[name], network.state_dict()[name]) for name in new)


def test_networks_of_two_kinds_share_what_has_one_name(source):
    network = build("conformer", time_stride=2)
    assert f"{source}: 3 of 38 layers taken; " in take_weights(network, source)
    assert taken(network, source) >= {"cnn.stem.convs.0.weight", "project.weight", "head.3.bias"}


def test_the_speller_of_other_tokens_begins_anew(tmp_path):
    path = save(tiny_network("las-location"), tmp_path / "las.ckpt")
    options = {**tiny_network("las-location").config, "alphabet": OTHER_ORDER}
    network = Recognizer.build(**options)
    line = take_weights(network, path)
    assert line.endswith("begin anew: ctc, speller.embedding, speller.output"), line


def test_nothing_in_common_is_refused(tmp_path, source):
    with pytest.raises(CheckpointError, match="source.ckpt: no layer of this las network has the same name and shapes"):
        take_weights(tiny_network("las"), source)


@pytest.mark.parametrize(("before", "after", "expected"), [
    ("global", "global", True), ("utterance", "global", False), ("global", "utterance", False)])
def test_feature_statistics_come_along_where_they_mean_the_same(tmp_path, before, after, expected):
    old, new = build(feature_norm=before), build(feature_norm=after)
    old.features.mean.fill_(2.0)
    old.features.scale.fill_(3.0)
    line = take_weights(new, save(old, tmp_path / "x.ckpt"))
    assert new.features.has_statistics == expected
    assert ("begin anew: features" in line) == (after == "global" and not expected)
    assert not build(feature_norm="global", window_ms=20.0).features.has_statistics


def test_statistics_of_other_features_do_not_come_along(tmp_path):
    old, new = build(feature_norm="global"), build(feature_norm="global", window_ms=20.0)
    old.features.scale.fill_(3.0)
    assert "begin anew: features" in take_weights(new, save(old, tmp_path / "x.ckpt"))
    assert not new.features.has_statistics


def test_pieces_are_kept_unless_others_are_asked_for(tmp_path, source):
    path = save(tiny_network("bpe"), tmp_path / "bpe.ckpt")
    alphabet = tiny_network("bpe").config["alphabet"]
    size = tiny_network("bpe").tokenizer.ctc_size - 1
    assert kept_vocabulary(path, alphabet=alphabet, vocab_size=None) == PIECES
    assert kept_vocabulary(path, alphabet=alphabet, vocab_size=size) == PIECES
    assert kept_vocabulary(path, alphabet=alphabet, vocab_size=size + 1) is None
    assert kept_vocabulary(path, alphabet=f"{alphabet}é", vocab_size=None) is None
    assert kept_vocabulary(source, alphabet=alphabet, vocab_size=None) is None


def test_names_are_shortened_to_modules_of_which_nothing_is_left():
    assert shortened(["a.0.x", "a.0.y", "a.1.x", "b.x"], ["a.1.y"]) == ["a.0", "a.1.x", "b"]
    assert shortened(["a.attention"], ["a.attention.out"]) == ["a.attention"]
    assert shortened(["rnn.1.x"], ["rnn.10.x"]) == ["rnn.1"]


# -- frozen parameters -----------------------------------------------------------------------------


def test_frozen_parameters_are_counted():
    network = build()
    total = sum(one.numel() for one in network.parameters())
    line = freeze(network, ["cnn.*", "rnn.0.*"])
    frozen = {name for name, one in network.named_parameters() if not one.requires_grad}
    assert {name.split(".")[0] for name in frozen} == {"cnn", "rnn"} and "rnn.1.norm.weight" not in frozen
    count = sum(one.numel() for one in network.parameters() if not one.requires_grad)
    assert line == f"{count:,} of {total:,} parameters frozen"


@pytest.mark.parametrize(("patterns", "message"), [
    (["cnn.*", "rn.*"], r"--freeze rn\.\*: no parameter of this network has such a name; there are cnn\.\*, project\."),
    (["cnn"], "--freeze cnn: no parameter"),
    (["*"], r"--freeze \*: no parameter is left to train"),
])
def test_what_cannot_be_frozen_is_refused(patterns, message):
    with pytest.raises(UsageError, match=message):
        freeze(build(), patterns)


@pytest.mark.parametrize("variant", ["gru", "mingru", "las", "las-location", "conformer"])
def test_frozen_layers_leave_other_gradients_as_they_are(variant):
    """Below, above and between trained layers: the fused paths, too, give the gradients that they gave before."""
    patterns = {"las": ["listener.*"], "las-location": ["speller.*"], "conformer": ["blocks.0.*", "head.*"]}
    network, whole = (tiny_network(variant).eval() for _ in range(2))
    freeze(network, patterns.get(variant, ["rnn.1.*", "cnn.blocks.*"]))
    batch = make_batch(whole, speech())
    for one in (network, whole):
        one.loss(one.encode(batch.waveforms, batch.sample_counts), batch)["loss"].backward()
    expected = dict(whole.named_parameters())
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            grad = expected[name].grad
            torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-5 * float(grad.abs().max()), msg=name)
        else:
            assert parameter.grad is None


# -- runs ------------------------------------------------------------------------------------------


def test_a_run_begins_with_the_weights_alone(tmp_path, source, capsys):
    """At a learning rate of next to nothing it ends with them; optimiser, schedule and epochs are its own."""
    output = tmp_path / "run"
    train.main(arguments(output, f"--init_from={source}", "--epochs", "1", "-lr", "1e-20", "--seed", "5",
                         f"--alphabet={OTHER_ORDER}"))
    assert f"{source}: 13 of 14 layers taken; begin anew: head.3\n" in capsys.readouterr().out
    found, expected = weights(output), torch.load(source, weights_only=True)["state_dict"]
    same = {name for name, value in found.items() if torch.allclose(value, expected[name], rtol=0, atol=1e-12)}
    assert found.keys() - same == {"network.head.3.weight", "network.head.3.bias"}
    assert json.loads((output / "history.jsonl").read_text().splitlines()[0])["epoch"] == 0
    assert yaml.safe_load((output / "config.yaml").read_text())["init_from"] == str(source)
    assert checkpoint(output)["recognizer"]["alphabet"] == OTHER_ORDER


def test_a_run_that_goes_on_has_all_weights_already(tmp_path, source, capsys):
    """The same command line, started again with --checkpoint_path auto, even where the first weights are gone."""
    output = tmp_path / "run"
    flags = [f"--init_from={source}", "--checkpoint_path", "auto", "--freeze", "cnn.*", "--test_sets"]
    train.main(arguments(output, *flags, "--epochs", "1"))
    assert "14 of 14 layers taken" in capsys.readouterr().out
    source.unlink()
    train.main(arguments(output, *flags, "--epochs", "2"))
    said = capsys.readouterr().out
    assert f"--init_from {source}: not read, this run goes on from {output}/checkpoints/last.ckpt" in said
    assert "layers taken" not in said and "parameters frozen" in said
    assert len((output / "history.jsonl").read_text().splitlines()) == 2
    train.main(arguments(output, *flags[1:], "--epochs", "3", "--init_from", "another.ckpt"))
    assert yaml.safe_load((output / "config.yaml").read_text())["init_from"] == str(source), "where it did begin"


def test_frozen_parameters_stay_in_one_process_and_in_two(tmp_path, source):
    """Nor do batch normalisation's statistics move; the optimiser keeps nothing of them, and no process waits."""
    flags = ["--dropout", "0", "--freq_masks", "0", "--time_masks", "0", "--warmup_steps", "0", "--epochs", "1",
             "--seed", "5", "--test_sets", "--rnn_norm", "batch", f"--init_from={source}", "--freeze", "cnn.*",
             "rnn.0.*"]
    for processes, name, size in ((1, "one", "10"), (2, "two", "5")):
        done = run_together(processes, *arguments(tmp_path / name, *flags, "--batch_size", size))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("layers taken") == done.stdout.count("parameters frozen") == 1
    expected = torch.load(source, weights_only=True)["state_dict"]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for found in (one, two):
        for name in found:
            if name.startswith(("network.cnn.", "network.rnn.0.")) and name in expected:
                assert torch.equal(found[name], expected[name]), name
        assert found["network.rnn.0.norm.running_mean"].eq(0).all(), "as it was before the run"
        assert found["network.rnn.1.norm.running_mean"].ne(0).any()
        assert not torch.equal(found["network.head.3.bias"], expected["network.head.3.bias"])
    torch.testing.assert_close(one["network.head.3.bias"], two["network.head.3.bias"], rtol=0, atol=1e-5)
    states = checkpoint(tmp_path / "one")["optimizer_states"][0]["state"]
    trained = [name for name, value in expected.items() if not name.startswith(("network.cnn.", "network.rnn.0."))]
    assert len(states) == len([name for name in trained if not name.startswith("network.features.")])


def test_a_run_goes_on_with_the_parameters_that_it_began_with(tmp_path, capsys):
    output = tmp_path / "run"
    train.main(arguments(output, "--epochs", "1", "--freeze", "rnn.1.*", "cnn.*", "--test_sets"))
    line = refused(capsys, *arguments(output, "--epochs", "2", "--freeze", "rnn.0.*", "--checkpoint_path", "auto"))
    assert "--freeze was 'cnn.* rnn.1.*', is 'rnn.0.*': a run goes on" in line and "--init_from" in line
    train.main(arguments(output, "--epochs", "2", "--freeze", "cnn.*", "rnn.1.*", "--checkpoint_path", "auto"))


def test_a_run_with_its_own_statistics_measures_them(tmp_path, source):
    """And one that takes global statistics does not."""
    network = build(feature_norm="global")
    network.features.scale.fill_(3.0)
    for path, ours in ((save(network, tmp_path / "global.ckpt"), False), (source, True)):
        output = tmp_path / path.stem
        train.main(arguments(output, f"--init_from={path}", "--feature_norm", "global", "--epochs", "1", "--test_sets"))
        assert weights(output)["network.features.scale"].eq(3.0).all() != ours


def test_pieces_of_the_first_network_are_those_of_the_run(tmp_path, capsys):
    path = save(tiny_network("bpe"), tmp_path / "bpe.ckpt")
    train.main(arguments(tmp_path / "run", f"--init_from={path}", "--tokenizer", "bpe", "--rnn_type", "mingru",
                         "--epochs", "1", "--test_sets"))
    said = capsys.readouterr().out
    assert "14 of 14 layers taken" in said and "pieces learnt" not in said
    assert checkpoint(tmp_path / "run")["recognizer"]["vocabulary"] == PIECES


@pytest.mark.parametrize(("flags", "message"), [
    (["--init_from", "no.ckpt"], "no.ckpt: no such checkpoint file"),
    (["--init_from", "source.ckpt", "--model", "las"], "nothing can be taken from it"),
    (["--freeze", "cnn.*", "tail.*"], "--freeze tail.*: no parameter of this network has such a name"),
    (["--freeze", "*"], "--freeze *: no parameter is left to train"),
])
def test_wrong_flags_are_refused_before_anything_runs(tmp_path, source, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    model = "las" if "las" in flags else "deepspeech2"
    assert message in refused(capsys, *arguments(tmp_path / "run", *flags, model=model))
    assert not (tmp_path / "run" / "config.yaml").exists()


# -- docs/transfer.md ------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "transfer.md").read_text(encoding="utf-8").replace("\\\n", " ")


@pytest.mark.parametrize("command", re.findall(r"python (?:train|evaluate|inference)\.py [^`\n]+", PAGE))
def test_the_commands_of_the_page_are_understood(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("network.yaml").write_text("model: deepspeech2\nhead: linear\n")
    program, *flags = shlex.split(command)[1:]
    parse = {"train.py": train, "evaluate.py": evaluate, "inference.py": inference}[program].parse_arguments
    assert vars(parse(flags))
