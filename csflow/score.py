"""Score images without labels: python score.py --images FOLDER --modelname dummy_test

Writes to --output (default results/<modelname>/<folder's name>): scores.csv with one row per image (score, threshold,
verdict, error), and per image the anomaly map (maps/, float32 TIFF), its overlay (overlays/, JPEG) and the binary mask
of defective pixels (masks/, PNG; only with a threshold), under the image's relative path.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from common.images import image_files, read_image
from common.runtime import UserError, pick_device, say, script
from common.scoring import Scored, score_folder
from csflow.config import build_parser, from_options
from csflow.evaluate import NO_THRESHOLD, thresholds_of, upsample
from csflow.model import load_extractor, load_model
from csflow.utils import ComputedFeatures, require_same_weights, run_flow


@script(memory="smaller images, or --cpu")
def main(argv: list[str] | None = None) -> int:
    """Score every image of a folder; exit status 1 where some could not be read."""
    parser = build_parser(
        "Score a folder of images without labels with a saved model.",
        "python csflow/score.py --modelname bottle --images my_new_images",
    )
    add = parser.add_argument_group("what to score").add_argument
    add("--images", type=Path, required=True, help="folder of images, or one image")
    add("--output", type=Path, help="folder for the results; unset: results/<modelname>/<folder's name>")
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
    threshold = thresholds_of(about.get("calibration"), config)
    if threshold is None:
        say(NO_THRESHOLD)
    names = [path.relative_to(root).as_posix() for path in paths]

    def score(numbers: Sequence[int]) -> list[Scored | UserError]:
        found: list[Scored | UserError] = []
        for number in numbers:
            try:
                image = np.asarray(read_image(paths[number]))
                scored = run_flow(model, features, [number], config, device)
            except UserError as error:
                found.append(error)
                continue
            found.append((float(scored[config.score][0]), image, upsample(scored["map"][0], image.shape[:2])))
        return found

    output = output or config.result_dir / images.resolve().name
    about_run = {"trained_on": about.get("data"), "extractor": about["extractor"], "score": config.score}
    return score_folder(
        images, output, config.model_file, names, score, 1, about_run, threshold, f"score_{config.score}",
        config.hide_tqdm_bar,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
