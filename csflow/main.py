"""Train CS-Flow and evaluate it: python main.py, with no arguments on the dummy data; --help lists every setting."""

import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.runtime import pick_device, say, script
from csflow.config import parse
from csflow.dummy_data import ensure_dummy_data
from csflow.evaluate import evaluate, load_features
from csflow.train import train
from csflow.utils import load_dataset


@script
def main(argv: list[str] | None = None) -> None:
    """Features, training, evaluation."""
    config = parse(argv, "Train CS-Flow on the good images of a class and evaluate it on the test images.")
    device = pick_device(config.device, config.gpu_ids, config.cpu)
    ensure_dummy_data(config)
    dataset = load_dataset(config)
    train_set, test_set, extractor = load_features(config, dataset, device)
    try:
        model, about = train(config, dataset, train_set, test_set, extractor, device)
    except KeyboardInterrupt:
        if config.save_model:
            command = shlex.join(["python", sys.argv[0], *(sys.argv[1:] if argv is None else argv)])
            say(f"stopped; {config.model_file} is saved. To continue: {command}")
        raise
    evaluate(config, dataset, model, test_set, about, device)


if __name__ == "__main__":
    sys.exit(main())
