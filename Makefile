# All of this project's set-up goes through here; `make demo` and `make test` need nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint types format check clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: install
	$(BIN)/hashstream demo

test: install
	$(BIN)/python -m pytest -q

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The installed tree (hashstream.kernels and the like) exists only once built: mypy reads a built copy.
types: install
	rm -rf .typecheck build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target .typecheck . 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --no-deps --target .typecheck .
	cd .typecheck && MYPYPATH=. ../$(BIN)/mypy --config-file ../pyproject.toml -p hashstream

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: test lint types

clean:
	rm -rf $(VENV) .typecheck build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
