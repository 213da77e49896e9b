"""Whether a generated picture still shows the same person: its nearest real crop, by an embedder's word."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from posereid.data.batches import CropImages, to_float
from posereid.data.crops import JUNK
from posereid.embedder import Embedder
from posereid.evaluation.image_quality import grey_background
from posereid.progress import progress_bar


class RealCrops:
    """The real crops among which the person of a generated picture is looked for.

    All crops of ``images`` but junk, embedded once; distractors stay as negatives. They are embedded a second time
    with a grey background; ``masks_of`` gives the foregrounds (B, H, W) bool of crops by position, and a crop whose
    foreground is empty, being unknown, is not among the second ones.
    """

    def __init__(
        self,
        embedder: Embedder,
        images: CropImages,
        masks_of: Callable[[Sequence[int]], Bool[Tensor, "b h w"]],
        *,
        batch_size: int = 64,
        progress: bool = False,
    ) -> None:
        self.embedder = embedder
        self._identities = np.array([crop.identity for crop in images.crops], np.int64)
        self._cameras = np.array([crop.camera for crop in images.crops], np.int64)
        whole, alone, has_mask = [], [], []
        with progress_bar(len(images), "embedding real crops", "crop", show=progress) as bar:
            for start in range(0, len(images), batch_size):
                positions = range(start, min(start + batch_size, len(images)))
                pictures = to_float(torch.stack([images.image(position) for position in positions]))
                masks = masks_of(positions)
                whole.append(self.embed(pictures))
                alone.append(self.embed(grey_background(pictures, masks)))
                has_mask.append(masks.flatten(1).any(1).numpy())
                bar.update(len(positions))
        self._whole, self._alone = np.concatenate(whole), np.concatenate(alone)
        self._is_real = self._identities != JUNK
        self._has_mask = self._is_real & np.concatenate(has_mask)

    @torch.no_grad()
    def embed(self, pictures: Float[Tensor, "b 3 h w"]) -> npt.NDArray[np.float32]:
        """Unit embeddings (B, 128) of pictures in [-1, 1], by the embedder in evaluation mode, where it lies."""
        was_training = self.embedder.training
        self.embedder.eval()
        device = next(self.embedder.parameters()).device
        embedded = self.embedder.embed(pictures.to(device)).float().cpu().numpy()
        self.embedder.train(was_training)
        return embedded

    def preserved(
        self,
        pictures: Float[Tensor, "b 3 h w"],
        pairs: Sequence[tuple[int, int]],
        masks: Bool[Tensor, "b h w"] | None = None,
    ) -> npt.NDArray[np.float64]:
        """1 where the crop nearest to a picture by cosine shows the pair's person, else 0. Shape (B,).

        ``pairs`` are the positions of each picture's source and target. Left out are both of these crops and, as
        in a search, the crops of the same person by the source's camera; NaN where no crop of the person remains. A
        stranger's crop that is as near as the person's counts as nearer. With ``masks`` pictures and crops are
        compared without their backgrounds; NaN where a mask is empty.
        """
        if masks is None:
            similarities, kept = self.embed(pictures) @ self._whole.T, self._is_real
            asked = np.ones(len(pairs), bool)
        else:
            similarities, kept = self.embed(grey_background(pictures, masks)) @ self._alone.T, self._has_mask
            asked = masks.flatten(1).any(1).numpy()
        answers = np.full(len(pairs), np.nan)
        for number, (source, target) in enumerate(pairs):
            own = self._identities == self._identities[source]
            found = kept & own & (self._cameras != self._cameras[source])
            found[[source, target]] = False
            if asked[number] and found.any():
                strangers = similarities[number, kept & ~own]
                answers[number] = similarities[number, found].max() > strangers.max(initial=-np.inf)
        return answers
