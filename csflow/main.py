"""Train CS-Flow and evaluate it: python main.py, with no arguments on the dummy data; --help lists every setting."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import distributed
from common.cli import command_to_continue, say, script
from common.files import locked, require_writable
from common.runtime import autocast, pick_device
from csflow.config import parse
from csflow.dummy_data import ensure_dummy_data
from csflow.evaluate import evaluate, load_features
from csflow.train import train
from csflow.utils import load_dataset


@script(memory="a smaller --batch_size, --fc_internal or --img_size, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Features, training, evaluation."""
    does = "Train CS-Flow on the good images of a class and evaluate it on the test images."
    config = parse(argv, does, "python csflow/main.py --dataset_path my_data --class_name bottle --modelname bottle")
    device = distributed.join(pick_device(config.device, config.gpu_ids, config.cpu, config.deterministic))
    autocast(device, config.precision)  # refuses what this device cannot do
    with distributed.first_alone():
        ensure_dummy_data(config)
        dataset = load_dataset(config)
        for folder in (config.model_file.parent, config.result_dir, config.score_picture_dir, config.map_picture_dir):
            require_writable(folder)
        train_set, test_set, extractor = load_features(config, dataset, device)
    with locked(config.result_dir):
        try:
            model, about = train(config, dataset, train_set, test_set, extractor, device)
        except KeyboardInterrupt:
            if config.save_model and config.model_file.exists():
                command = command_to_continue(argv, config.resume)
                say(f"stopped; what is saved is in {config.model_file}. To continue: {command}")
            raise
        evaluate(config, dataset, model, test_set, about, device)


if __name__ == "__main__":
    sys.exit(main())
