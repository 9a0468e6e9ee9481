"""Score images without labels: python score.py --images FOLDER --model-input model_checkpoints/last.ckpt

Writes to --output (default results/<folder's name>): scores.csv with one row per image (score, threshold, verdict,
error), and per image the difference map (maps/, float32 TIFF), its overlay (overlays/, JPEG) and the binary mask of
defective pixels (masks/, PNG; only with a threshold), under the image's relative path. A model of RoadImages expects
the folders intensity_files and height_files in --images.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from common.runtime import ArgumentParser, UserError, pick_device, script
from common.scoring import Scored, score_folder
from crn.inference import resized, score_batches, thresholds_of
from crn.options import HERE, SCORES, require
from crn.training.dataset import DATASETS, Images, read, unlabelled
from crn.training.utils import load_model, read_model_kind, to_bytes


@script(memory="a smaller --imsize, smaller images, or --cpu")
def main(argv: list[str] | None = None) -> int:
    """Score every image of a folder; exit status 1 where some could not be read."""
    parser = ArgumentParser(
        description="Score a folder of images without labels with a trained model.",
        example="python crn/score.py --images my_new_images --model-input ck/last.ckpt",
    )
    add = parser.add_argument_group("what to score").add_argument
    add("--images", type=Path, required=True, help="folder of images, or one image")
    add("--model-input", type=Path, required=True, help="checkpoint, such as model_checkpoints/last.ckpt")
    add("--output", type=Path, help="folder for the results; unset: results/<folder's name> in crn/")

    add = parser.add_argument_group("scores and verdicts").add_argument
    add("--score", choices=SCORES, default="inference", help="the score that counts")
    add("--fpr", type=float, default=0.05, help="share of good images that the threshold may call defective")

    add = parser.add_argument_group("network").add_argument
    add("--dataset", choices=DATASETS, help="how images are normalised; unset: as the checkpoint says")
    add("--imsize", type=int, help="side of the images for the network; unset: the training's")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    opt = parser.parse_args(argv)
    require(opt, "fpr", 0 < opt.fpr < 1, "between 0 and 1")
    require(opt, "imsize", opt.imsize is None or 1 <= opt.imsize <= 4096, "from 1 to 4096")
    device = pick_device(opt.device, cpu=opt.cpu)
    settings = read_model_kind(opt)
    kind = settings.dataset
    items = unlabelled(opt.images, kind)
    model, about = load_model(settings)
    model.to(device, memory_format=torch.channels_last)
    threshold = thresholds_of(about, settings, opt.fpr, opt.score)
    images = Images(items, kind, settings.imsize, settings.antialias, limit_gib=0)

    def score(numbers: Sequence[int]) -> list[Scored | UserError]:
        (number,) = numbers
        try:
            ((_, _, scored),) = score_batches(model, images, numbers, 1, device)
            image = to_bytes(read(items[number], kind).movedim(0, -1))  # (H, W, 3)
        except UserError as error:
            return [error]
        difference = resized(scored["difference"][0].mean(dim=0), image.shape[:2]).cpu().numpy()
        return [(float(scored[opt.score][0]), image, difference)]

    output = opt.output or HERE / "results" / opt.images.resolve().name
    names = [item.name for item in items]
    about_run = {"trained_on": about.get("data"), "score": opt.score, "imsize": settings.imsize}
    return score_folder(
        opt.images, output, opt.model_input, names, score, 1, about_run, threshold, f"score_{opt.score}"
    )


if __name__ == "__main__":
    sys.exit(main())
