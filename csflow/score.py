"""Score images without labels: python score.py --images FOLDER --modelname dummy_test

Writes to --output (default results/<modelname>/<folder's name>): scores.csv with one row per image (score, threshold,
verdict, error), and per image the anomaly map (maps/, float32 TIFF), its overlay (overlays/, JPEG) and the binary mask
of defective pixels (masks/, PNG; only with a threshold), under the image's relative path.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from common.figures import overlay
from common.files import atomic_write, write_csv, write_json
from common.images import image_files, read_image
from common.runtime import UserError, pick_device, progress, say, script
from csflow.config import build_parser, from_options
from csflow.evaluate import thresholds, upsample, verdict_of
from csflow.model import load_extractor, load_model
from csflow.utils import ComputedFeatures, run_flow


@script
def main(argv: list[str] | None = None) -> int:
    """Score every image of a folder; exit status 1 where some could not be read."""
    parser = build_parser("Score a folder of images without labels with a saved model.")
    parser.add_argument("--images", type=Path, required=True, help="folder of images, or one image")
    parser.add_argument("--output", type=Path, help="folder for the results")
    options = vars(parser.parse_args(argv))
    images, output = options.pop("images"), options.pop("output", None)
    config = from_options(options)
    device = pick_device(config.device, config.gpu_ids, config.cpu)
    paths = image_files(images)
    root = images if images.is_dir() else images.parent
    model, config, about = load_model(config.model_file, config, device)
    config.extractor = about["extractor"]
    extractor, _ = load_extractor(config, device)
    threshold = thresholds(about.get("calibration"), config)
    if threshold is None:
        say("no verdicts: the model has no threshold (no held-out good images, or its training was interrupted)")
    output = output or config.result_dir / images.resolve().name
    heat = 2 * threshold["pixel"] if threshold else None  # the hottest colour, the same for all images

    rows, failed = [], 0
    for path in progress(paths, "scoring", hide=config.hide_tqdm_bar):
        name = path.relative_to(root).as_posix()
        try:
            image = np.asarray(read_image(path))
            scored = run_flow(model, ComputedFeatures([path], config, extractor, device), [0], config, device)
        except UserError as error:
            failed += 1
            rows.append([name, "", "", "", str(error)])
            continue
        score, anomaly_map = float(scored[config.score][0]), upsample(scored["map"][0], image.shape[:2])
        rows.append([name, score, threshold["image"] if threshold else "", verdict_of(score, threshold), ""])
        heated = overlay(image, anomaly_map, 0, heat or max(float(anomaly_map.max()), 1e-6))
        _save(Image.fromarray(anomaly_map), output / "maps" / f"{name}.tiff", "TIFF")
        _save(Image.fromarray(heated), output / "overlays" / f"{name}.jpg", "JPEG")
        if threshold:
            defective = (anomaly_map > threshold["pixel"]).astype(np.uint8) * 255
            _save(Image.fromarray(defective), output / "masks" / f"{name}.png", "PNG")
    write_csv(output / "scores.csv", ["path", f"score_{config.score}", "threshold", "verdict", "error"], rows)
    about_run = {"model": str(config.model_file), "trained_on": about.get("data"), "extractor": about["extractor"]}
    write_json(output / "results.json", {**about_run, "score": config.score, "threshold": threshold, "failed": failed})
    found = sum(row[3] == "defective" for row in rows)
    say(f"{len(rows) - failed} images scored" + (f", {found} defective" if threshold else "") + f": {output}")
    if failed:
        print(f"{failed} images could not be read; scores.csv says why", file=sys.stderr)
    return 1 if failed else 0


def _save(image: Image.Image, path: Path, format: str) -> None:
    with atomic_write(path) as file:
        image.save(file, format)


if __name__ == "__main__":
    sys.exit(main())
