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
from common.files import atomic_write, read_json, require_writable, write_csv, write_json
from common.images import image_files, read_image
from common.runtime import UserError, pick_device, progress, say, script
from csflow.config import build_parser, from_options
from csflow.evaluate import NO_THRESHOLD, thresholds, upsample, verdict_of
from csflow.model import load_extractor, load_model
from csflow.utils import ComputedFeatures, require_same_weights, run_flow


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
    features = ComputedFeatures(paths, config, extractor, device)
    require_same_weights(features, about, config.model_file)
    threshold = thresholds(about.get("calibration"), config)
    if threshold is None:
        say(NO_THRESHOLD)
    output = output or config.result_dir / images.resolve().name
    about_run = {
        "images": str(images.resolve()),
        "model": str(config.model_file),
        "trained_on": about.get("data"),
        "extractor": about["extractor"],
        "score": config.score,
        "threshold": threshold,
    }
    _require_own(output, images, about_run["images"])

    rows, failed = [], 0
    try:
        for number, path in enumerate(progress(paths, "scoring", hide=config.hide_tqdm_bar)):
            name = path.relative_to(root).as_posix()
            try:
                image = np.asarray(read_image(path))
                scored = run_flow(model, features, [number], config, device)
            except UserError as error:
                failed += 1
                rows.append([name, "", "", "", str(error)])
                continue
            score, anomaly_map = float(scored[config.score][0]), upsample(scored["map"][0], image.shape[:2])
            limit = threshold["image"] if threshold else ""
            rows.append([name, score, limit, verdict_of(score, threshold), ""])
            try:
                _save_pictures(output, name, image, anomaly_map, threshold["pixel"] if threshold else None)
            except UserError as error:
                failed += 1
                rows[-1][-1] = str(error)
    finally:  # whatever ends this, the scores of the images so far stay
        write_csv(output / "scores.csv", ["path", f"score_{config.score}", "threshold", "verdict", "error"], rows)
    write_json(output / "results.json", {**about_run, "failed": failed})
    found = sum(row[3] == "defective" for row in rows)
    scored_images = sum(row[1] != "" for row in rows)
    say(f"{scored_images} images scored" + (f", {found} defective" if threshold else "") + f": {output}")
    if failed:
        print(f"{failed} images could not be read, or their maps not written; scores.csv says why", file=sys.stderr)
    return 1 if failed else 0


def _require_own(output: Path, images: Path, source: str) -> None:
    """UserError where `output` would mix with the images themselves or with the scores of other ones."""
    if images.is_dir() and output.resolve().is_relative_to(images.resolve()):
        raise UserError(f"--output {output} lies in --images {images}: its pictures would be scored the next time")
    if (output / "results.json").exists():
        before = read_json(output / "results.json")
        if not isinstance(before, dict) or before.get("images") != source:
            raise UserError(f"{output} holds results of other images than {source}: choose another --output")
    require_writable(output)


def _save_pictures(output: Path, name: str, image: np.ndarray, anomaly_map: np.ndarray, limit: float | None) -> None:
    """Map, overlay, and with a threshold the mask of defective pixels."""
    hottest = 2 * limit if limit else max(float(anomaly_map.max()), 1e-6)  # the same for all images where possible
    _save(Image.fromarray(anomaly_map), output / "maps" / f"{name}.tiff", "TIFF")
    _save(Image.fromarray(overlay(image, anomaly_map, 0, hottest)), output / "overlays" / f"{name}.jpg", "JPEG")
    if limit is not None:
        defective = (anomaly_map > limit).astype(np.uint8) * 255
        _save(Image.fromarray(defective), output / "masks" / f"{name}.png", "PNG")


def _save(image: Image.Image, path: Path, format: str) -> None:
    with atomic_write(path) as file:
        image.save(file, format)


if __name__ == "__main__":
    sys.exit(main())
