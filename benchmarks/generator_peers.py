"""Other projects' pose-transfer generators, taken from clones on disk; nothing of them is copied or edited.

Most of them share PATN's layout: a top-level package ``models`` whose ``networks.define_G`` composes the generator
from options. Their ``__init__`` files and training classes import what a network does not need (viewers, old
torchvision, downloads), so empty packages stand in for those, and the names are given back after each load: every
clone has a ``models`` of its own.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

JOINTS = 18


@dataclass(frozen=True)
class Peer:
    """A project, the folder of its clone that holds its networks, and what its Market-1501 training sets.

    ``settings`` are those of ``source``, a file of the clone, or its options' defaults where that file is silent.
    """

    title: str
    folder: str
    source: str
    settings: dict[str, Any]
    note: str = ""


_PATN_SETTINGS = {"ngf": 64, "norm": "batch", "use_dropout": True, "init_type": "normal", "n_downsampling": 2}

PEERS = {
    "patn": Peer("PATN", ".", "scripts/train_star.sh", {"which_model_netG": "PATN", **_PATN_SETTINGS}, "9 blocks"),
    "xinggan": Peer("XingGAN", ".", "train_market.sh", {"which_model_netG": "Xing", **_PATN_SETTINGS}, "9 blocks"),
    "bigraphgan": Peer(
        "BiGraphGAN",
        "market_1501",
        "market_1501/train_market.sh",
        {"which_model_netG": "Graph", **_PATN_SETTINGS},
        "9 blocks",
    ),
    "selectiongan": Peer(
        "SelectionGAN",
        "person_transfer",
        "person_transfer/train_market.sh",
        {"which_model_netG": "PATN", **_PATN_SETTINGS},
        "its two stages in a row, 9 blocks in the first; its own training judges the first stage's image as well",
    ),
    "aps": Peer(
        "APS (PoseStylizer)",
        ".",
        "train_market.sh",
        {"which_model_netG": "APS", **_PATN_SETTINGS, "n_downsampling": 4},
        "4 blocks; options dataset market",
    ),
    "pngan": Peer(
        "PN-GAN",
        "script/GAN",
        "script/GAN/config.py",
        {"ngf": 64, "num_resblock": 9},
        "9 blocks; takes the target pose alone, as a picture, for which three heat maps stand in; "
        "its own training has crops of 256×128",
    ),
}

DISCRIMINATOR_SETTINGS = {
    "ndf": 64,
    "which_model_netD": "resnet",
    "n_layers_D": 3,
    "norm": "batch",
    # Its sigmoid and binary cross-entropy are one function here, in the loss.
    "use_sigmoid": False,
    "init_type": "normal",
    "use_dropout": True,
    "n_downsampling": 2,
}

Draw = Callable[[nn.ModuleList, Tensor, Tensor, Tensor], Tensor]


class PeerGenerator(nn.Module):
    """A peer's networks behind our generator's call: (I_c, P_c, P_t) to I_g."""

    def __init__(self, networks: list[nn.Module], draw: Draw) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.draw = draw

    def forward(self, source: Tensor, source_pose: Tensor, target_pose: Tensor) -> Tensor:
        return self.draw(self.networks, source, source_pose, target_pose)


class PeerDiscriminator(nn.Module):
    """A peer's discriminator behind our discriminators' call: (condition, image) to logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, condition: Tensor, image: Tensor) -> Tensor:
        return self.network(torch.cat([image, condition], dim=1))


def peer_generator(peer: str, clone: Path) -> PeerGenerator:
    """The peer's generator with fresh weights, as it trains on Market-1501."""
    folder, settings = clone / PEERS[peer].folder, PEERS[peer].settings
    _stay_on_the_processor()
    if peer == "pngan":
        # Imported at its top for its other networks and pictures, and not always installed.
        with _import_from(folder, empty=("cv2", "matplotlib", "matplotlib.pyplot", "torchvision")):
            network = import_module("network").Res_Generator(settings["ngf"], settings["num_resblock"])
        return PeerGenerator([network], _from_target_picture)
    with _import_from(folder, empty=("models",)):
        define = import_module("models.networks").define_G
        if peer == "aps":
            options = SimpleNamespace(dataset="market")
            return PeerGenerator([define([3, JOINTS, JOINTS], 3, opt=options, **settings)], _from_three)
        channels = [3, 2 * JOINTS]
        if peer == "selectiongan":
            stages = [define(channels, 3, **settings | {"which_model_netG": which}) for which in _STAGES]
            return PeerGenerator(stages, _in_two_stages)
        return PeerGenerator([define(channels, 3, **settings)], _from_pair)


def discriminators_of(patn: Path) -> dict[str, PeerDiscriminator]:
    """PATN's two ResNet discriminators by the names of ours: with the source image, with the target pose."""
    with _import_from(patn / PEERS["patn"].folder, empty=("models",)):
        define = import_module("models.networks").define_D
        return {
            name: PeerDiscriminator(define(3 + condition, **DISCRIMINATOR_SETTINGS))
            for name, condition in (("appearance_discriminator", 3), ("pose_discriminator", JOINTS))
        }


_STAGES = ("PATN", "SelectionGAN")


def _from_pair(networks: nn.ModuleList, source: Tensor, source_pose: Tensor, target_pose: Tensor) -> Tensor:
    return networks[0]([source, torch.cat([source_pose, target_pose], dim=1)])


def _from_three(networks: nn.ModuleList, source: Tensor, source_pose: Tensor, target_pose: Tensor) -> Tensor:
    return networks[0]([source, source_pose, target_pose])


def _in_two_stages(networks: nn.ModuleList, source: Tensor, source_pose: Tensor, target_pose: Tensor) -> Tensor:
    image, features = networks[0]([source, torch.cat([source_pose, target_pose], dim=1)])
    return networks[1](torch.cat([source, source_pose, target_pose, image, features], dim=1))[0]


def _from_target_picture(networks: nn.ModuleList, source: Tensor, source_pose: Tensor, target_pose: Tensor) -> Tensor:
    return networks[0](source, target_pose[:, :3])


def _stay_on_the_processor() -> None:
    """APS asks for CUDA while it is built and at every call, whatever its options say."""
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign, assignment]


@contextmanager
def _import_from(folder: Path, empty: tuple[str, ...]) -> Iterator[None]:
    """Modules of ``folder`` can be imported, with empty modules in place of ``empty``; afterwards all is as before."""
    before = dict(sys.modules)
    for name in empty:
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if name in empty or Path(file).is_relative_to(folder):
                del sys.modules[name]
        sys.modules.update({name: before[name] for name in empty if name in before})
