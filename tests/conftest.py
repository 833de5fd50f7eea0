import pytest
from hypothesis import settings

# The same examples on every run, and no verdicts about speed on a busy machine.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=10, help="fuzzed trainings of each kind [10]")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fuzz" in metafunc.fixturenames:
        metafunc.parametrize("fuzz", range(metafunc.config.getoption("fuzz")))
