# make demo      train with and without acceleration; options: make demo ARGS="--data FILE.csv"
# make test      the test suite; ARGS=--thorough more of it, as in CI
# make fallback  the iteration without the compiled library; tests/ops run both ways anyway
# make check     linters and type checks
# make faults    10,000 short trainings with faults from outside, at random
# make docs      the documents as a site that opens from disk: build/site/index.html
# make compat    real frameworks and optimizers of other packages, in an environment of its own
# make lab       the kernels under AddressSanitizer and UBSan, those of CUDA emulated on the host
# make races     the CUDA kernels on the host, a thread for a thread, under ThreadSanitizer
# make cuda      the CUDA kernels compiled; registers, stack and loads under way within their limits
# make gpu       everything that needs a GPU, in two calls: PART=check and PART=measure
# make wheel     build a wheel and test it; TORCHES="2.11.0 2.12.0 2.13.0" in an environment of each, too

PYTHON ?= python3
BIN := .venv/bin
# Only what is imported is compiled to bytecode, and that once, whatever the environment says: without
# bytecode each process takes twice as long to import torch.
unexport PYTHONDONTWRITEBYTECODE
PIP := pip install --quiet --disable-pip-version-check --no-compile
# A process for each core; torch's own threads would only stand in each other's way.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadgroup
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu*')
# What `make` alone says.
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

.PHONY: help demo test fallback faults check docs compat lab races cuda gpu wheel clean

demo: .venv/ready
	$(BIN)/python -m aadl_ext demo $(ARGS)

test: .venv/tests
	$(PYTEST) $(ARGS)

FALLBACK := trajectories newton nonfinite settled state faults fuzz
fallback: .venv/tests
	AADL_EXT_NATIVE=0 $(PYTEST) $(FALLBACK:%=tests/test_%.py) $(ARGS)

# Of each of eight methods; each training meets several of 18 kinds.
faults: .venv/tests
	$(PYTEST) -q tests/test_faults.py --fuzz 1250 $(ARGS)

check: .venv/tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples/gallery/*.py

# Made from the sources, without torch and without the package.
docs: build/docs/ready
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --quiet --strict
	@echo "build/site/index.html"

build/docs/ready: requirements-docs.txt
	$(PYTHON) -m venv build/docs
	build/docs/bin/$(PIP) -r requirements-docs.txt
	touch $@

# The library is compiled already. Packages one by one, so that what cannot be installed is left out
# alone. A torchvision that cannot be loaded, since it is built for CUDA, stops all that import it: then
# it is put where only tests/compat/frameworks finds it.
COMPAT := build/compat/bin
compat: .venv/ready
	$(PYTHON) -m venv build/compat
	$(COMPAT)/$(PIP) -r requirements-test.txt
	AADL_EXT_NATIVE=0 $(COMPAT)/$(PIP) --no-build-isolation --no-deps -e .
	grep -v '^#' requirements-compat.txt | while read -r package; do \
		$(COMPAT)/$(PIP) -c requirements.txt "$$package" || echo "not installed: $$package"; done
	$(COMPAT)/python -c "import torchvision" 2>/dev/null || { \
		$(COMPAT)/pip uninstall --quiet --yes torchvision; \
		$(COMPAT)/$(PIP) --no-deps --upgrade --target build/compat/torchvision \
			$$(grep ^torchvision requirements-compat.txt); }
	AADL_COMPAT_RESULTS=research/results/compat.json OMP_NUM_THREADS=1 \
		$(COMPAT)/python -m pytest --numprocesses auto --dist loadgroup --thorough tests/compat/frameworks $(ARGS)
	$(COMPAT)/python -m pytest -q --thorough tests/test_gallery.py tests/test_documents.py -k "runs"
	$(BIN)/python tests/compat/frameworks/table.py

# No build isolation: the tools of the build are pinned with the rest, nothing is fetched twice.
.venv/ready: requirements.txt pyproject.toml setup.py $(SOURCES)
	$(PYTHON) -m venv .venv
	$(BIN)/$(PIP) -r requirements.txt
	@echo "compiling the kernels: a minute or two of a core, more with CUDA"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install --no-build-isolation --no-deps -e .
	touch $@

.venv/tests: requirements-test.txt .venv/ready
	$(BIN)/$(PIP) -r requirements-test.txt
	touch $@

# Only GCC tells where its sanitizer libraries lie, which Python has to load first.
SANITIZERS = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)
SANITIZED = LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0
lab: .venv/tests
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/asan -G Ninja -DAADL_SANITIZE=address \
		-DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python"
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/asan
	$(SANITIZED) AADL_LAB_PATH=build/asan $(PYTEST) -q tests/csrc $(ARGS)
	$(SANITIZED) AADL_EXT_NATIVE=build/asan/libaadl_kernels_for_torch.so $(PYTEST) -q tests/ops $(ARGS)
	$(SANITIZED) AADL_EXT_NATIVE=build/asan/libaadl_cuda_on_host_for_torch.so \
		$(PYTEST) -q tests/ops $(ARGS)

RACES = $(shell $(CXX) -print-file-name=libtsan.so) $(shell $(CXX) -print-file-name=libstdc++.so)
races: .venv/tests
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/tsan -G Ninja -DAADL_SANITIZE=thread \
		-DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python"
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/tsan
	LD_PRELOAD="$(RACES)" AADL_LAB_PATH=build/tsan $(BIN)/python -m pytest -q \
		tests/csrc/test_cuda_on_host.py tests/csrc/test_cuda_on_host_races.py

# AADL_EXT_CUDA_ARCHS="90" checks for one architecture only; objects of other targets are used again.
cuda: export AADL_EXT_CUDA_ARCHS ?= 75 80 86 90 100 120
# Where there is nvcc, a kernel that it does not compile is an error.
cuda: export AADL_EXT_CUDA ?= $(if $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc)),1,auto)
cuda: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python setup.py -q build_ext --inplace
	$(BIN)/python .ci/cuda_limits.py build/temp*/cuda_*
	$(BIN)/python .ci/loads_in_flight.py build/temp*/cuda_*

gpu:
	$(PYTHON) .ci/gpu.py $(PART)

# One wheel for all versions of Python and torch: torch's own libraries are left out, the rest decides
# the tag. The tests run from a copy, so that the package is imported from the wheel, not from here.
# Other versions of torch come from the index that pip is set up with, each into its own environment.
TORCHES ?=
wheel: .venv/ready
	rm -rf dist build/wheel build/raw
	PATH="$(CURDIR)/$(BIN):$$PATH" AADL_EXT_NATIVE=1 \
		$(BIN)/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/raw .
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/$(PIP) -r requirements-wheel.txt
	PATH="$(CURDIR)/build/wheel/bin:$$PATH" build/wheel/bin/auditwheel repair \
		--exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/raw/*.whl
	ls dist
	build/wheel/bin/$(PIP) -r requirements-test.txt dist/*.whl
	cp -r tests pyproject.toml build/wheel/
	cd build/wheel && AADL_EXT_NATIVE=1 OMP_NUM_THREADS=1 bin/pytest -q --numprocesses auto --dist loadgroup $(ARGS) \
		tests/native/test_loading.py tests/test_command_line.py tests/test_settled.py \
		tests/test_demo.py::test_processes_train_as_this_one_would \
		tests/test_paper_problems.py::test_the_command_trains_and_reports
	for torch in $(TORCHES); do \
		$(PYTHON) -m venv build/wheel-$$torch && \
		cat requirements.txt requirements-test.txt | grep -Ev '^(torch|setuptools)=|^-r' \
			> build/wheel-$$torch/others.txt && \
		build/wheel-$$torch/bin/$(PIP) -r build/wheel-$$torch/others.txt "torch==$$torch" dist/*.whl && \
		(cd build/wheel && AADL_EXT_NATIVE=1 OMP_NUM_THREADS=1 ../wheel-$$torch/bin/python -m pytest -q \
		tests/test_settled.py tests/ops -k "not cuda") || exit 1; done

clean:
	rm -rf .venv build dist *.egg-info aadl_ext/_native*
