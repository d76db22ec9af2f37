# The two commands are `make run` and `make test`; everything they need is installed by the project's own files.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install -qq --disable-pip-version-check --require-hashes

.PHONY: run install test lint format lock

run: install
	@exec $(BIN)/rollcall dev

install: .venv/installed

# The environment alone: what the services and `rollcall dev` need.
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rollcall needs Python 3.11 or newer; say which with PYTHON=…"; exit 1; }
	@test -x $(BIN)/pip || { echo "making .venv (this takes half a minute)"; $(PYTHON) -m venv .venv; }
	@$(PIP) -r requirements.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# What the checks need besides.
.venv/tested: .venv/installed requirements-dev.lock
	@$(PIP) -r requirements-dev.lock
	@touch $@

test: .venv/tested
	$(BIN)/pytest

lint: .venv/tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/hadolint deploy/Dockerfile

format: .venv/tested
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Pins every dependency with hashes and names no index. Needs uv.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--extra build --output-file requirements.lock pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--extra build --extra dev --output-file requirements-dev.lock pyproject.toml
