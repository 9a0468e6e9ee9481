"""Normalise measured volumes, gather their statistics and draw them: python 0_preprocessing.py [--data ekra]

Reads <data>/job.json and <data>/spi_measurement/spi_*.json (see boards.py); writes, into <data>/: pcb_info.pt,
test_pcbs.pt, df_info.csv, and the pictures vol.pdf, norm_vol.pdf, norm_all_vol.pdf, norm_norm_vol.pdf, auto.png,
group.png.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import ArgumentParser, say, script
from crrn.boards import add_data_options, cycle_of
from crrn.demo_boards import ensure_boards
from crrn.pictures import draw_preprocessing
from crrn.preprocess import preprocess


@script
def main(argv: list[str] | None = None) -> None:
    """Preprocess one data set."""
    parser = ArgumentParser(
        description="Preprocess the boards of a data set for training and testing.",
        example="python crrn/0_preprocessing.py --data my_boards --cycle 20",
    )
    add_data_options(parser)
    add = parser.add_argument_group("test sequences").add_argument
    add("--seed", type=int, default=0, help="of the drawn test sequences")
    options = parser.parse_args(argv)
    cycle = cycle_of(options.data, options.cycle)
    folder = ensure_boards(options.data)
    boards = preprocess(folder, cycle, options.seed)
    draw_preprocessing(folder, boards, cycle)
    say(f"pictures: vol.pdf, norm_vol.pdf, norm_all_vol.pdf, norm_norm_vol.pdf, auto.png and group.png in {folder}")


if __name__ == "__main__":
    sys.exit(main())
