"""timm's networks as trunks of ours, with a sentence for every way in which one cannot be had."""

import difflib
from typing import Any

import timm
from torch import nn

from posereid.errors import InputError


def require_backbone(section: str, backbone: str) -> None:
    """Raise InputError, naming the recipe's ``section``, when timm has no such network."""
    if not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=3)
        raise InputError(
            f"{section}.backbone: timm has no model {backbone!r}; "
            + (f"did you mean {', '.join(near)}?" if near else "choose a name from timm.list_models().")
        )


def create_backbone(section: str, backbone: str, *, pretrained: bool, **options: Any) -> nn.Module:
    """Timm's network with ``options`` of its own.

    Raises InputError, naming the recipe's ``section``, when timm has no such network, or when its ImageNet weights
    are asked for and cannot be had: training from scratch is a choice that the recipe makes, never a fallback.
    """
    require_backbone(section, backbone)
    configuration = timm.models.get_pretrained_cfg(backbone)
    if pretrained and not (configuration and configuration.has_weights):
        raise InputError(
            f"{section}.pretrained: timm has no ImageNet weights for {backbone!r}; "
            f"set {section}.pretrained to false to train it from scratch, or choose another backbone."
        )
    try:
        return timm.create_model(backbone, pretrained=pretrained, **options)
    except Exception as error:
        if not pretrained:
            raise
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{section}.pretrained: the ImageNet weights of {backbone!r} could not be fetched ({reason}); connect to "
            f"the network once so that they are cached, or set {section}.pretrained to false to train from scratch."
        ) from error
