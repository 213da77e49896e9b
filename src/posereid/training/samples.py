"""Contact sheets of pose pairs: source, source pose, target pose, generated, real target."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from posereid.data.batches import PosePairBatch, to_pixels
from posereid.pictures import contact_sheet
from posereid.pose.drawing import draw_skeleton
from posereid.pose.joints import Joints

HEADERS = ("source", "source pose", "target pose", "generated", "real target")


def pose_pair_sheet(
    batch: PosePairBatch, generated: Float[Tensor, "b 3 h w"], *, scale: int = 2, columns: int = 1
) -> Image.Image:
    """One sheet of the batch's pairs, ``columns`` pairs side by side, with their images I_g in [-1, 1]."""
    height, width = batch.source_images.shape[-2:]
    drawn = to_pixels(generated).cpu()

    def picture(pixels: Tensor) -> npt.NDArray[np.uint8]:
        return pixels.permute(1, 2, 0).cpu().numpy()

    def skeleton(keypoints: Tensor, present: Tensor) -> npt.NDArray[np.uint8]:
        return draw_skeleton(Joints(keypoints.cpu().numpy(), present.cpu().numpy()), height, width)

    cells = [
        [
            picture(batch.source_images[n]),
            skeleton(batch.source_keypoints[n], batch.source_present[n]),
            skeleton(batch.target_keypoints[n], batch.target_present[n]),
            picture(drawn[n]),
            picture(batch.target_images[n]),
        ]
        for n in range(len(batch))
    ]
    rows = [[cell for row in cells[start : start + columns] for cell in row] for start in range(0, len(cells), columns)]
    return contact_sheet(rows, HEADERS * columns, scale=scale)
