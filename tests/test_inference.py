"""The Segmenter and its results: exact maps of a stub network, batches that change nothing, and the formats."""

import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers.image_transforms import rgb_to_id

from maskformer.configuration import MaskFormerConfig, PerPixelBaselineConfig
from maskformer.evaluation.panoptic_quality import PanopticQuality
from maskformer.inference import Segmentation, Segmenter
from maskformer.modeling.maskformer import MaskFormerForInstanceSegmentation
from maskformer.modeling.per_pixel import PerPixelBaseline
from maskformer.processing.image_processor import MaskFormerImageProcessor
from maskformer.processing.masks import encode_run_lengths
from maskformer.results import segments_of_runs

LABELS = {0: "ball", 1: "box", 2: "sky"}
SKY = (0, 0, 255)


class ColorModel(nn.Module):
    """Four queries that see red (ball), green (box), and the left and the right half of blue (sky), pixel by pixel."""

    def __init__(self, model_type: str = "maskformer", stuff_class_ids: list[int] | None = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(id2label=LABELS, model_type=model_type, stuff_class_ids=stuff_class_ids)
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.batches: list[tuple[int, ...]] = []

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.batches.append(tuple(pixel_values.shape))
        colors = pixel_values  # stride 1: nothing is interpolated, so that results are exact
        left = (torch.arange(colors.shape[-1]) < colors.shape[-1] // 2).to(colors)
        queries = torch.stack([colors[:, 0], colors[:, 1], colors[:, 2] * left, colors[:, 2] * (1 - left)], dim=1)
        probs = torch.tensor([[0.9, 0.02, 0.02], [0.05, 0.8, 0.05], [0.01, 0.01, 0.94], [0.01, 0.01, 0.95]])
        probs = torch.cat([probs, 1 - probs.sum(-1, keepdim=True)], dim=-1)
        return SimpleNamespace(
            class_queries_logits=probs.log().expand(len(pixel_values), -1, -1),
            masks_queries_logits=(queries - 0.5) * 2 * self.scale,
        )


def processor(**options) -> MaskFormerImageProcessor:
    settings = {"do_resize": False, "do_normalize": False, "pad_size_divisor": 32, "label_ids_to_fuse": [2]}
    return MaskFormerImageProcessor(**{**settings, **options})


def picture(height: int = 40, width: int = 56) -> np.ndarray:
    """Sky, a red ball's box at (8, 4), a green box at (24, 20), and where they meet both (yellow)."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:] = SKY
    image[4:24, 8:28] = (255, 0, 0)
    image[20:36, 24:40] = (0, 255, 0)
    image[20:24, 24:28] = (255, 255, 0)
    return image


def segmenter(**options) -> Segmenter:
    return Segmenter(ColorModel(), processor(), **options)


def tiny_config(kind: type[MaskFormerConfig] = MaskFormerConfig, **fields) -> MaskFormerConfig:
    swin = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    decoder = {"model_type": "detr", "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2}
    decoder |= {"decoder_ffn_dim": 32, "encoder_layers": 0, "encoder_attention_heads": 2, "num_queries": 10}
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    return kind(
        backbone_config=swin | stages, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32,
        id2label=LABELS, **fields,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> MaskFormerForInstanceSegmentation:
    torch.manual_seed(0)
    model = MaskFormerForInstanceSegmentation(tiny_config())
    with torch.no_grad():  # wide apart logits, so that maps have edges
        model.mask_embedder[-1][0].weight.mul_(30)
        model.class_predictor.weight.mul_(10)
    return model.eval()


def test_panoptic_segments_are_exact() -> None:
    (result,) = segmenter().predict(picture())
    assert (result.task, result.image_size) == ("panoptic", (40, 56))
    assert result.segmentation.dtype == np.int32
    ball, box, sky = result.segments
    assert (ball.id, ball.label, ball.label_id, ball.is_thing) == (1, "ball", 0, True)
    assert (box.id, box.label, box.label_id, box.is_thing) == (2, "box", 1, True)
    assert (sky.id, sky.label, sky.label_id, sky.is_thing) == (3, "sky", 2, False)
    assert (ball.score, box.score, sky.score) == pytest.approx((0.9, 0.8, 0.95), abs=1e-5)
    assert ball.bbox == (8, 4, 20, 20)
    assert ball.area == 400  # where both are, the surer one wins
    assert box.bbox == (24, 20, 16, 16)
    assert box.area == 256 - 16
    assert sky.area == 40 * 56 - 640
    assert sky.bbox == (0, 0, 56, 40)
    expected = np.full((40, 56), 3)
    expected[20:36, 24:40] = 2
    expected[4:24, 8:28] = 1
    assert (result.segmentation == expected).all()
    for segment in result.segments:
        assert (segment.mask == (expected == segment.id)).all()


def test_fusing_is_the_callers_choice() -> None:
    (result,) = segmenter().predict(picture(), label_ids_to_fuse=set())
    assert [segment.label for segment in result.segments] == ["ball", "box", "sky", "sky"]
    fused = Segmenter(ColorModel(), processor(label_ids_to_fuse=None)).predict(picture(), "panoptic")[0]
    assert [segment.is_thing for segment in fused.segments] == [None] * 4
    fused = Segmenter(ColorModel(stuff_class_ids=[2]), processor(label_ids_to_fuse=None)).predict(picture())[0]
    assert [segment.label for segment in fused.segments] == ["ball", "box", "sky"]


def test_instances_overlap_and_stuff_is_left_out() -> None:
    (result,) = segmenter().predict(picture(), "instance")
    ball, box = result.segments
    assert [(each.id, each.label, each.is_thing) for each in result.segments] == [(0, "ball", True), (1, "box", True)]
    assert (ball.area, box.area) == (400, 256)
    assert (ball.bbox, box.bbox) == ((8, 4, 20, 20), (24, 20, 16, 16))
    assert (ball.mask & box.mask).sum() == 16
    assert (result.segmentation[20:24, 24:28] == 0).all()
    assert (result.segmentation[30:36, 30:40] == 1).all()
    assert result.segmentation.dtype == np.int32
    assert result.segmentation[0, 0] == -1
    assert (result.segmentation >= 0).sum() == 640


def test_without_known_stuff_everything_is_an_instance() -> None:
    (result,) = Segmenter(ColorModel(), processor(label_ids_to_fuse=None)).predict(picture(), "instance")
    assert [segment.label for segment in result.segments] == ["sky", "sky", "ball", "box"]


def test_semantic_map_has_a_segment_per_class() -> None:
    (result,) = segmenter().predict(picture(), "semantic")
    assert [(each.id, each.label_id, each.label) for each in result.segments] == [
        (0, 0, "ball"), (1, 1, "box"), (2, 2, "sky"),
    ]  # fmt: skip
    assert [each.score for each in result.segments] == pytest.approx([0.9, 0.8, 0.95], abs=1e-5)
    expected = np.full((40, 56), 2)
    expected[20:36, 24:40] = 1
    expected[4:24, 8:28] = 0
    assert (result.segmentation == expected).all()
    assert result.segmentation.dtype == np.int32
    assert [each.area for each in result.segments] == [400, 240, 1600]
    (plain,) = segmenter().predict(np.full((32, 32, 3), SKY, np.uint8), "semantic")
    assert [(each.id, each.area, each.bbox) for each in plain.segments] == [(2, 1024, (0, 0, 32, 32))]


def test_an_empty_picture_has_no_segments() -> None:
    black = np.zeros((33, 47, 3), np.uint8)
    (panoptic,) = segmenter().predict(black, "panoptic")
    assert panoptic.segments == []
    assert (panoptic.segmentation == 0).all()
    (instance,) = segmenter().predict(black, "instance")
    assert instance.segments == []
    assert (instance.segmentation == -1).all()
    assert instance.to_coco(1) == []
    assert instance.overlay().size == (47, 33)


@pytest.mark.parametrize(
    ("fuse", "stuff", "model_type", "expected"),
    [
        ([2], None, "maskformer", "panoptic"),
        (None, [2], "maskformer", "panoptic"),
        ([], None, "maskformer", "instance"),
        (None, None, "maskformer", "semantic"),
        ([2], None, "per-pixel-baseline", "semantic"),
    ],
)
def test_default_task(fuse, stuff, model_type, expected) -> None:
    model = ColorModel(model_type, stuff)
    assert Segmenter(model, processor(label_ids_to_fuse=fuse)).task == expected
    assert Segmenter(model, processor(label_ids_to_fuse=fuse), task="semantic").task == "semantic"


def test_thresholds_arrive() -> None:
    assert [each.label for each in segmenter().predict(picture(), threshold=0.85)[0].segments] == ["ball", "sky"]
    strict = segmenter().predict(picture(), overlap_mask_area_threshold=0.95)[0]
    assert [each.label for each in strict.segments] == ["ball", "sky"]  # 240 of the box's 256 pixels are not enough
    assert len(segmenter().predict(picture(), "instance", threshold=0.85)[0].segments) == 1
    hidden = segmenter().predict(picture(), "instance", overlap_mask_area_threshold=0.95)[0]
    assert [each.label for each in hidden.segments] == ["ball"]
    faint = np.where(np.arange(56)[:, None] < 18, picture(), picture() * 0.55).astype(np.uint8)
    areas = [segmenter().predict(faint, "instance", mask_threshold=t)[0].segments[0].area for t in (0.5, 0.95)]
    assert areas == [400, 200]
    assert segmenter().predict(picture(), protocol="paper")[0].segments[0].label == "ball"
    assert segmenter().predict(picture(), threshold=None)[0].to_dict() == segmenter().predict(picture())[0].to_dict()


def test_only_pictures_of_one_size_share_a_batch_and_order_is_kept() -> None:
    wide, tall = picture(32, 64), np.rot90(picture(32, 64)).copy()
    images = [wide, tall, wide, wide, tall, picture(64, 64), wide]
    machine = segmenter()
    results = machine.predict(images, batch_size=3)
    assert [result.image_size for result in results] == [image.shape[:2] for image in images]
    assert sorted(machine.model.batches) == [(1, 3, 32, 64), (1, 3, 64, 64), (2, 3, 64, 32), (3, 3, 32, 64)]
    for image, result in zip(images, results, strict=True):
        assert result.image is image
        assert (result.segmentation == segmenter().predict(image)[0].segmentation).all()


def test_padding_inside_one_padded_size_is_cropped() -> None:
    """40 x 56 and 64 x 64 both become 64 x 64: they share a batch and come back unstretched."""
    machine = segmenter()
    small, large = machine.predict([picture(40, 56), picture(64, 64)])
    assert machine.model.batches == [(2, 3, 64, 64)]
    assert small.segments[0].bbox == large.segments[0].bbox == (8, 4, 20, 20)


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_batches_equal_single_pictures(tiny: MaskFormerForInstanceSegmentation, task: str) -> None:
    shapes = [(60, 90), (60, 90), (90, 60), (61, 90), (60, 90)]
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    machine = Segmenter(tiny, MaskFormerImageProcessor(size=64, max_size=128))
    options = {} if task == "semantic" else {"threshold": 0.2}
    together = machine.predict(images, task, batch_size=4, **options)
    for image, result in zip(images, together, strict=True):
        alone = machine.predict(image, task, **options)[0]
        assert (alone.segmentation == result.segmentation).mean() >= 0.9999
        assert [(each.label_id, each.id) for each in alone.segments] == [
            (each.label_id, each.id) for each in result.segments
        ]
        assert np.allclose([each.score for each in alone.segments], [each.score for each in result.segments], atol=1e-5)
    assert any(len(np.unique(result.segmentation)) > 1 for result in together)


def test_logits_of_batches_equal_single_pictures(tiny: MaskFormerForInstanceSegmentation) -> None:
    inputs = MaskFormerImageProcessor(size=64, max_size=128)([picture(60, 90)] * 3, return_tensors="pt")["pixel_values"]
    inputs = inputs * torch.tensor([1, 0.5, -1]).view(3, 1, 1, 1)
    with torch.no_grad():
        together = tiny(inputs)
        alone = [tiny(each[None]) for each in inputs]
    for name in ("class_queries_logits", "masks_queries_logits"):
        single = torch.cat([getattr(each, name) for each in alone])
        assert torch.allclose(getattr(together, name), single, rtol=1e-5, atol=1e-5 * float(single.abs().max()))


def test_stream_reads_no_further_than_it_must() -> None:
    read: list[int] = []

    def endless() -> Iterator[np.ndarray]:
        for number in itertools.count():
            read.append(number)
            yield picture()

    results = segmenter().stream(endless(), batch_size=1)
    assert read == []
    next(results)
    next(results)
    assert read == [0, 1]
    read.clear()
    results = segmenter().stream(endless(), batch_size=2)
    next(results)
    assert len(read) == 2


def test_an_odd_picture_does_not_hold_up_the_others() -> None:
    read: list[int] = []

    def pictures() -> Iterator[np.ndarray]:
        for number in range(100):
            read.append(number)
            yield picture(64, 96) if number == 3 else picture()

    machine = segmenter()
    lead = [len(read) - place for place, _ in enumerate(machine.stream(pictures(), batch_size=2))]
    assert max(lead) <= 8
    assert len(lead) == 100
    assert machine.model.batches.count((1, 3, 64, 96)) == 1


def test_every_form_of_picture(tmp_path) -> None:
    array = picture()
    pillow = Image.fromarray(array)
    pillow.save(tmp_path / "one.png")
    content = io.BytesIO()
    pillow.save(content, "PNG")
    planes = torch.from_numpy(array).permute(2, 0, 1)
    forms = [array, pillow, planes, tmp_path / "one.png", str(tmp_path / "one.png"), content.getvalue()]
    expected = segmenter().predict(array)[0].segmentation
    for result in segmenter().predict(forms) + [segmenter().predict(form)[0] for form in forms]:
        assert (result.segmentation == expected).all()
    assert len(segmenter().predict(np.stack([array, array]))) == 2
    assert len(segmenter().predict(iter([array]))) == 1
    assert segmenter().predict([]) == []


def test_sizes_are_those_of_the_upright_picture(tmp_path) -> None:
    pillow = Image.fromarray(picture())
    exif = pillow.getexif()
    exif[274] = 6  # turned by a quarter
    pillow.save(tmp_path / "turned.png", exif=exif)
    (result,) = segmenter().predict(tmp_path / "turned.png")
    assert result.image_size == (56, 40)
    assert result.overlay(legend=False).size == (40, 56)


def test_errors_are_sentences(tmp_path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"image 1 .*broken\.png"):
        segmenter().predict([picture(), tmp_path / "broken.png"])
    with pytest.raises(ValueError, match=r"panoptik.*semantic, instance, panoptic"):
        segmenter().predict(picture(), "panoptik")  # pyright: ignore
    with pytest.raises(ValueError, match="threshold has no meaning for task 'semantic'"):
        segmenter().stream([], "semantic", threshold=0.3)
    with pytest.raises(ValueError, match="label_ids_to_fuse has no meaning for task 'instance'"):
        segmenter().predict([], "instance", label_ids_to_fuse={1})
    for name in ("threshold", "mask_threshold", "overlap_mask_area_threshold"):
        for share in (-0.1, 1.1, float("nan")):
            with pytest.raises(ValueError, match=f"^{name} is {share}, expected a share from 0 to 1"):
                segmenter().predict([], **{name: share})  # pyright: ignore
    with pytest.raises(TypeError, match="treshold"):
        segmenter().predict([], treshold=0.3)  # pyright: ignore
    with pytest.raises(ValueError, match="batch_size is 0"):
        segmenter().predict([], batch_size=0)
    with pytest.raises(ValueError, match="images is a dict"):
        segmenter().predict({"image": 1})
    with pytest.raises(ValueError, match="images is a int"):
        segmenter().predict(3)
    for device in ("nonsense", "cuda" if not torch.cuda.is_available() else "cuda:99"):
        with pytest.raises(ValueError, match=f"device '{device}'"):
            segmenter(device=device)
    with pytest.raises(ValueError, match=r"per-pixel baseline.*semantic"):
        Segmenter(ColorModel("per-pixel-baseline"), processor(), task="instance")
    with pytest.raises(ValueError, match="returned no logits"):
        Segmenter(ColorModel("per-pixel-baseline"), processor()).predict(picture())


def test_non_finite_outputs_are_not_passed_on() -> None:
    machine = segmenter()
    machine.model.scale.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"masks_queries_logits.*non-finite"):
        machine.predict(picture())


def test_per_pixel_baseline_gives_the_argmax() -> None:
    torch.manual_seed(0)
    model = PerPixelBaseline(tiny_config(PerPixelBaselineConfig))
    machine = Segmenter(model, MaskFormerImageProcessor(size=64, max_size=128))
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    (result,) = machine.predict(image)
    inputs = machine.image_processor(image, return_tensors="pt")
    with torch.no_grad():
        logits = model(inputs["pixel_values"]).logits
    resized = F.interpolate(logits, size=(60, 90), mode="bilinear")[0]
    assert (result.segmentation == resized.argmax(0).numpy()).mean() > 0.9999
    best = logits.softmax(1).amax((2, 3))[0]
    assert [each.score for each in result.segments] == pytest.approx(
        [float(best[s.id]) for s in result.segments], abs=1e-5
    )
    with pytest.raises(ValueError, match="per-pixel baseline"):
        machine.predict(image, "panoptic")


def test_bfloat16_runs_and_agrees(tiny: MaskFormerForInstanceSegmentation) -> None:
    import copy

    half = Segmenter(copy.deepcopy(tiny), MaskFormerImageProcessor(size=64, max_size=128), dtype=torch.bfloat16)
    assert next(half.model.parameters()).dtype == torch.bfloat16
    (result,) = half.predict(picture(60, 90), "semantic")
    (exact,) = Segmenter(tiny, half.image_processor).predict(picture(60, 90), "semantic")
    assert (result.segmentation == exact.segmentation).mean() > 0.8


def test_training_goes_on_after_predicting(tiny: MaskFormerForInstanceSegmentation) -> None:
    """Nothing made in inference mode may stay behind in the network."""
    tiny.train()
    Segmenter(tiny, MaskFormerImageProcessor(size=64, max_size=128)).predict(picture(60, 90))
    assert not tiny.training
    inputs = torch.rand(1, 3, 64, 96)
    tiny(inputs).masks_queries_logits.square().mean().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in tiny.parameters())
    tiny.zero_grad()


def test_from_pretrained(tiny: MaskFormerForInstanceSegmentation, tmp_path) -> None:
    tiny.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        Segmenter.from_pretrained(tmp_path)
    kept = MaskFormerImageProcessor(size=64, max_size=128, label_ids_to_fuse=[2])
    kept.save_pretrained(tmp_path)
    machine = Segmenter.from_pretrained(str(tmp_path), device="cpu")
    assert (machine.task, machine.stuff_ids, machine.device) == ("panoptic", {2}, torch.device("cpu"))
    assert machine.labels == LABELS
    expected = Segmenter(tiny, kept).predict(picture(), "semantic")[0].segmentation
    assert (machine.predict(picture(), "semantic")[0].segmentation == expected).all()
    assert Segmenter.from_pretrained(tmp_path, task="instance").task == "instance"
    with pytest.raises(ValueError, match="nowhere"):
        Segmenter.from_pretrained(tmp_path / "nowhere")


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # of pycocotools
def test_run_lengths_are_coco(tmp_path, capsys) -> None:
    mask = pytest.importorskip("pycocotools.mask")
    from pycocotools.coco import COCO

    results = {task: segmenter().predict(picture(), task)[0] for task in ("semantic", "panoptic", "instance")}
    for result in results.values():
        for segment in result.segments:
            packed = segment.rle(compressed=True)
            assert packed == {
                key: value.decode() if isinstance(value, bytes) else value
                for key, value in mask.frPyObjects(segment.rle(), *result.image_size).items()
            }
            assert (mask.decode(packed).astype(bool) == segment.mask).all()
            assert int(mask.area(packed)) == segment.area
            assert tuple(mask.toBbox(packed).astype(int)) == segment.bbox
    images = [{"id": 7, "height": 40, "width": 56}]
    truth = {"images": images, "annotations": [], "categories": [{"id": 10, "name": "a"}, {"id": 20, "name": "b"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    coco = COCO(str(tmp_path / "truth.json"))
    loaded = coco.loadRes(results["instance"].to_coco(7, {0: 10, 1: 20}, compressed=True))
    assert [each["category_id"] for each in loaded.loadAnns(loaded.getAnnIds())] == [10, 20]
    corner = torch.zeros(40, 56).bool()
    corner[5:25, 3:6] = corner[5:9, 3:40] = True
    segments = segments_of_runs([encode_run_lengths(corner)], [{"label_id": 0, "score": 0.5}], {0: "ball"}, ())
    bent = replace(results["instance"], segments=segments)
    loaded = coco.loadRes(bent.to_coco(7, {0: 10}, compressed=True))
    (entry,) = loaded.loadAnns(loaded.getAnnIds())
    assert entry["area"] == int(corner.sum())  # by which sizes are told apart; the box has four times as much
    assert tuple(entry["bbox"]) == (3, 5, 37, 20)
    capsys.readouterr()
    with pytest.raises(ValueError, match="label id 1"):
        results["instance"].to_coco(7, {0: 10})


def test_instances_touching_every_edge_have_right_boxes() -> None:
    """A run of ones that goes on in the next column is the case where the box must reach both edges."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 4:12] = (255, 0, 0)
    image[0:8, 16:] = (0, 255, 0)
    image[24:, 16:] = (0, 255, 0)
    ball, box = segmenter().predict(image, "instance")[0].segments
    assert (ball.bbox, ball.area) == ((4, 0, 8, 32), 256)
    assert (box.bbox, box.area) == ((16, 0, 16, 32), 256)
    assert box.mask.sum() == 256
    steps = np.zeros((32, 32, 3), np.uint8)
    steps[24:, 16] = steps[:8, 17] = (255, 0, 0)  # one run, from the foot of a column to the head of the next
    (ball,) = segmenter().predict(steps, "instance")[0].segments
    assert (ball.bbox, ball.area) == ((16, 0, 2, 32), 16)


def test_panoptic_format() -> None:
    (result,) = segmenter().predict(picture())
    png, annotation = result.to_panoptic(139, {0: 1, 1: 2, 2: 200})
    assert (rgb_to_id(np.asarray(png)) == result.segmentation).all()
    assert (annotation["image_id"], annotation["file_name"]) == (139, "139.png")
    assert [entry["category_id"] for entry in annotation["segments_info"]] == [1, 2, 200]
    assert annotation["segments_info"][0] == {
        "id": 1, "category_id": 1, "area": 400, "bbox": [8, 4, 20, 20], "iscrowd": 0,
    }  # fmt: skip
    quality = PanopticQuality([{"id": i, "name": name, "isthing": i < 2} for i, name in LABELS.items()])
    quality.update(result.segmentation, result.segments, result.segmentation, result.to_panoptic(1)[1]["segments_info"])
    assert quality.result().all.pq == 100
    with pytest.raises(ValueError, match="semantic result has no panoptic form"):
        segmenter().predict(picture(), "semantic")[0].to_panoptic(1)


def test_json() -> None:
    (result,) = segmenter().predict(picture())
    content = json.loads(result.to_json())
    assert (content["task"], content["size"]) == ("panoptic", [40, 56])
    assert content["segments"][0] == {
        "id": 1, "label": "ball", "label_id": 0, "score": pytest.approx(0.9, abs=1e-5), "area": 400,
        "bbox": [8, 4, 20, 20], "is_thing": True,
    }  # fmt: skip
    runs = json.loads(result.to_json(rle=True))["segments"][0]["segmentation"]
    assert runs["size"] == [40, 56]
    assert sum(runs["counts"]) == 40 * 56
    assert sum(runs["counts"][1::2]) == 400


def test_saved_files(tmp_path) -> None:
    for task, expected in (("semantic", "L"), ("panoptic", "RGB"), ("instance", "I;16")):
        (result,) = segmenter().predict(picture(), task)
        paths = result.save(tmp_path / "new", task)
        assert [path.name for path in paths] == [f"{task}.overlay.png", f"{task}.{task}.png", f"{task}.json"]
        with Image.open(paths[1]) as stored:
            assert stored.mode == expected
            values = np.asarray(stored)
        if task == "panoptic":
            values = rgb_to_id(values)
        assert (np.where(values == 65535, -1, values.astype(int)) == result.segmentation).all()
        segments = json.loads(paths[2].read_text())["segments"]
        assert ("segmentation" in segments[0]) == (task == "instance")
    assert len(list((tmp_path / "new").iterdir())) == 9


def test_a_failed_write_leaves_nothing_behind(tmp_path) -> None:
    (result,) = segmenter().predict(picture())
    result.save(tmp_path, "a")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    without = Segmentation(
        "panoptic", np.zeros_like(result.segmentation), [], result.image_size, LABELS, b"not a picture any more"
    )
    with pytest.raises(ValueError, match="cannot be read"):
        without.save(tmp_path, "a")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_many_classes_need_16_bits() -> None:
    labels = {number: str(number) for number in range(300)}
    png = Segmentation("semantic", np.full((2, 2), 299, np.int32), [], (2, 2), labels).to_png()
    assert png.mode == "I;16"
    assert (np.asarray(png) == 299).all()


def test_overlay_draws_on_the_picture_it_was_given(tmp_path) -> None:
    (result,) = segmenter().predict(picture())
    assert (np.asarray(result.overlay(alpha=0, legend=False))[10, 12] == (255, 0, 0)).all()
    other = np.full((40, 56, 3), 200, np.uint8)
    assert (np.asarray(result.overlay(other, alpha=0, legend=False))[10, 12] == 200).all()
    floats = segmenter().predict(255 * torch.rand(3, 32, 32), "semantic")
    assert floats[0].overlay(legend=False).size == (32, 32)
    with pytest.raises(ValueError, match="pass image="):
        Segmentation("semantic", result.segmentation, [], (40, 56), LABELS).overlay()
