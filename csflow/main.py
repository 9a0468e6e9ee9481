"""Train CS-Flow and evaluate it: python main.py, with no arguments on the dummy data; --help lists every setting."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early
from csflow.config import MODEL_SETTINGS, TRAINING_SETTINGS, parse

answer_early(__name__, parse)

from contextlib import nullcontext

import torch

from common import distributed
from common.checkpoint import Training
from common.cli import resumable, say, script
from common.files import locked, require_writable
from common.images import set_max_pixels
from common.runtime import autocast, channels_last, pick_device, seed_all
from csflow import dummy_data, report
from csflow.evaluate import evaluate
from csflow.extract_features import load_features
from csflow.model import N_FEAT, get_cs_flow_model, load_training
from csflow.train import train
from csflow.utils import load_dataset


@script(memory="a smaller --batch_size, --fc_internal or --img_size, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Data, features, training, evaluation."""
    options = parse(argv)
    set_max_pixels(options.max_pixels)
    device = distributed.join(pick_device(options.device, options.gpu_ids, options.cpu, options.deterministic))
    autocast(device, options.precision)  # refuses what this device cannot do
    with distributed.first_alone():
        dummy_data.ensure_dummy_data(options.root)
        dataset = load_dataset(options.root, options.max_value, options.img_size)
        folders = (options.result_dir, options.score_picture_dir, options.map_picture_dir)
        for folder in (options.model_file.parent, *folders):
            require_writable(folder)
        train_set, test_set = load_features(
            options.feature_dir, dataset, device, options.extraction, stored=options.pre_extracted,
            batch_size=options.batch_size, hide=options.hide_tqdm_bar,
        )  # fmt: skip
    options = options.but(extractor=train_set.extractor, max_value=dataset.max_value)  # which may have been "auto"
    if options.root == dummy_data.FOLDER and not options.given & {"epochs", "meta_epochs", "sub_epochs", "minutes"}:
        options = options.but(epochs=dummy_data.EPOCHS)
        say(f"{dummy_data.EPOCHS} epochs are enough for the dummy data (--epochs chooses)")

    path = options.model_file if options.save_model else None
    with locked(options.result_dir), resumable(path, argv, options.resume) if path else nullcontext():
        rows, held_out = dataset.split(options.calibration_share, options.seed)
        say(
            f"training on {len(rows)} good images of {options.class_name}, {len(held_out)} held out for the threshold "
            f"({options.extractor} features, {options.img_size[0]} x {options.img_size[1]}, {device})"
        )
        seed_all(options.seed)
        flow = get_cs_flow_model(N_FEAT[options.extractor], **options.flow)
        flow.to(device, memory_format=channels_last(device))
        # fused: the same update in one pass over the parameters, five times as fast on a CPU
        optimizer = torch.optim.Adam(flow.parameters(), options.lr_init, eps=1e-4, weight_decay=1e-5, fused=True)
        resumes = options.resume and path and path.exists()
        stored = load_training(path, len(rows), train_set.weights) if resumes else None
        training = Training(
            path, "csflow", options.as_dict(), dataset.fingerprint, flow, [optimizer], device, seed=options.seed,
            precision=options.precision, save_every=options.save_every, minutes=options.minutes,
            shorter=f"--epochs {3 * options.sub_epochs}", stored=stored,
            binding=MODEL_SETTINGS + TRAINING_SETTINGS, otherwise="give another --modelname",
            hide=options.hide_tqdm_bar, extractor=options.extractor, weights=train_set.weights, data=dataset.data,
            calibration=None,
        )  # fmt: skip
        training.remedy = " (--lr_init) or --clamp" + training.remedy
        train(
            training, dataset, train_set, test_set, rows, held_out, batch_size=options.batch_size,
            epochs=options.epochs, sub_epochs=options.sub_epochs, max_grad_norm=options.max_grad_norm,
            precision=options.precision, score=options.score, verbose=options.verbose,
        )  # fmt: skip
        metadata = {**vars(training), **training.extra}  # by the names under which `training` stores them
        results, scored = evaluate(options, dataset, flow.eval(), test_set, metadata)
        if options.report:
            report.write(options.result_dir / "report.html", dataset, results, scored)


if __name__ == "__main__":
    sys.exit(main())
