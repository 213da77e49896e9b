from collections.abc import Callable

import pytest
import torch

from posereid.config import Recipe
from posereid.discriminator import PatchDiscriminator, appearance_discriminator
from posereid.embedder import Embedder
from posereid.generator.generator import PoseTransferGenerator
from posereid.training.checkpoint import new_embedder, new_generator


@pytest.fixture(scope="session")
def embedder(tiny_recipe: Callable[..., Recipe]) -> Embedder:
    torch.manual_seed(0)
    return new_embedder(tiny_recipe(), identities=4).eval()


@pytest.fixture(scope="session")
def generator(tiny_recipe: Callable[..., Recipe]) -> PoseTransferGenerator:
    torch.manual_seed(1)
    return new_generator(tiny_recipe()).eval()


@pytest.fixture(scope="session")
def discriminator() -> PatchDiscriminator:
    torch.manual_seed(2)
    return appearance_discriminator(4, 2).eval()
