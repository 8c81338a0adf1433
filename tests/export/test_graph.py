"""The graph's post-processing, which works on all queries at once, against the one that works segment by segment."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from maskformer.checkpoints.exported import graph_segments
from maskformer.export.graph import PanopticGraph, SemanticGraph
from maskformer.processing.postprocessing import panoptic_segmentation, semantic_segmentation

CLASSES, QUERIES = 5, 12


class Recorded(nn.Module):
    """A network that has its answer already."""

    def __init__(self, **outputs: Tensor) -> None:
        super().__init__()
        kind = "maskformer" if len(outputs) == 2 else "per-pixel-baseline"
        self.config = SimpleNamespace(model_type=kind, num_labels=CLASSES)
        self.weight = nn.Parameter(torch.zeros(1))
        self.outputs = SimpleNamespace(**outputs)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return self.outputs


def recorded(seed: int, size: tuple[int, int], spread: float = 3.0) -> tuple[Recorded, Tensor, dict]:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (-(-length // 4) for length in size)
    coarse = 6 * torch.randn(3, QUERIES, 3, 4, generator=generator)
    network = Recorded(
        class_queries_logits=spread * torch.randn(3, QUERIES, CLASSES + 1, generator=generator),
        masks_queries_logits=nn.functional.interpolate(coarse, size=(rows, columns), mode="bilinear"),
    )
    where = {"target_sizes": [size] * 3, "pixel_mask": torch.ones(3, *size)}
    return network, torch.zeros(3, 3, *size), where


@pytest.mark.parametrize("size", [(64, 96), (61, 94), (33, 35)])
@pytest.mark.parametrize("fused", [frozenset(), frozenset({0, 2}), frozenset(range(CLASSES))])
@pytest.mark.parametrize("overlap", [0.3, 0.8])
def test_panoptic_maps(size: tuple[int, int], fused: frozenset[int], overlap: float) -> None:
    num_segments = 0
    for seed in range(10):
        network, pixel_values, where = recorded(seed, size)
        graph = PanopticGraph(network, fused)
        graph.overlap_mask_area_threshold = overlap
        segmentation, labels, scores = graph(pixel_values)
        expected = panoptic_segmentation(
            network.outputs, label_ids_to_fuse=fused, overlap_mask_area_threshold=overlap, **where
        )
        for index, result in enumerate(expected):
            infos, rest = result["segments_info"], QUERIES - len(result["segments_info"])
            # all but ties, which may go either way
            assert (segmentation[index] == result["segmentation"]).float().mean() > 0.999
            assert labels[index].tolist() == [info["label_id"] for info in infos] + [-1] * rest
            assert scores[index].tolist() == pytest.approx([info["score"] for info in infos] + [-1] * rest, abs=1e-6)
            num_segments += len(infos)
    assert num_segments > (30 if overlap < 0.5 else 5)


def test_panoptic_maps_without_any_segment() -> None:
    network, pixel_values, _ = recorded(0, (64, 96), spread=0.01)
    segmentation, labels, scores = PanopticGraph(network)(pixel_values)
    assert not segmentation.any()
    assert (labels == -1).all()
    assert (scores == -1).all()


@pytest.mark.parametrize("size", [(64, 96), (61, 94)])
def test_semantic_maps(size: tuple[int, int]) -> None:
    network, pixel_values, where = recorded(1, size)
    segmentation, scores = SemanticGraph(network)(pixel_values)
    expected = torch.stack(semantic_segmentation(network.outputs, **where))
    assert (segmentation == expected).float().mean() > 0.999
    assert torch.equal(scores, network.outputs.class_queries_logits.softmax(-1)[..., :-1].amax(1))


def test_semantic_maps_of_a_per_pixel_baseline() -> None:
    network = Recorded(logits=torch.randn(2, CLASSES, 16, 24))
    segmentation, scores = SemanticGraph(network)(torch.zeros(2, 3, 62, 93))
    where = {"target_sizes": [(62, 93)] * 2, "pixel_mask": torch.ones(2, 62, 93)}
    expected = torch.stack(semantic_segmentation(network.outputs, **where))
    assert (segmentation == expected).float().mean() > 0.999
    assert scores.shape == (2, CLASSES)


def test_the_padding_of_a_map_is_cropped_before_it_gets_the_size_of_its_picture() -> None:
    segmentation, pixel_mask = torch.full((1, 6, 8), 1), torch.zeros(1, 6, 8)
    segmentation[0, :3, :4], pixel_mask[0, :3, :4] = torch.tensor([0, 0, 0, 2]), 1
    outputs = SimpleNamespace(segmentation=segmentation, class_scores=torch.tensor([[0.9, 0.8, 0.7]]))
    ((found, _),) = graph_segments(outputs, [(6, 8)], pixel_mask)
    assert found.tolist() == [[0, 0, 0, 0, 0, 0, 2, 2]] * 6
