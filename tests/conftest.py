import os

import pytest
from hypothesis import settings

# The same examples on every run, and no verdicts about speed on a busy machine.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, help="fuzzed trainings of each kind [5, thorough 10]")
    parser.addoption("--thorough", action="store_true", help="also what other tests show, too")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("thorough"):
        os.environ["AADL_THOROUGH"] = "1"  # for processes that tests start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("thorough") and "AADL_THOROUGH" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="needs --thorough"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fuzz" in metafunc.fixturenames:
        usual = 10 if "AADL_THOROUGH" in os.environ else 5
        metafunc.parametrize("fuzz", range(metafunc.config.getoption("fuzz") or usual))
