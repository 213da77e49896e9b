"""Where people stand in their crops: statistics of keypoint files, in proportion to a crop of 128×64.

    python benchmarks/pose_statistics.py --height 128 KEYPOINTS.csv [KEYPOINTS.csv ...]

Prints for each file one JSON object: the 5th, 25th, 50th, 75th and 95th percentile of the gap between the shoulders, of
their middle column, of the rows of neck, hips and lower ankle; the share of crops with both shoulders and both hips,
over which gap, middle and hips are taken; and the share of crops that lack each joint.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from posereid.pose.files import read_keypoints
from posereid.pose.joints import JOINT_NAMES, joint_index

PERCENTILES = (5, 25, 50, 75, 95)


def statistics(path: Path, height: int) -> dict[str, object]:
    table = read_keypoints(path)
    xy = np.stack([joints.xy for joints in table.values()]) * (128 / height)
    present = np.stack([joints.present for joints in table.values()])
    right, left = joint_index("right_shoulder"), joint_index("left_shoulder")
    hips = [joint_index("right_hip"), joint_index("left_hip")]
    ankles = [joint_index("right_ankle"), joint_index("left_ankle")]
    neck = joint_index("neck")
    torso = present[:, [right, left, *hips]].all(axis=1)
    values = {
        "shoulder_gap": np.abs(xy[torso, right, 0] - xy[torso, left, 0]),
        "shoulder_middle": (xy[torso, right, 0] + xy[torso, left, 0]) / 2,
        "neck_row": xy[present[:, neck], neck, 1],
        "hip_row": xy[torso][:, hips, 1].mean(axis=1),
        "lower_ankle_row": xy[present[:, ankles].all(axis=1)][:, ankles, 1].max(axis=1),
    }
    return {
        "file": path.name,
        "crops": len(table),
        "with_torso": round(float(torso.mean()), 3),
        **{name: np.percentile(found, PERCENTILES).round(1).tolist() for name, found in values.items()},
        "absent": dict(zip(JOINT_NAMES, (1 - present.mean(axis=0)).round(3).tolist(), strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--height", type=int, required=True, help="height of the crops in pixels")
    arguments = parser.parse_args()
    for path in arguments.files:
        print(json.dumps(statistics(path, arguments.height)))


if __name__ == "__main__":
    main()
