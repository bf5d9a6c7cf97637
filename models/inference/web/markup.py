"""Answers as HTML that needs no file of the server: sound, figures and downloads are inside it.

All text passes `escape`.
"""

from html import escape
from pathlib import Path

from models.inference.web.live import LiveText
from models.inference.web.systems import Answer
from utils.metrics import Edit, align_words
from utils.report.html import CAPTIONS, data_uri, encode_mp3
from utils.report.writers import WRITERS, Writer
from utils.types import Transcript, Word


def answer_html(answer: Answer, images: dict[str, bytes]) -> str:
    """Returns an answer: words to click, their sound, links to download, and figures."""
    words = " ".join(map(_word, answer.transcript.words)) or escape(answer.transcript.text) or _nothing()
    figures = "".join(f'<figure><img alt="{CAPTIONS[kind]}" src="{data_uri("image/webp", image)}">'
                      f"<figcaption>{CAPTIONS[kind]}</figcaption></figure>" for kind, image in images.items())
    links = " ".join(_download(answer.transcript, writer) for writer in WRITERS.values())
    return (f'<div class="answer"><p class="words">{words}</p>'
            f'<audio controls src="{data_uri("audio/mpeg", encode_mp3(answer.waveform))}"></audio>'
            f'{_facts(answer)}<p class="downloads">Download {links}</p>{figures}</div>')


def comparison_html(left: Answer, right: Answer) -> str:
    """Returns two answers next to each other, with the words marked by which they differ."""
    edits, = align_words([left.transcript.text], [right.transcript.text])
    count = sum(edit.kind != "hit" for edit in edits)
    columns = "".join(_column(answer, edits, side) for side, answer in enumerate((left, right)))
    return f'<p class="facts">They differ in {count} of {len(edits)} words.</p><div class="columns">{columns}</div>'


def live_html(live: LiveText) -> str:
    """Returns the text so far, and how far it is behind the microphone."""
    return (f'<p class="words">{escape(live.text)}</p>'
            f'<p class="facts">{live.seconds:.1f} s of speech, the text {live.delay:.2f} s behind it (median)</p>')


def error_html(error: Exception) -> str:
    """Returns an error as one line."""
    return f'<p class="error">{escape(str(error))}</p>'


def _nothing() -> str:
    return '<span class="facts">no words were recognised</span>'


def _word(word: Word) -> str:
    """Returns a button; page.js plays its part of the sound, page.css colours it by its doubt."""
    title = f"{word.start:.2f} to {word.end:.2f} s, confidence {100 * word.confidence:.0f} %"
    return (f'<button class="word" title="{title}" data-start="{word.start}" data-end="{word.end}" '
            f'style="--doubt: {1 - word.confidence:.2f}">{escape(word.word)}<small>{word.start:.1f}</small></button>')


def _facts(answer: Answer) -> str:
    return (f'<p class="facts">{escape(answer.system)}: {answer.transcript.seconds:.1f} s of audio in '
            f"{answer.compute_seconds:.1f} s</p>")


def _download(transcript: Transcript, writer: Writer) -> str:
    content = f"{writer.header}{writer.format(transcript)}\n".encode()
    name = escape(f"{Path(transcript.audio).stem}.{writer.extension}")
    return f'<a download="{name}" href="{data_uri("text/plain", content)}">{writer.extension}</a>'


def _column(answer: Answer, edits: list[Edit], side: int) -> str:
    pairs = [(edit[side], edit.kind) for edit in edits if edit[side]]
    words = " ".join(escape(word) if kind == "hit" else f"<mark>{escape(word)}</mark>" for word, kind in pairs)
    return f'<div><p class="words">{words or _nothing()}</p>{_facts(answer)}</div>'
