"""Results on test sets: error rates with their intervals, comparisons, and the plain files of a report.

A system is one network with one way of decoding; an outcome is its text of one utterance, aligned to the reference.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from utils.metrics import Edit, ErrorCounts, align_words, count_errors
from utils.report.significance import LEVEL, Comparison, Interval, bootstrap_interval, compare_systems

KINDS = ("substitution", "insertion", "deletion")
_MARKS = {"hit": "", "substitution": "S", "insertion": "I", "deletion": "D"}


class Outcome(NamedTuple):
    """The text that one system gave for one utterance."""

    id: str
    speaker: str
    seconds: float
    audio: str  # path
    part: tuple[float, float] | None  # begin and duration in seconds; None for the whole file
    reference: str
    hypothesis: str
    edits: list[Edit]
    least_errors: int  # word errors of the best text among the n-best

    @property
    def errors(self) -> int:
        """Word errors."""
        return sum(edit.kind != "hit" for edit in self.edits)

    @property
    def words(self) -> int:
        """Words of the reference."""
        return sum(bool(edit.reference) for edit in self.edits)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one system on one split.

    Args:
        system: its name, short and unique.
        split: name of the split.
        outcomes: one per utterance, in the split's order.
        compute_seconds: time that network and search took.
        nbest: texts per utterance.
    """

    system: str
    split: str
    outcomes: list[Outcome]
    compute_seconds: float
    nbest: int = 1

    @cached_property
    def counts(self) -> ErrorCounts:
        """Error counts of the whole split."""
        return count_errors([one.reference for one in self.outcomes], [one.hypothesis for one in self.outcomes])

    @cached_property
    def interval(self) -> Interval:
        """Confidence interval of the WER."""
        return wer_interval(self.outcomes)

    @cached_property
    def kinds(self) -> Counter:
        """Number of words by kind of edit."""
        return Counter(edit.kind for one in self.outcomes for edit in one.edits)

    @property
    def oracle_wer(self) -> float:
        """WER of the best text among each utterance's n-best, a fraction."""
        return sum(one.least_errors for one in self.outcomes) / max(self.counts.words, 1)

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of audio."""
        return self.compute_seconds / sum(one.seconds for one in self.outcomes)


def short_names(paths: list[str]) -> dict[str, str]:
    """Returns paths by the name of their run's folder and their own, or by the whole path where that is not unique."""
    names = []
    for path in map(Path, paths):
        folder = path.absolute().parent
        names.append(f"{(folder.parent if folder.name == 'checkpoints' else folder).name}/{path.stem}")
    return {name if names.count(name) == 1 else path: path for name, path in zip(names, paths, strict=True)}


def build_outcomes(utterances: list, texts: list[list[str]]) -> list[Outcome]:
    """Aligns the n-best texts of N utterances to their references."""
    references = [one.text for one, n_best in zip(utterances, texts, strict=True) for _ in n_best]
    aligned = iter(align_words(references, [text for n_best in texts for text in n_best]))
    outcomes = []
    for one, n_best in zip(utterances, texts, strict=True):
        edits = list(islice(aligned, len(n_best)))
        least = min(sum(edit.kind != "hit" for edit in path) for path in edits)
        outcomes.append(Outcome(one.id, one.speaker, one.seconds, one.audio, one.part, one.text, n_best[0], edits[0],
                                least))
    return outcomes


def wer_interval(outcomes: list[Outcome]) -> Interval:
    """Returns the confidence interval of the WER of some outcomes."""
    return bootstrap_interval([one.errors for one in outcomes], [one.words for one in outcomes])


def compare(results: list[Result]) -> list[tuple[Result, Result, Comparison]]:
    """Compares each system with the first one, on each split."""
    compared, first = [], {}
    for result in results:
        base = first.setdefault(result.split, result)
        if base is not result:
            errors = [[one.errors for one in side.outcomes] for side in (base, result)]
            compared.append((base, result, compare_systems(*errors, [one.words for one in base.outcomes])))
    return compared


def confusions(outcomes: Iterable[Outcome]) -> dict[str, list[tuple[Edit, int]]]:
    """Counts the edits of each kind of error, most frequent first, then in alphabetical order."""
    counts = Counter(edit for one in outcomes for edit in one.edits if edit.kind != "hit")
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {kind: [item for item in ranked if item[0].kind == kind] for kind in KINDS}


def worst_utterances(results: list[Result], count: int) -> list[list[tuple[Result, Outcome]]]:
    """Returns the utterances with the most word errors of all systems together, each with every system's outcome.

    Where errors are equal in number, the shorter text is worse. Utterances without errors are left out.
    """
    rows: dict[tuple, list] = {}
    for result in results:
        for one in result.outcomes:
            rows.setdefault((result.split, one.id), []).append((result, one))
    wrong = [row for row in rows.values() if any(one.errors for _, one in row)]
    wrong.sort(key=lambda row: (-sum(one.errors for _, one in row), row[0][1].words))
    return wrong[:count]


def result_row(result: Result) -> dict:
    """Returns the numbers of a result, rates as fractions and times in seconds."""
    counts, seconds = result.counts, sum(one.seconds for one in result.outcomes)
    return {"system": result.system, "split": result.split, "wer": counts.wer, "wer_interval": list(result.interval),
            "cer": counts.cer, "errors": counts.word_errors, **{f"{kind}s": result.kinds[kind] for kind in KINDS},
            "words": counts.words, "characters": counts.chars, "utterances": counts.utterances,
            "oracle_wer": result.oracle_wer, "audio_seconds": round(seconds, 3),
            "compute_seconds": round(result.compute_seconds, 3), "real_time_factor": result.real_time_factor}


def comparison_row(base: Result, other: Result, compared: Comparison) -> dict:
    """Returns the numbers of a comparison, rates as fractions."""
    return {"split": other.split, "baseline": base.system, "system": other.system,
            "wer_difference": compared.difference, "interval": [compared.low, compared.high],
            "p_value": compared.p_value}


def table(results: list[Result]) -> str:
    """Returns one line per system and split, then one per comparison."""
    split = max(10, *(len(result.split) + 2 for result in results))
    system = max(10, *(len(result.system) + 2 for result in results))
    oracle = any(result.nbest > 1 for result in results)
    lines = [f"{'split':{split}}{'decoder':{system}}{'WER %':>7}{f'{LEVEL:.0%} interval':>15}{'CER %':>8}{'ins':>7}"
             f"{'del':>7}{'sub':>7}{'words':>9}{'utterances':>12}{'RTF':>8}" + ("  oracle WER %" if oracle else "")]
    for result in results:
        counts, (low, high), kinds = result.counts, result.interval, result.kinds
        lines.append(f"{result.split:{split}}{result.system:{system}}{100 * counts.wer:7.2f}"
                     f"{f'{100 * low:.2f}-{100 * high:.2f}':>15}{100 * counts.cer:8.2f}{kinds['insertion']:7,}"
                     f"{kinds['deletion']:7,}{kinds['substitution']:7,}{counts.words:9,}{counts.utterances:12,}"
                     f"{result.real_time_factor:8.3f}" + (f"{100 * result.oracle_wer:14.2f}" if oracle else ""))
    return "\n".join(lines + [f"{other.split}: {other.system} against {base.system}: {compared}"
                              for base, other, compared in compare(results)])


def report_files(results: list[Result], about: dict) -> dict[str, str]:
    """Returns the content of every plain file of a report, by name; `about` goes into `report.json`.

    The first system's files are `hyp.trn` and `alignments.txt`, those of the second `hyp-2.trn` and so on.
    """
    systems = list(dict.fromkeys(result.system for result in results))
    parts = {i: [result for result in results if result.system == name] for i, name in enumerate(systems, start=1)}
    files = {"hypotheses.jsonl": hypothesis_lines(results), "ref.trn": trn_lines(parts[1], "reference")}
    for i, part in parts.items():
        suffix = f"-{i}" if i > 1 else ""
        files[f"hyp{suffix}.trn"] = trn_lines(part, "hypothesis")
        files[f"alignments{suffix}.txt"] = alignment_lines(part)
    rows = {"results": [result_row(result) for result in results],
            "comparisons": [comparison_row(*compared) for compared in compare(results)], "files": sorted(files)}
    return {**files, "report.json": json.dumps({**about, **rows}, indent=2, ensure_ascii=False) + "\n"}


def hypothesis_lines(results: list[Result]) -> str:
    """Returns one line per utterance and system, each a JSON object."""
    return "".join(json.dumps({
        "system": result.system, "split": result.split, "id": one.id, "speaker": one.speaker, "audio": one.audio,
        "seconds": round(one.seconds, 3), "reference": one.reference, "hypothesis": one.hypothesis,
        "errors": one.errors, "words": one.words}, ensure_ascii=False) + "\n" for result in results
        for one in result.outcomes)


def trn_lines(results: list[Result], field: str) -> str:
    """Returns every outcome in sclite's format: its `reference` or `hypothesis`, then the id in parentheses.

    Ids must be unique and hold neither spaces nor parentheses; sclite takes the part before the first dash for the
    speaker.
    """
    lines, taken = [], set()
    for one in (one for result in results for one in result.outcomes):
        stem = re.sub(r"[\s()]", "_", one.id if re.match(re.escape(one.speaker) + "[-_]", one.id) else
                      f"{re.sub('[-_]', '.', one.speaker)}-{one.id}")
        name = next(name for i in range(len(lines) + 1) if (name := f"{stem}.{i}" if i else stem) not in taken)
        taken.add(name)
        lines.append(f"{getattr(one, field)} ({name})".lstrip() + "\n")
    return "".join(lines)


def alignment_lines(results: list[Result]) -> str:
    """Returns every outcome as three rows, word under word: reference, hypothesis, kind of error."""
    return "".join(f"{result.split} {one.id}: {one.errors} errors in {one.words} words\n{_aligned(one.edits)}\n"
                   for result in results for one in result.outcomes)


def _aligned(edits: list[Edit]) -> str:
    columns = []
    for edit in edits:
        size = max(len(edit.reference), len(edit.hypothesis))
        columns.append([(edit.reference or "*" * size).ljust(size), (edit.hypothesis or "*" * size).ljust(size),
                        _MARKS[edit.kind].ljust(size)])
    rows = zip(("REF:", "HYP:", "    "), *columns, strict=True)
    return "".join(" ".join(row).rstrip() + "\n" for row in rows)
