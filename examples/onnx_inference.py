"""Pictures in, labels out, without torch: python onnx_inference.py MODEL.onnx PICTURE...

MODEL.onnx comes from `maskformer export --model M --task panoptic --out MODEL.onnx`; what to do to a picture and what
the classes are called stands in the file. Needs onnxruntime, numpy and pillow.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def main(model: str, *pictures: str) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    labels = json.loads(texts["config.json"])["id2label"]
    settings = json.loads(texts["preprocessor_config.json"])
    edges, divisor = settings["size"], max(1, settings["size_divisor"])
    for name in pictures:
        picture = Image.open(name).convert("RGB")
        scale = min(edges["shortest_edge"] / min(picture.size), edges["longest_edge"] / max(picture.size))
        width, height = (-(-round(side * scale) // divisor) * divisor for side in picture.size)
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
        pixels = (pixels - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
        segmentation, classes, scores = session.run(None, {"pixel_values": pixels.transpose(2, 0, 1)[None]})
        for number, (label, score) in enumerate(zip(classes[0], scores[0], strict=True), 1):
            if label >= 0:
                share = (segmentation == number).mean()
                print(f"{name}: {labels[str(label)]}, score {score:.2f}, {share:.1%} of the picture")


if __name__ == "__main__":
    main(*sys.argv[1:])
