"""The card of a trained model, and its way to a hub that is not there."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError

from maskformer.training import model_card
from maskformer.training.model_card import build_card, check_hub
from maskformer.training.trainer import train

from ..data.publishers import write_label_maps
from .tiny import settings

ME = {"name": "me", "orgs": [{"name": "us"}], "auth": {"accessToken": {"role": "write"}}}


class FakeApi:
    """Stands for HfApi; what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []
        self.who: dict | Exception = ME
        self.failure: Exception | None = None

    def whoami(self):
        if isinstance(self.who, Exception):
            raise self.who
        return self.who

    def create_repo(self, name, private, exist_ok):
        self.asked.append(("create", name, private, exist_ok))
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, repo_id, folder_path, commit_message):
        if self.failure:
            raise self.failure
        self.asked.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir()), commit_message))


@pytest.fixture
def api(monkeypatch) -> FakeApi:
    fake = FakeApi()
    monkeypatch.setattr(model_card, "HfApi", lambda: fake)
    return fake


def test_the_final_model_is_uploaded_with_its_card(tmp_path, api, checkpoint, capsys) -> None:
    write_label_maps(tmp_path / "pictures", 2)
    config = settings(
        tmp_path / "run",
        checkpoint,
        data=str(tmp_path / "pictures"),
        steps=1,
        eval_every=1,
        pictures=0,
        push_to_hub="us/shapes",
        private=True,
    )
    outcome = train(config)
    assert api.asked == [
        ("create", "us/shapes", True, True),
        (
            "upload",
            "us/shapes",
            ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"],
            "Trained by the recipe small",
        ),
    ]
    assert "uploaded to" in capsys.readouterr().err
    text = (tmp_path / "run" / "model" / "README.md").read_text()
    for part in (
        "`pictures` (label-maps, split train): 2 images",
        "14 classes: sky, mountain",
        "1 of 1 steps of the recipe `small`, from the checkpoint `tiny`",
        "- `learning_rate`: 0.001",
        'Segmenter.from_pretrained("us/shapes")',
        f"| mIoU | {outcome.metrics['mIoU']:.2f} |",
        "transformers",
    ):
        assert part in text
    assert str(tmp_path) not in text  # nor anything else of this machine
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("maskformer", "image-segmentation", "shapes")
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results["mIoU"] == pytest.approx(outcome.metrics["mIoU"])
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "README.md", "exec")
    assert len(code.strip().splitlines()) <= 6


def test_an_upload_that_fails_loses_nothing_and_can_be_repeated(tmp_path, api, checkpoint) -> None:
    config = settings(tmp_path / "run", checkpoint, steps=1, push_to_hub="shapes")
    api.failure = ConnectionError("no route\nto the hub")
    with pytest.raises(ValueError, match=r"whole in .*run/model, but could not be uploaded to shapes \(no route\)"):
        train(config)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    api.failure = None
    assert train(config, resume=True).model == tmp_path / "run" / "model"
    assert [asked[0] for asked in api.asked] == ["create", "create", "upload"]


@pytest.mark.parametrize(
    ("name", "who", "sentence"),
    [
        ("me/shapes", LocalTokenNotFoundError("Token is required"), "Token is required.*log in with `hf auth login`"),
        ("me/shapes", ConnectionError("no network"), r"\(no network\)"),
        ("you/shapes", ME, "you are me, expected me or us before the /"),
        ("me/shapes", {"name": "me", "auth": {"accessToken": {"role": "read"}}}, "may only read"),
        ("a/b/c", ME, "Repo id must be"),
    ],
)
def test_what_cannot_work_is_said_before_the_training(tmp_path, api, checkpoint, name, who, sentence) -> None:
    api.who = who
    with pytest.raises(ValueError, match=sentence) as caught:
        train(settings(tmp_path / "run", checkpoint, push_to_hub=name))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert api.asked == []


def test_the_hub_is_not_asked_without_need(tmp_path, api, checkpoint) -> None:
    api.who = ConnectionError("no network")
    check_hub(settings(tmp_path / "run", checkpoint))


def test_a_card_without_evaluation_and_of_a_hub_checkpoint(tmp_path) -> None:
    from maskformer.data.scene_set import SceneDataset

    config = settings(tmp_path, "facebook/maskformer-swin-tiny-ade")
    card = build_card(config, SceneDataset(3), {}, 8)
    assert "Not evaluated." in card.text
    assert card.data.base_model == "facebook/maskformer-swin-tiny-ade"
    assert card.data.eval_results is None
    some = build_card(config, SceneDataset(3), {"PQ": 12.5, "best": None, "AP": math.pi}, 8)
    assert "| PQ | 12.50 |\n| AP | 3.14 |" in some.text
