"""One HTML file about an evaluation: numbers, warnings, classes as bars, the confusion matrix, and the worst and best
images beside their truth. Everything is inside the file; nothing is loaded from elsewhere. C classes.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskformer.data.dataset import SegmentationDataset
from maskformer.data.sample import Sample
from maskformer.evaluation.evaluate import Evaluation, class_table
from maskformer.evaluation.judge import Row, panoptic_truth
from maskformer.evaluation.loop import Loop, Options
from maskformer.inference import Segmenter
from maskformer.results import write_whole
from maskformer.visualization import overlay

Pictures = tuple[Row, Image.Image, Image.Image]  # the image's row, its prediction and its truth

_WIDTH = 480  # of an image in the report, in pixels
_LABELLED_CLASSES = 40  # a larger confusion matrix has no room for names
_CONFUSIONS_SHOWN = 20
_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;color:#22242a;max-width:1180px;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.15rem .7rem;text-align:right;border-bottom:1px solid #e3e5ea}"
    "td:first-child,th:first-child{text-align:left}.bar{height:.7rem;background:#3b76c4;min-width:1px}"
    ".track{width:16rem;background:#eef0f4}.warning{background:#fff3d6;padding:.4rem .8rem;margin:.3rem 0}"
    ".pair{display:flex;gap:.8rem;flex-wrap:wrap;margin-bottom:1rem}.pair img{max-width:100%}"
    "figure{margin:0}svg{max-width:100%}figcaption{color:#666c78}"
)


def write_report(path: Path, evaluation: Evaluation, model: str, data: str, pictures: Sequence[Pictures] = ()) -> None:
    """Write the report; the file appears whole or not at all.

    Args:
        path: of the HTML file.
        evaluation: what it is about.
        model: its name.
        data: the name of the data set.
        pictures: of `gallery`.
    """
    partial = f" — PARTIAL: {len(evaluation.images)} of {evaluation.num_images} images" if evaluation.is_partial else ""
    title = html.escape(f"{model} on {data}, {evaluation.task}{partial}")
    parts = [f"<h1>{title}</h1>"]
    parts += [f'<p class="warning">{html.escape(sentence)}</p>' for sentence in evaluation.warnings]
    parts += [_table(["metric", "percent"], [[name, _number(value)] for name, value in evaluation.metrics.items()])]
    speed = [[stage.replace("_", "-"), f"{value:.2f}"] for stage, value in evaluation.images_per_second.items()]
    parts += ["<h2>Images per second of one process</h2>", _table(["stage", "images/s"], speed)]
    parts += ["<h2>Classes</h2>", _classes(evaluation.per_class)]
    if evaluation.confusion is not None:
        parts += ["<h2>Confusion of classes</h2>", _confusion(evaluation.confusion, evaluation.names)]
    if pictures:
        parts += ["<h2>Worst and best images</h2>", "<p>Left the prediction, right the truth.</p>"]
        parts += [_pair(*entry) for entry in pictures]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    text = f"{head}<body>{''.join(parts)}</body></html>\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8", errors="replace"))


def gallery(
    segmenter: Segmenter, dataset: SegmentationDataset, evaluation: Evaluation, options: Options, count: int = 4
) -> list[Pictures]:
    """The worst and the best images, that many of each at most, segmented once more to be drawn."""
    ranked = sorted((row for row in evaluation.images if row["score"] is not None), key=lambda row: row["score"])
    chosen = {row["index"]: row for row in [*ranked[:count], *ranked[max(count, len(ranked) - count) :]]}
    table = class_table(segmenter.labels, evaluation.names, options.by_order, segmenter.stuff_ids or ())
    labels = {int(theirs): ours for ours, theirs in enumerate(table)}
    drawn: list[Pictures] = []
    loop = Loop(segmenter, evaluation.task, options)
    if evaluation.task == "instance":
        loop.stream_options["threshold"] = 0.5
    for index, result, sample in loop.results(dataset, list(chosen)):
        pair = result.overlay(sample.image, legend=False), _truth(sample, evaluation.names, labels)
        scale = _WIDTH / sample.image.shape[1]  # the truth is wider by its legend
        predicted, true = (p.resize((round(scale * p.width), max(1, round(scale * p.height)))) for p in pair)
        drawn.append((chosen[index], predicted, true))
    return drawn


def _truth(sample: Sample, names: Sequence[str], labels: dict[int, int]) -> Image.Image:
    ids, segments = panoptic_truth(sample)
    for segment in segments:
        segment |= {"label_id": labels[segment["category_id"]], "label": names[segment["category_id"]]}
    return overlay(sample.image, ids, segments)


def _classes(rows: Sequence[Row]) -> str:
    if not rows:
        return "<p>None has support.</p>"
    names = [name for name in rows[0] if name not in ("id", "name")]
    main = next(name for name in ("IoU", "PQ", "AP") if name in names)
    bar = '<div class="track"><div class="bar" style="width:{:.1f}%"></div></div>'
    return _table(
        ["class", "", *names],
        [
            [html.escape(row["name"]), bar.format(row[main]), *(_number(row[name]) for name in names)]
            for row in sorted(rows, key=lambda row: -row[main])
        ],
    )


def _confusion(confusion: NDArray[np.int64], names: Sequence[str]) -> str:
    """The matrix as a picture, rows being the truth, and the most frequent confusions in words."""
    labels = [html.escape(name) for name in [*names, "nothing"][: len(confusion)]]
    true = confusion.sum(1)
    shares = confusion / np.maximum(true, 1)[:, None]  # [C, C]
    shade = (255 * (1 - np.sqrt(shares))).astype(np.uint8)
    picture = Image.fromarray(np.stack([shade, np.maximum(shade, 60), np.maximum(shade, 130)], axis=-1))
    cell, margin, texts = 760 / len(labels), 20, ""
    if len(labels) <= _LABELLED_CLASSES:
        cell, margin = 18, 150
        for at, name in enumerate(labels):
            middle = f"{margin + cell * (at + 0.75):.0f}"
            texts += f'<text x="{margin - 5}" y="{middle}" text-anchor="end">{name}</text>'
            texts += f'<text transform="translate({middle},{margin - 5}) rotate(-60)">{name}</text>'
    side = math.ceil(cell * len(labels))
    size = side + margin + 60
    svg = (
        f'<svg width="{size}" height="{size}" font-size="12" role="img" aria-label="confusion matrix, rows are the '
        f'truth"><image x="{margin}" y="{margin}" width="{side}" height="{side}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="{_data(picture, "PNG")}"/>{texts}</svg>'
    )
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    places = [place for place in np.argsort(-wrong, axis=None)[:_CONFUSIONS_SHOWN].tolist() if wrong.flat[place]]
    rows = [
        [labels[row], labels[column], f"{wrong[row, column]:,}", f"{100 * shares[row, column]:.1f} %"]
        for row, column in (divmod(place, len(labels)) for place in places)
    ]
    return svg + _table(["truth", "predicted as", "pixels", "of the class"], rows)


def _pair(row: Row, prediction: Image.Image, truth: Image.Image) -> str:
    images = "".join(f'<img alt="" src="{_data(picture, "JPEG")}">' for picture in (prediction, truth))
    caption = html.escape(f"{row['path']}: {row['score']:.1f}")
    return f'<figure><figcaption>{caption}</figcaption><div class="pair">{images}</div></figure>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Of cells that are HTML already."""
    lines = ["".join(f"<th>{cell}</th>" for cell in header)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _data(picture: Image.Image, form: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, form, quality=85)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
