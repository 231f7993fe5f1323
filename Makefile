PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A machine without an NVIDIA driver gets the small CPU build of PyTorch. TORCH_INDEX= leaves the choice to pip.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)
# Further options of `swin2sr serve` and `swin2sr ray`, and of pytest.
SERVE ?=
TEST ?=
# Processes that run tests; auto: one more than processors, because some tests wait (tests/conftest.py).
WORKERS ?= auto
# What builds and runs images where there is no Docker; see docker/verify.sh.
IMAGE_TOOL ?=
# Every process that a test starts would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE
SAMPLE := build/sample.png
# Programs that build and describe releases; see .github/requirements.txt.
TOOLS := build/tools
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: dist sbom openapi pictures serve ray install test test-fast coverage prove image check format lock clean help

serve: $(VENV)/.installed $(SAMPLE) ## create .venv, install, and serve on http://127.0.0.1:8000
	@$(BIN)/swin2sr serve --sample $(SAMPLE) $(SERVE)

ray: $(VENV)/.installed-ray $(SAMPLE) ## serve on Ray with replicas that scale with the load
	@$(BIN)/swin2sr ray --sample $(SAMPLE) $(SERVE)

install: $(VENV)/.installed-dev ## install with all development dependencies

test: $(VENV)/.installed-dev ## run the tests, on WORKERS processes; TEST="-k words" chooses some
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(TEST)

test-fast: $(VENV)/.installed-dev ## run the tests that take at most some 0.3 s each and start no server
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m 'not slow' $(TEST)

coverage: $(VENV)/.installed-dev ## run the tests and measure branch coverage
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal --cov --cov-branch --cov-report term:skip-covered $(TEST)

prove: $(VENV)/.installed-dev ## run the long tests, and check that tests fail for each broken promise: two hours
	PROVE=1 $(BIN)/python -m pytest --timeout 1800 -m long --ignore tests/test_promise_proxy.py
	PROVE=1 $(BIN)/python -m pytest --timeout 1800 -m 'not long' tests/test_promise_batching.py tests/test_promise_queue.py \
	  tests/test_promise_memory.py tests/test_promise_failures.py tests/test_promise_process.py tests/chaos tests/fuzz
	PROVE=1 $(BIN)/python -m pytest --timeout 4200 -s tests/test_promise_proxy.py
	$(BIN)/python -m tests.broken.prove

image: ## build the container image and verify it
	docker/verify.sh $(IMAGE_TOOL)

check: $(VENV)/.installed-dev ## run the linter, the format check and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## apply automatic fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lock: $(TOOLS)/.installed ## update constraints.txt (all but torch), and the hashes for the image
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/pip install --quiet --no-deps $(if $(TORCH_INDEX),--retries 1 --extra-index-url $(TORCH_INDEX)) $(shell grep ^torch== constraints.txt)
	build/lock/bin/pip install --quiet --editable '.[dev,bench]'
	{ sed '/^[^#]/,$$d' constraints.txt; \
	  build/lock/bin/pip freeze --all --exclude-editable --exclude pip | sed 's/+.*//'; echo 'colorama==0.4.6'; } \
	  > build/constraints.txt
	mv build/constraints.txt constraints.txt
	$(MAKE) docker/requirements.txt PYTHON=build/lock/bin/python

docker/requirements.txt: constraints.txt pyproject.toml docker/image_requirements.py | $(TOOLS)/.installed
	$(PYTHON) docker/image_requirements.py > build/requirements.in
	grep -v ^torch== constraints.txt > build/constraints-without-torch.txt
	{ echo '# What the container image installs beside torch, with a hash for every file; `make lock` renews it.'; \
	  $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --constraint build/constraints-without-torch.txt build/requirements.in; } > build/requirements.txt
	mv build/requirements.txt $@

dist: $(TOOLS)/.installed ## build the sdist, the wheel with the kernel, and the client's wheel into dist/
	rm -rf build/lib* build/bdist* build/thin build/wheels dist
	SWIN2SR_REQUIRE_KERNEL=1 $(TOOLS)/bin/python -m build --outdir build/wheels .
	$(TOOLS)/bin/python -m build --wheel --outdir build/wheels app/thin
	mkdir -p dist
	mv build/wheels/*.tar.gz build/wheels/*-none-any.whl dist/
	if [ "$$(uname)" = Linux ]; then PATH="$(abspath $(TOOLS))/bin:$$PATH" $(TOOLS)/bin/auditwheel repair --wheel-dir dist build/wheels/*.whl; \
	  else mv build/wheels/*.whl dist/; fi

sbom: $(TOOLS)/.installed $(VENV)/.installed ## write the SBOM build/sbom.cdx.json (CycloneDX)
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file build/sbom.cdx.json \
	  $(BIN)/python

openapi: $(VENV)/.installed ## regenerate openapi.json
	@mkdir -p build
	$(BIN)/swin2sr openapi > build/openapi.json
	mv build/openapi.json openapi.json

pictures: $(VENV)/.installed-dev ## regenerate the pictures of the page and README, after a change of the page or of small-x2
	$(BIN)/python -m tests.page.paint

clean: ## remove the virtual environment, builds and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s%s\n", $$1, $$2 }' Makefile

$(SAMPLE): app/web/sample.png
	@mkdir -p $(@D)
	@cp $< $@

# PyTorch goes first and alone, so that the extra index is asked for nothing else; out of reach, pip does without it.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "Installing into $(VENV); the first time takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps $(if $(TORCH_INDEX),--retries 1 --extra-index-url $(TORCH_INDEX)) torch
	@touch $@

$(TOOLS)/.installed: .github/requirements.txt
	$(PYTHON) -m venv $(TOOLS)
	PATH="$(abspath $(TOOLS))/bin:$$PATH" $(TOOLS)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml $(wildcard setup.py model/kernels/*.[ch])
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.installed-ray: $(VENV)/.installed
	$(PIP) --editable '.[ray]'
	@touch $@
