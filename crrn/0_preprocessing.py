"""Normalise measured volumes, gather their statistics and draw them: python 0_preprocessing.py [--data ekra]

Reads <data>/job.json and <data>/spi_measurement/spi_*.json (see boards.py); writes, into <data>/: pcb_info.pt,
test_pcbs.pt, df_info.csv, and the pictures vol.pdf, norm_vol.pdf, norm_all_vol.pdf, norm_norm_vol.pdf, auto.png,
group.png.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common.cli import answer_early
from crrn.options import parse_preprocessing

answer_early(__name__, parse_preprocessing)

from common.cli import say, script
from common.files import locked
from crrn.boards import cycle_of
from crrn.demo_boards import ensure_boards
from crrn.pictures import draw_preprocessing
from crrn.preprocess import preprocess


@script
def main(argv: list[str] | None = None) -> None:
    """Preprocess one data set."""
    options = parse_preprocessing(argv)
    cycle = cycle_of(options.data, options.cycle)
    folder = ensure_boards(options.data)
    with locked(folder):
        draw_preprocessing(folder, preprocess(folder, cycle, options.seed), cycle)
    say(f"pictures: vol.pdf, norm_vol.pdf, norm_all_vol.pdf, norm_norm_vol.pdf, auto.png and group.png in {folder}")


if __name__ == "__main__":
    sys.exit(main())
