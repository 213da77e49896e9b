import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posereid.config import Recipe, write_recipe

# interruptions.py is run as a program too, and imported under the same name.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """What forks training processes; started when the first test needs it."""
    from interruptions import Trainers

    server = Trainers(tmp_path_factory.mktemp("trainers"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def eight_steps(world: Path, tiny_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of a recipe under which each kind of training takes eight steps and saves the third, sixth and eighth."""
    often = {"log_every": 1, "checkpoint_every": 3}
    recipe = tiny_recipe(
        data={"root": str(world)},
        joint={"epochs": 4, "pairs_per_epoch": 8, "batch_size": 4, "sample_every": 100, **often},
        reid={"epochs": 4, "quartets_per_epoch": 4, "quartets_per_batch": 2, **often},
        pose_estimator={"backbone": "test_resnet", "width": 4, "epochs": 2, "batch_size": 6, **often},
    )
    path = tmp_path_factory.mktemp("recipes") / "eight-steps.yaml"
    path.write_text(write_recipe(recipe))
    return path
