# One command sets up what it needs and does it. Needs python3 (3.10 or newer) with venv, and make.
#
# What is installed is pinned, with hashes, in requirements/locked.txt. LOCK=requirements/lowest.txt takes the lowest
# direct versions that pyproject.toml allows; LOCK= takes the newest of the day. Give each a VENV of its own.
PYTHON ?= python3
VENV ?= .venv
LOCK ?= requirements/locked.txt
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test check bench bench-full format mutation reference lock clean

demo: $(READY)  ## a tool-calling agent on the embedded Postgres, killed half-way and resumed by a second process
	$(BIN)/python examples/demo.py

test: $(READY)  ## every test
	$(BIN)/python -m pytest

check: $(READY)  ## lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(READY)  ## the benchmarks, shortened (minutes); ratios against the peers in one run
	$(BIN)/python -m benchmarks

bench-full: $(READY)  ## what the README quotes
	$(BIN)/python -m benchmarks --full

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

MODULE ?= haive_persistence/documents/filters.py
TESTS ?= tests/store/test_filters.py
mutation: $(READY)  ## which changes of MODULE do TESTS not notice?
	git diff --quiet  # it changes the files, and changes them back
	$(BIN)/python -m pip install --quiet cosmic-ray
	printf '[cosmic-ray]\nmodule-path = "%s"\ntimeout = 120.0\nexcluded-modules = []\ntest-command = "%s"\n[cosmic-ray.distributor]\nname = "local"\n' \
		'$(MODULE)' '$(BIN)/python -m pytest -q -x -p no:cacheprovider $(TESTS)' > $(VENV)/mutation.toml
	rm -f $(VENV)/mutation.sqlite
	$(BIN)/cosmic-ray init $(VENV)/mutation.toml $(VENV)/mutation.sqlite
	$(BIN)/cosmic-ray --verbosity ERROR baseline $(VENV)/mutation.toml
	$(BIN)/cosmic-ray exec $(VENV)/mutation.toml $(VENV)/mutation.sqlite
	$(BIN)/cr-report --show-diff --surviving-only $(VENV)/mutation.sqlite

reference: $(READY)  ## write docs/reference.md from the code
	$(BIN)/python -m tools.make_reference

lock: $(READY)  ## pin again: the newest versions into locked.txt, the lowest direct ones into lowest.txt
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) --extra dev --upgrade --output-file requirements/locked.txt
	$(COMPILE) --extra test --upgrade --resolution lowest-direct --output-file requirements/lowest.txt

COMPILE = $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.10 --generate-hashes \
	--no-emit-index-url --no-annotate --custom-compile-command "make lock"

$(READY): pyproject.toml $(LOCK)
	$(PYTHON) -m venv --clear $(VENV)
ifeq ($(LOCK),)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
else
	$(BIN)/python -m pip install --quiet --require-hashes --requirement $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
endif
	touch $(READY)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
