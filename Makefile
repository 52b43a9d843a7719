# One environment for everything, made on first use. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
# One exact version, so that both commands give the same on every machine (README, "Installing").
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin
# Two processes of one thread each: two of more threads would wait for each other.
PYTEST = env OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
INSTALLED = $(VENV)/.installed

.PHONY: help demo test test-all test-floor lint clean

help:
	@echo "make demo      erase 'circle' from the embedded model and write a report"
	@echo "make test      install, lint, type-check and test"
	@echo "make test-all  the same with the long tests; they need a Chromium on the PATH"
	@echo "make test-floor  the tests with every dependency at its lower bound, torch among them"
	@echo "make lint      ruff and mypy only"

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		erase.py --concept circle --pretrained_model_name_or_path demo

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST)

test-all: lint
	$(PYTEST) -m "not gpu"

test-floor: BIN = .venv-floor/bin
test-floor:
	$(PYTHON) -m venv .venv-floor
	$(PYTHON) scripts/floor_requirements.py > .venv-floor/floor.txt
	.venv-floor/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-floor/floor.txt pytest pytest-xdist scikit-image
	.venv-floor/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(PYTEST) -m "not slow and not gpu and not gradio"

clean:
	rm -rf $(VENV) .venv-floor .mypy_cache .pytest_cache .ruff_cache build dist
