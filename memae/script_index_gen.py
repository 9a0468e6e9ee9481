"""Write the index of all clips: {Train,Test}_idx/<video>/<video>_i%03d.mat with v_name and idx, the frame numbers.

Training and testing also work without these files, with all windows of --FrameNum frames; they are the original's
format, and the way to choose other clips.
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early, note, progress, say, script
from memae.options import IndexOptions

answer_early(__name__, IndexOptions().parse)

from scipy.io import savemat

from common.files import UserError, locked
from common.images import MARK, made_by, mark_synthetic
from memae.data.video_datasets import frame_files, require_prepared, subfolders, windows


def index_part(root: Path, part: str, videos: dict[str, int], frame_num: int, stride: int) -> int:
    """Index the videos of `part` (Train or Test) and return the number of clips; short videos are named and skipped.

    videos: names, and how many frames each has. Replaces an index that is there.
    """
    total = 0
    for left in (root / f"{part}_idx").glob(".making-*"):  # by a killed run
        shutil.rmtree(left)
    for video, frames in progress(videos.items(), f"{part} index"):
        folder = root / f"{part}_idx" / video
        making = folder.parent / f".making-{video}"
        clips = windows(frames, frame_num, stride)
        if not clips:
            shutil.rmtree(folder, ignore_errors=True)
            note(f"{video} is skipped: it has {frames} frames, a clip {frame_num}")
            continue
        making.mkdir(parents=True)
        for number, idx in enumerate(clips, start=1):
            savemat(making / f"{video}_i{number:03d}.mat", {"v_name": video, "idx": [float(i) for i in idx]})
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)
        total += len(clips)
    return total


@script
def main(argv: list[str] | None = None) -> None:
    """Index both parts of a data set."""
    opt = IndexOptions().parse(argv)
    root = opt.DataRoot / opt.Dataset
    parts = [part for part in ("Train", "Test") if (root / part).is_dir()]
    if not parts:
        raise UserError(
            f"there is neither {root / 'Train'} nor {root / 'Test'}: prepare videos with script_img_prep.py"
        )
    with locked(root):
        # All is looked at before an index is replaced.
        for part in ("Train", "Test"):
            require_prepared(root / part)
        videos = {
            part: {name: len(frame_files(root / part / name)) for name in subfolders(root / part)} for part in parts
        }
        command = made_by(root) if (root / MARK).is_file() else None
        counts = {part: index_part(root, part, videos[part], opt.FrameNum, opt.Stride) for part in parts}
        if command:  # the index of generated videos is generated, too
            mark_synthetic(root, command)
    say(f"{root}: " + ", ".join(f"{count} clips in {part}_idx" for part, count in counts.items()))


if __name__ == "__main__":
    sys.exit(main())
