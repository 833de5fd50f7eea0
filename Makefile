# make demo   train with and without acceleration; options: make demo ARGS="--data FILE.csv"
# make test   the whole test suite
# make check  linters and type checks
# make wheel  build a wheel and run the tests against it in an environment of its own

PYTHON ?= python3
BIN := .venv/bin
.PHONY: demo test check wheel clean

demo: .venv/ready
	$(BIN)/python -m aadl_ext demo $(ARGS)

test: .venv/ready
	$(BIN)/python -m pytest $(ARGS)

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# No build isolation: setuptools is pinned with the rest, nothing is fetched twice.
.venv/ready: requirements.txt pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

# The tests run from a copy, so that the package is imported from the wheel, not from here.
wheel: .venv/ready
	rm -rf dist build/wheel
	$(BIN)/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/pip install --quiet --disable-pip-version-check -r requirements.txt dist/*.whl
	cp -r tests pyproject.toml build/wheel/
	cd build/wheel && bin/pytest -q $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info
