import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posereid.embedder import Embedder, build_embedder
from posereid.errors import InputError


class Mean(nn.Module):
    """A backbone that shows what it was given: the channel means of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return images.mean((2, 3))


def small(identities: int = 5, **changes) -> Embedder:
    torch.manual_seed(0)
    settings = {"pretrained": False, "input_size": (64, 32)} | changes
    return build_embedder(identities, "test_resnet", **settings)


def test_embedding_and_logits_have_their_sizes() -> None:
    out = small(7)(torch.randn(3, 3, 64, 32))
    assert out["embedding"].shape == (3, 128)
    assert out["logits"].shape == (3, 7)


@torch.no_grad()
def test_embeddings_for_search_have_unit_length_and_the_trained_direction() -> None:
    embedder = small().eval()
    images = torch.randn(4, 3, 64, 32)
    found = embedder.embed(images)
    torch.testing.assert_close(found.square().sum(1), torch.ones(4))
    torch.testing.assert_close(F.cosine_similarity(found, embedder(images)["embedding"]), torch.ones(4))


def test_training_embeddings_are_not_normalised() -> None:
    lengths = small()(torch.randn(4, 3, 64, 32))["embedding"].norm(dim=1)
    assert (lengths - 1).abs().max() > 0.05


def test_the_classifier_is_section_4s() -> None:
    embedder = small(9, dropout=0.5)
    first, norm, dropout, relu, last = embedder.classifier
    assert isinstance(norm, nn.BatchNorm1d)
    assert isinstance(relu, nn.ReLU)
    assert dropout.p == 0.5
    assert first.in_features == embedder.embedding.in_features
    assert (first.out_features, last.in_features, last.out_features) == (128, 128, 9)
    assert embedder.embedding.out_features == 128


def test_the_embedding_layer_and_the_classifier_are_two_heads_of_one_backbone() -> None:
    embedder = small()
    embedder(torch.randn(4, 3, 64, 32))["logits"].sum().backward()
    assert embedder.embedding.weight.grad is None
    embedder.zero_grad()
    embedder(torch.randn(4, 3, 64, 32))["embedding"].square().sum().backward()
    assert embedder.embedding.weight.grad.any()
    assert all(p.grad is None for p in embedder.classifier.parameters())


def test_dropout_acts_in_training_only() -> None:
    embedder = small(dropout=0.5)
    images = torch.randn(4, 3, 64, 32)
    with torch.no_grad():
        assert not torch.equal(embedder(images)["logits"], embedder(images)["logits"])
        embedder.eval()
        assert torch.equal(embedder(images)["logits"], embedder(images)["logits"])


@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_pixels_reach_the_backbone_normalised_like_imagenet(level: float) -> None:
    backbone = Mean()
    embedder = Embedder(backbone, 3, 4, input_size=(8, 4)).eval()
    features = embedder.feature_vector(torch.full((1, 3, 8, 4), level))
    share = (level + 1) / 2  # what a pixel is of 255
    expected = [(share - mean) / deviation for mean, deviation in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    torch.testing.assert_close(features[0], torch.tensor(expected))


def test_images_are_resized_to_the_backbones_input_with_a_gradient() -> None:
    backbone = Mean()
    embedder = Embedder(backbone, 3, 4, input_size=(16, 8)).eval()
    images = torch.randn(2, 3, 8, 4, requires_grad=True)
    embedder.feature_vector(images).sum().backward()
    assert backbone.seen.shape == (2, 3, 16, 8)
    assert (images.grad != 0).all()


def test_images_of_the_right_size_are_not_resampled() -> None:
    backbone = Mean()
    embedder = Embedder(backbone, 3, 4, input_size=(8, 4)).eval()
    images = torch.rand(1, 3, 8, 4) * 2 - 1
    embedder.feature_vector(images)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    restored = (backbone.seen * deviation.view(3, 1, 1) + mean.view(3, 1, 1)) * 2 - 1
    torch.testing.assert_close(restored, images, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["test_efficientnet", "mobilenetv3_small_050", "test_mambaout"])
def test_backbones_of_other_families_fit(backbone: str) -> None:
    embedder = build_embedder(3, backbone, pretrained=False, input_size=(64, 32)).eval()
    assert embedder.embed(torch.randn(2, 3, 64, 32)).shape == (2, 128)


@pytest.mark.parametrize("backbone", ["resnet10t", "test_efficientnet", "test_vit"])
def test_what_e_perceives_ends_in_its_embedding(backbone: str) -> None:
    torch.manual_seed(0)
    size = (160, 160) if backbone == "test_vit" else (64, 32)
    embedder = build_embedder(3, backbone, pretrained=False, input_size=size).eval()
    images = torch.rand(2, 3, *size) * 2 - 1
    with torch.no_grad():
        *stages, last = embedder.perceived(images)
        assert torch.allclose(F.normalize(last.flatten(1)), embedder.embed(images), atol=1e-5)
    assert len(stages) > 1
    assert all(maps.ndim == 4 and len(maps) == 2 for maps in stages)


def test_the_normalisation_constants_are_not_saved_with_the_weights() -> None:
    assert not [name for name in small().state_dict() if name.startswith("image_")]


# --- what a recipe can get wrong ---------------------------------------------------------------------------


def test_an_unknown_backbone_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"embedder\.backbone.*'resnet5O'.*did you mean.*resnet50"):
        build_embedder(3, "resnet5O", pretrained=False)


def test_an_unknown_backbone_like_no_other_is_refused_too() -> None:
    with pytest.raises(InputError, match=r"embedder\.backbone.*'@@@@'"):
        build_embedder(3, "@@@@", pretrained=False)


def test_weights_that_cannot_be_fetched_stop_the_run_and_name_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_, pretrained: bool, **__):
        assert pretrained
        raise OSError("Connection refused")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(InputError, match=r"embedder\.pretrained.*'resnet50'.*Connection refused.*false"):
        build_embedder(3, "resnet50", pretrained=True)


def test_a_failure_without_a_message_is_named_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_, **__):
        raise TimeoutError

    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(InputError, match="TimeoutError"):
        build_embedder(3, "resnet50", pretrained=True)


def test_a_backbone_without_imagenet_weights_is_refused_before_any_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_, **__):
        pytest.fail("a model was built")

    without = next(name for name in timm.list_models("resnet*") if not timm.models.get_pretrained_cfg(name).has_weights)
    monkeypatch.setattr(timm, "create_model", never)
    with pytest.raises(InputError, match=r"embedder\.pretrained.*no ImageNet weights"):
        build_embedder(3, without, pretrained=True)


def test_training_from_scratch_asks_for_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    create = timm.create_model

    def watched(name: str, **settings):
        asked.append(settings["pretrained"])
        return create(name, **settings)

    monkeypatch.setattr(timm, "create_model", watched)
    small()
    assert asked == [False]


def test_images_are_resized_under_mixed_precision_as_without() -> None:
    embedder = build_embedder(4, "test_resnet", pretrained=False, input_size=(96, 48), crop_size=(64, 32)).eval()
    images = torch.rand(2, 3, 64, 32) * 2 - 1
    images.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = embedder(images)["embedding"]
    mixed.float().sum().backward()
    assert images.grad is not None
    assert images.grad.any()
    torch.testing.assert_close(mixed.float(), embedder(images)["embedding"], rtol=0.05, atol=0.02)
