import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """What forks training processes."""
    from interruptions import Trainers

    server = Trainers(tmp_path_factory.mktemp("trainers"))
    yield server
    server.close()
