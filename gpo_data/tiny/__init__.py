"""The tiny world: a real text-to-image model that runs offline on a laptop.

A StableDiffusion3Pipeline folder and a YOLO, both trained from nothing on rendered 64x64
pictures (render.py) by `python -m gpo_data.tiny recipes/tiny.yaml --out DIR`. It is imperfect
on purpose: right sometimes, so that GPO has something to amplify. recipes/tiny.yaml records
how it was trained and what was measured.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
PIPELINE_DIR = WEIGHTS / "sd3"  # opens with StableDiffusion3Pipeline.from_pretrained
YOLO_WEIGHTS = WEIGHTS / "yolo.pt"  # opens with ultralytics.YOLO
