"""What the page leaves on the disk: files that gradio takes as they are, and removes."""

import gradio as gr

from maskformer.serving.page import _show
from maskformer.serving.predictor import Options


def test_results_are_gradios_to_remove(predictor, scenes, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    [result] = predictor.predict([(scenes[0], Options(task="panoptic"))])
    given = [button.value["path"] for button in _show(result, predictor, str(tmp_path))[2:]]
    shown = gr.DownloadButton()
    assert [shown.move_resource_to_block_cache(path) for path in given] == given
    assert sorted(map(str, tmp_path.rglob("panoptic-*"))) == sorted(given)
    assert shown.temp_files == set(given)  # what `delete_cache` looks at
