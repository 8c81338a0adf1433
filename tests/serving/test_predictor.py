"""Files and options in, the Segmenter's results out; what must not be decoded is not."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from maskformer.serving.predictor import Options, Predictor, TooManyPixels

from . import broken
from .conftest import png_of


def test_results_are_those_of_the_segmenter(predictor, segmenter, scenes) -> None:
    jobs = [(content, predictor.check(Options(task=task))) for task in predictor.tasks for content in scenes]
    results = predictor.predict(jobs)
    for (content, options), result in zip(jobs, results, strict=True):
        alone = segmenter.predict(content, options.task)[0]
        assert result.task == options.task
        assert (result.segmentation == alone.segmentation).mean() > 0.9999
        assert [each.label for each in result.segments] == [each.label for each in alone.segments]
        for ours, theirs in zip(result.segments, alone.segments, strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=1e-4)


def test_options_reach_the_segmenter(predictor, segmenter, scenes) -> None:
    options = Options(task="instance", threshold=0.9, mask_threshold=0.6, overlap=0.7)
    result = predictor.predict([(scenes[0], predictor.check(options))])[0]
    post_processing = {"threshold": 0.9, "mask_threshold": 0.6, "overlap_mask_area_threshold": 0.7}
    assert result.to_dict(rle=True) == segmenter.predict(scenes[0], "instance", **post_processing)[0].to_dict(rle=True)
    assert result.to_dict() != segmenter.predict(scenes[0], "instance")[0].to_dict()


def test_only_equal_options_are_computed_together(predictor, scenes) -> None:
    others = [{"task": "instance"}, {"threshold": 0.9}, {"mask_threshold": 0.9}, {"overlap": 0.99}]
    likenesses = {
        tuple(predictor.check(Options(**fields)).arguments().values()) for fields in [{}, {"format": "png"}, *others]
    }
    assert len(likenesses) == 1 + len(others)
    jobs = [(scenes[0], predictor.check(Options(**fields))) for fields in [{}, *others]]
    together = [result.to_dict() for result in predictor.predict(jobs)]
    assert together == [predictor.predict([job])[0].to_dict() for job in jobs]


def test_encodings(predictor, segmenter, scenes) -> None:
    result = segmenter.predict(scenes[0])[0]
    text, kind = predictor.encode(result, "rle")
    assert kind == "application/json"
    assert json.loads(text) == json.loads(result.to_json(rle=True))
    for form, picture in (("png", result.to_png()), ("overlay", result.overlay())):
        content, kind = predictor.encode(result, form)
        assert kind == "image/png"
        assert (np.asarray(Image.open(io.BytesIO(content))) == np.asarray(picture)).all()


def test_one_damaged_picture_does_not_fail_its_batch(predictor, scenes) -> None:
    options = predictor.check(Options())
    good, bad = predictor.predict([(scenes[0], options), (scenes[0][:-300], options)])
    assert good.segments
    assert isinstance(bad, ValueError)
    assert "cannot be decoded" in str(bad)


def test_an_error_of_one_picture_is_its_own(predictor, scenes, monkeypatch) -> None:
    real = predictor.segmenter._segment

    def fails_for_high(group, *rest):
        if any(item.image_size == (128, 96) for item in group):
            raise FloatingPointError("not finite")
        return real(group, *rest)

    monkeypatch.setattr(predictor.segmenter, "_segment", fails_for_high)
    options = predictor.check(Options())
    first, second, third = predictor.predict([(content, options) for content in scenes])
    assert isinstance(second, FloatingPointError)
    assert first.segments
    assert third.segments


@pytest.mark.parametrize("make", [broken.wide_header, broken.thin, broken.bomb])
def test_too_many_pixels_are_seen_in_the_header(predictor, make) -> None:
    strict = Predictor(predictor.segmenter, max_pixels=50_000) if make is broken.thin else predictor
    with pytest.raises(TooManyPixels):
        strict.likeness(make())


def test_too_many_pixels_are_not_decoded_either(predictor, segmenter) -> None:
    strict = Predictor(segmenter, max_pixels=50_000)
    (error,) = strict.predict([(broken.thin(), predictor.check(Options()))])
    assert isinstance(error, TooManyPixels)


def test_a_thin_picture_may_grow_too_large_by_resizing(predictor, segmenter, monkeypatch) -> None:
    monkeypatch.setattr(segmenter.image_processor, "size", {"shortest_edge": 192})
    grown = Predictor(segmenter, max_pixels=1_000_000)
    with pytest.raises(TooManyPixels, match="resized"):
        grown.likeness(broken.thin())


@pytest.mark.parametrize("content", [b"", b"hello", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n"])
def test_no_picture(predictor, content) -> None:
    with pytest.raises(ValueError, match="cannot be read: send JPEG, PNG"):
        predictor.likeness(content)


def test_pictures_of_a_kind_are_alike_before_they_are_decoded(predictor, scenes) -> None:
    assert predictor.likeness(scenes[0]) == predictor.likeness(scenes[2]) == (192, 256)
    assert predictor.likeness(scenes[1]) == (256, 192)
    assert predictor.likeness(broken.turned()) == (384, 192)
    assert predictor.likeness(png_of(np.zeros((32, 64), np.uint8))) == (192, 384)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_header_tells_which_way_up_a_picture_is(predictor, orientation) -> None:
    content, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (64, 32), "green").save(content, "JPEG", exif=exif)
    height, width = predictor._decoded(content.getvalue()).shape[-2:]
    assert predictor.likeness(content.getvalue()) == ((192, 384) if height < width else (384, 192))


def test_options_a_task_has_no_use_for(predictor) -> None:
    assert predictor.check(Options()).task == "panoptic"
    with pytest.raises(ValueError, match="threshold has no meaning for task 'semantic'"):
        predictor.check(Options(task="semantic", threshold=0.5))


def test_description(predictor) -> None:
    described = predictor.describe()
    assert described["labels"][7] == "tree"
    assert described["parameters"] > 4_000_000
    assert (described["task"], described["device"], described["dtype"]) == ("panoptic", "cpu", "float32")
