import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(
    1
)  # the tests' tensors are small, and threads of several processes on few cores wait for each other


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--runslow"):
            item.add_marker(pytest.mark.skip(reason="slow: runs with --runslow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported by now; a measurement of memory collects all else first, which took 0.3 s each time


@pytest.fixture(autouse=True, scope="session")
def float32_on_any_processor() -> Iterator[None]:
    """Results of tests, and of what several of them share, do not depend on what the processor can do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightly_distill.models.recipe.computes_bf16", lambda device: False)
        yield


@pytest.fixture(autouse=True)
def what_the_command_line_logs_is_its_own() -> Iterator[None]:
    """A test does not hear what the command line in another test has switched on."""
    loggers = [logging.getLogger(name) for name in ("lightly_distill", "lightly_distill_integrations")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, where there is one."""
    folder = os.environ.get("LIGHTLY_DISTILL_DATA")
    if not folder:
        pytest.skip("needs real images: set LIGHTLY_DISTILL_DATA to a folder with cifar10/ and tinyimagenet100-32/")
    return Path(folder)
