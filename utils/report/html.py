"""The report as one HTML file that needs nothing else: no network, no script, no other file.

`report.html` next to this file holds its head and styles. All text that comes from data passes `escape`.
"""

import base64
import io
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor

from utils.audio import SAMPLE_RATE, load_audio
from utils.decoding.options import DecodingOptions
from utils.metrics import Edit
from utils.report.plots import diagnostic_images
from utils.report.report import KINDS, Outcome, Result, compare, confusions, wer_interval
from utils.report.significance import Comparison
from utils.types import Batch

TEMPLATE = Path(__file__).with_name("report.html")
CONFUSIONS = 15  # listed of each kind
SPEAKERS = 50  # listed, the worst
BINS = 5  # of duration, with equally many utterances
COLOURS = 6  # for systems, defined in the template
TEXT_HEADS = ("system", "with 95 % interval", "word")  # of left-aligned columns
CAPTIONS = {"posteriors": "log-mel spectrogram, and posteriors of CTC",
            "attention": "attention of each token of the reference over encoder frames"}
SECTIONS = {"results": "Results", "durations": "By duration", "speakers": "By speaker",
            "confusions": "Confusions", "worst": "Worst utterances", "method": "How it was measured"}
METHOD = ("WER and CER are errors over reference words and characters, summed over a split. Intervals hold 95 % of "
          "10,000 corpora that were drawn from the split's own utterances with replacement (bootstrap); systems are "
          "compared on the same draws (matched pairs). Utterances of one speaker resemble each other, so with few "
          "speakers the intervals are too narrow for other people. The real-time factor is the time of network and "
          "search, without reading audio, over the duration of the audio.")
Groups = dict[str, list[int]]  # label of a row to indices of outcomes


class Illustration(NamedTuple):
    """The sound of an utterance, and figures of how networks recognised it."""

    waveform: Tensor  # (S,) float32 at SAMPLE_RATE
    figures: list[tuple[str, bytes]]  # caption and WebP


def illustrate(networks: dict, outcome: Outcome) -> Illustration:
    """Returns the sound of an utterance, and the diagnostic figures of each network by name. Raises AudioError."""
    waveform = load_audio(outcome.audio, part=outcome.part)
    figures = []
    for name, network in networks.items():
        images = utterance_images(network, waveform, outcome.reference)
        figures += [(f"{name}: {CAPTIONS.get(kind, kind)}", image) for kind, image in images.items()]
    return Illustration(waveform, figures)


def utterance_images(network, waveform: Tensor, text: str) -> dict[str, bytes]:
    """Returns WebP images of the diagnostics of a network for (S,) samples and their text, by kind."""
    device = network.device
    tokens = torch.tensor([network.tokenizer.encode(text)], dtype=torch.int64)
    batch = Batch(waveform[None].to(device), torch.tensor([len(waveform)], device=device), tokens.to(device),
                  torch.tensor([tokens.shape[1]], device=device), [text], [""], [])
    with torch.inference_mode():
        return diagnostic_images(network, batch, titles=False, format="webp", pil_kwargs={"quality": 75})


def build_html(*, about: dict, results: list[Result], notes: list[str],
               worst: list[tuple[list[tuple[Result, Outcome]], Illustration]]) -> str:
    """Returns the report as HTML.

    Args:
        about: what was measured: `systems` (name, weights, decoding), `test_sets`, `code`, `date`, `device`, `limit`.
        results: the systems in one order on every split.
        notes: lines on the data, such as what was left out.
        worst: rows of `utils.report.report.worst_utterances`, each with its illustration.
    """
    colours = {name: f"s{i % COLOURS}" for i, name in enumerate(dict.fromkeys(one.system for one in results))}
    parts = {"results": _results(results, compare(results), colours),
             "durations": _groups(results, colours, "duration", _by_duration),
             "speakers": _groups(results, colours, "speaker", _by_speaker),
             "confusions": _confusions(results), "worst": _worst(worst, results),
             "method": f"<p>{METHOD}</p>{_list(notes)}"}
    sections = "\n".join(f'<section id="{key}"><h2>{SECTIONS[key]}</h2>{part}</section>' for key, part in parts.items())
    title = f"Word errors on {', '.join(about['test_sets'])}"
    body = f"{_header(title, _facts(about))}\n<main>\n{sections}\n</main>"
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=escape(title), body=body)


def _facts(about: dict) -> dict[str, str]:
    """Returns the list at the top: where the weights come from, and the decoding options that are not the default."""
    facts, default = {}, asdict(DecodingOptions())
    for system in about["systems"]:
        changed = ", ".join(f"{name} {value}" for name, value in system["decoding"].items()
                            if value not in (default[name], []))
        facts[system["name"]] = " + ".join(system["weights"]) + (f"; {changed}" if changed else "")
    limit = f"; only {about['limit']} utterances of each" if about["limit"] else ""
    return {**facts, "test sets": f"{', '.join(about['test_sets'])} in {about['data_root']}{limit}",
            "code revision": about["code"], "device": about["device"], "date": about["date"]}


def _header(title: str, facts: dict[str, str]) -> str:
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name in SECTIONS.items())
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<header><h1>{escape(title)}</h1><dl>{rows}</dl><nav><ul>{links}</ul></nav></header>"


def _results(results: list[Result], comparisons: list, colours: dict[str, str]) -> str:
    top = max(result.interval.high for result in results)
    rows = [[_name(result.split), f'<td class="text">{_system(result.system, colours)}</td>',
             *_rate(result.counts.wer, result.interval, top, colours[result.system]),
             _percent(result.counts.cer), *(f"<td>{result.kinds[kind]:,}</td>" for kind in KINDS),
             f"<td>{result.counts.words:,}</td><td>{result.counts.utterances:,}</td>",
             f"<td>{result.real_time_factor:.3f}</td>"] for result in results]
    heads = ["split", "system", "WER %", "with 95 % interval", "CER %", "substituted", "inserted", "deleted", "words",
             "utterances", "real-time factor"]
    return _table("The mark on each bar is its 95 % interval.", heads, rows) + _comparisons(comparisons)


def _comparisons(comparisons: list[tuple[Result, Result, Comparison]]) -> str:
    if not comparisons:
        return ""
    rows = [[_name(other.split), f'<td class="text">{escape(other.system)}</td>',
             f"<td>{100 * found.difference:+.2f}</td>",
             f"<td>{100 * found.low:+.2f} to {100 * found.high:+.2f}</td><td>{found.p_text}</td>",
             f'<td class="text">{found.verdict}</td>'] for _, other, found in comparisons]
    heads = ["split", "system", "WER difference, points", "95 % interval", "p", ""]
    return _table(f"Against {comparisons[0][0].system}, on the same utterances; below zero is better.", heads, rows)


def _groups(results: list[Result], colours: dict[str, str], kind: str,
            divide: Callable[[list[Outcome]], Groups]) -> str:
    """Returns one table per split: one row per group of utterances, the systems side by side."""
    tables = []
    for split in dict.fromkeys(result.split for result in results):
        systems = [result for result in results if result.split == split]
        groups = divide(systems[0].outcomes)
        cells = {label: [[one.outcomes[i] for i in indices] for one in systems] for label, indices in groups.items()}
        rates = {label: [(_wer(part), wer_interval(part)) for part in parts] for label, parts in cells.items()}
        order = sorted(rates, key=lambda label: -rates[label][0][0])[:SPEAKERS] if kind == "speaker" else list(rates)
        top = max(found.high for label in order for _, found in rates[label])
        rows = [[_name(label), f"<td>{len(groups[label]):,}</td>",
                 f"<td>{sum(one.words for one in cells[label][0]):,}</td>",
                 *(cell for one, rate in zip(systems, rates[label], strict=True)
                   for cell in _rate(*rate, top, colours[one.system]))] for label in order]
        heads = [kind, "utterances", "words"] + [head for one in systems
                                                 for head in ("WER %", _system(one.system, colours))]
        left = f", the worst {len(order)} of {len(rates)}" if len(order) < len(rates) else ""
        tables.append(_table(f"{split}{left}", heads, rows))
    return "".join(tables)


def _by_duration(outcomes: list[Outcome]) -> Groups:
    """Divides utterances into equally large groups by duration, whose labels give the seconds."""
    seconds = np.array([one.seconds for one in outcomes])
    edges = np.unique(np.quantile(seconds, np.linspace(0, 1, BINS + 1)[1:-1]).round(1))
    bins = np.digitize(seconds, edges)
    named = {i: f"{seconds[bins == i].min():.1f} to {seconds[bins == i].max():.1f} s" for i in np.unique(bins)}
    return {f"{i + 1}: {label}" if list(named.values()).count(label) > 1 else label:
            np.flatnonzero(bins == i).tolist() for i, label in named.items()}


def _by_speaker(outcomes: list[Outcome]) -> Groups:
    groups = defaultdict(list)
    for i, one in enumerate(outcomes):
        groups[one.speaker].append(i)
    return groups


def _wer(outcomes: list[Outcome]) -> float:
    return sum(one.errors for one in outcomes) / max(sum(one.words for one in outcomes), 1)


def _confusions(results: list[Result]) -> str:
    parts = []
    for system in dict.fromkeys(result.system for result in results):
        found = confusions(one for result in results if result.system == system for one in result.outcomes)
        tables = "".join(_confusion_table(kind, found[kind]) for kind in KINDS)
        parts.append(f'<h3>{escape(system)}</h3><div class="columns">{tables}</div>')
    return "".join(parts)


def _confusion_table(kind: str, found: list[tuple[Edit, int]]) -> str:
    total = sum(count for _, count in found)
    if not total:
        return f'<p class="soft">no {kind}s</p>'
    rows = [[f'<td class="text">{_edit(edit)}</td>', f"<td>{count:,}</td>"] for edit, count in found[:CONFUSIONS]]
    more = f", the most frequent {CONFUSIONS} of {len(found):,} different ones" if len(found) > CONFUSIONS else ""
    return _table(f"{total:,} {kind}{'' if total == 1 else 's'}{more}", ["word", "times"], rows)


def _worst(worst: list, results: list[Result]) -> str:
    if not any(one.errors for result in results for one in result.outcomes):
        return "<p>Every word was recognised.</p>"
    if not worst:
        return "<p>None was asked for (--worst 0).</p>"
    legend = ("The utterances with the most word errors. <del>word</del> was said and not recognised, <ins>word</ins> "
              "was recognised and not said; side by side, one was taken for the other.")
    return f"<p>{legend}</p>" + "".join(_article(row, illustration) for row, illustration in worst)


def _article(row: list[tuple[Result, Outcome]], illustration: Illustration) -> str:
    result, first = row[0]
    where = f"{result.split}, speaker {first.speaker}, {first.seconds:.1f} s"
    diffs = "".join(f'<p class="diff"><b>{escape(one_result.system)}: {one.errors} of {one.words} words wrong</b>'
                    f"{' '.join(map(_edit, one.edits))}</p>" for one_result, one in row)
    audio = f'<audio controls preload="none" src="{data_uri("audio/mpeg", encode_mp3(illustration.waveform))}"></audio>'
    figures = "".join(f'<figure><img loading="lazy" alt="{escape(caption)}" src="{data_uri("image/webp", image)}">'
                      f"<figcaption>{escape(caption)}</figcaption></figure>" for caption, image in illustration.figures)
    details = f"<details><summary>Spectrogram and output</summary>{figures}</details>" if figures else ""
    return (f'<article><header><h3>{escape(first.id)}</h3><span class="soft">{escape(where)}</span></header>'
            f"{diffs}{audio}{details}</article>\n")


def _edit(edit: Edit) -> str:
    if edit.kind == "hit":
        return escape(edit.reference)
    lost = f"<del>{escape(edit.reference)}</del>" if edit.reference else ""
    return lost + (f"<ins>{escape(edit.hypothesis)}</ins>" if edit.hypothesis else "")


def encode_mp3(waveform: Tensor) -> bytes:
    """Encodes (S,) samples as MP3, which every browser plays, about 4 kB per second."""
    sound = io.BytesIO()
    soundfile.write(sound, waveform.clamp(-1, 1).numpy(), SAMPLE_RATE, format="MP3")
    return sound.getvalue()


def data_uri(kind: str, content: bytes) -> str:
    """Returns content as the address of a link or an image, which then needs no server."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _table(caption: str, heads: list[str], rows: Iterable[list[str]]) -> str:
    kinds = ["text" if name in TEXT_HEADS or "<" in name else "" for name in heads]  # "<": a system's name
    head = "".join(f'<th scope="col" class="{kind}">{name}</th>' for kind, name in zip(kinds, heads, strict=True))
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
            f"<tbody>\n{body}\n</tbody></table></div>\n")


def _rate(rate: float, found: tuple[float, float], top: float, colour: str) -> list[str]:
    """Returns the cells of a rate: the number, and a bar with its interval; `top` is the rate at the right edge."""
    width, low, high = (f"{100 * value / max(top, 1e-9):.2f}" for value in (rate, *found))
    label = f"{100 * rate:.2f} %, 95 % interval {100 * found[0]:.2f} to {100 * found[1]:.2f} %"
    svg = (f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img"><title>{label}</title>'
           f'<rect class="track" width="100" height="10"/><rect class="{colour}" width="{width}" height="10"/>'
           f'<path class="whisker" d="M{low} 5H{high}M{low} 2V8M{high} 2V8"/></svg>')
    return [_percent(rate), f'<td class="bar">{svg}</td>']


def _percent(rate: float) -> str:
    return f"<td>{100 * rate:.2f}</td>"


def _name(text: str) -> str:
    return f'<th scope="row">{escape(text)}</th>'


def _system(name: str, colours: dict[str, str]) -> str:
    return f'<span class="key {colours[name]}"></span>{escape(name)}'


def _list(lines: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
