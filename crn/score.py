"""Score images without labels: python score.py --images FOLDER --model-input model_checkpoints/last.ckpt

Writes to --output (default results/<folder's name>): scores.csv with one row per image (score, threshold, verdict,
error), and per image the difference map (maps/, float32 TIFF), its overlay (overlays/, JPEG) and the binary mask of
defective pixels (masks/, PNG; only with a threshold), under the image's relative path. A model of RoadImages expects
the folders intensity_files and height_files in --images.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from common.figures import overlay
from common.files import atomic_write, read_json, require_writable, write_csv, write_json
from common.runtime import ArgumentParser, UserError, pick_device, progress, say, script
from crn.inference import NO_THRESHOLD, resized, score_batches, thresholds, verdict_of
from crn.options import HERE, SCORES, require
from crn.training.dataset import DATASETS, Images, read, unlabelled
from crn.training.utils import load_model, read_model_kind, to_bytes


@script
def main(argv: list[str] | None = None) -> int:
    """Score every image of a folder; exit status 1 where some could not be read."""
    parser = ArgumentParser(description="Score a folder of images without labels with a trained model.")
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of images, or one image")
    add("--model-input", type=Path, required=True, help="checkpoint, such as model_checkpoints/last.ckpt")
    add("--output", type=Path, help="folder for the results")
    add("--score", choices=SCORES, default="inference", help="the score that counts")
    add("--fpr", type=float, default=0.05, help="share of good images that the threshold may call defective")
    add("--dataset", choices=DATASETS, help="how images are normalised; only for checkpoints that do not tell")
    add("--imsize", type=int, help="side of the images for the network; unset: the training's")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    opt = parser.parse_args(argv)
    require(opt, "fpr", 0 < opt.fpr < 1, "between 0 and 1")
    require(opt, "imsize", opt.imsize is None or 1 <= opt.imsize <= 4096, "from 1 to 4096")
    device = pick_device(opt.device, cpu=opt.cpu)
    settings = read_model_kind(opt)
    model, about = load_model(settings)
    model.to(device)
    kind = settings.dataset
    items = unlabelled(opt.images, kind)
    threshold = thresholds(about.get("calibration"), opt.fpr, opt.score)
    if threshold is None:
        say(NO_THRESHOLD)
    output = opt.output or HERE / "results" / opt.images.resolve().name
    about_run = {
        "images": str(opt.images.resolve()),
        "model": str(opt.model_input),
        "trained_on": about.get("data"),
        "score": opt.score,
        "threshold": threshold,
    }
    _require_own(output, opt.images, about_run["images"])

    rows, failed = [], 0
    try:
        for item in progress(items, "scoring"):
            images = Images([item], kind, settings.imsize, settings.antialias, limit_gib=0)
            try:
                ((_, _, scored),) = score_batches(model, images, 1, device)
            except UserError as error:
                failed += 1
                rows.append([item.name, "", "", "", str(error)])
                continue
            score = float(scored[opt.score][0])
            limit = threshold["image"] if threshold else ""
            rows.append([item.name, score, limit, verdict_of(score, threshold), ""])
            try:
                image = read(item, kind)  # (3, H, W)
                difference = resized(scored["difference"][0].mean(dim=0), image.shape[1:]).cpu().numpy()
                pixels = to_bytes(image.movedim(0, -1))
                _save_pictures(output, item.name, pixels, difference, threshold["pixel"] if threshold else None)
            except UserError as error:
                failed += 1
                rows[-1][-1] = str(error)
    finally:  # whatever ends this, the scores of the images so far stay
        write_csv(output / "scores.csv", ["path", f"score_{opt.score}", "threshold", "verdict", "error"], rows)
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


def _save_pictures(output: Path, name: str, image: np.ndarray, difference: np.ndarray, limit: float | None) -> None:
    """Map, overlay, and with a threshold the mask of defective pixels."""
    hottest = 2 * limit if limit else max(float(difference.max()), 1e-6)  # the same for all images where possible
    _save(Image.fromarray(difference), output / "maps" / f"{name}.tiff", "TIFF")
    _save(Image.fromarray(overlay(image, difference, 0, hottest)), output / "overlays" / f"{name}.jpg", "JPEG")
    if limit is not None:
        defective = (difference > limit).astype(np.uint8) * 255
        _save(Image.fromarray(defective), output / "masks" / f"{name}.png", "PNG")


def _save(image: Image.Image, path: Path, format: str) -> None:
    with atomic_write(path) as file:
        image.save(file, format)


if __name__ == "__main__":
    sys.exit(main())
