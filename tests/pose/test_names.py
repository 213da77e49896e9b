import pytest

from posereid.pose.names import parse_crop_name


@pytest.mark.parametrize(
    ("name", "identity", "camera"),
    [
        ("0002_c1s1_000451_03.jpg", 2, 1),
        ("-1_c5s3_086412_11.jpg", -1, 5),
        ("0000_c6s3_094992_01.jpg.jpg", 0, 6),
        ("0002_c1s1_000451_03", 2, 1),
        ("0002_c1s1_000451_03_p2.png", 2, 1),
        ("0005_c2_f0046985.jpg", 5, 2),
        ("0005_c2_f0046985_p1.jpg", 5, 2),
    ],
)
def test_names(name: str, identity: int, camera: int) -> None:
    found = parse_crop_name(name)
    assert found is not None
    assert (found.identity, found.camera) == (identity, camera)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a.jpg",
        "02_c1s1_000451_03.jpg",
        "0000_c2_f0046985.jpg",
        "٠٠٠٢_c1s1_000451_03.jpg",
        "0002_c1s1_000451_03 copy.jpg",
    ],
)
def test_names_of_nobody(name: str) -> None:
    assert parse_crop_name(name) is None
