# The two commands are `make run` and `make test`; everything they need is installed by the project's own files.
# The system's own where it will do: distributions build theirs with what a profile says, which is worth a tenth of all joins
# against one that was built without (docs/performance.md).
PYTHON ?= $(shell for each in /usr/bin/python3 python3; do \
	$$each -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; done; echo $$each)
BIN := .venv/bin
PIP := $(BIN)/pip install -qq --disable-pip-version-check --require-hashes

.PHONY: run install test chaos bench lint format lock

run: install
	@exec $(BIN)/rollcall dev

install: .venv/installed

# The environment alone: what the services and `rollcall dev` need.
.venv/installed: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "there is no $(PYTHON) here; say which Python with PYTHON=…"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rollcall needs Python 3.11 or newer; say which with PYTHON=…"; exit 1; }
	@test -x $(BIN)/pip || { echo "making .venv (this takes half a minute)"; $(PYTHON) -m venv .venv; }
	@$(PIP) -r requirements.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# What the checks need besides.
.venv/tested: .venv/installed requirements-dev.lock
	@$(PIP) -r requirements-dev.lock
	@touch $@

# Half of the time a test only waits, so two run at once, of different files; each half has servers of its own.
test: .venv/tested
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Everything fails by a seed, under load, and nothing answered may be lost: docs/reliability.md. About three minutes, then
# the verdict; CHAOS_SEED=… for the same faults again, CHAOS_SECONDS=3600 for a soak.
chaos: .venv/tested
	@$(BIN)/python -m tests.chaos

# Rollcall beside what a school would run otherwise: docs/performance.md. Ten minutes, and it needs Node; BENCH=joins,quiet
# measures some of it.
bench: .venv/tested bench/peers/node_modules/installed
	@$(BIN)/python -m bench

bench/peers/node_modules/installed: bench/peers/package-lock.json
	@npm ci --prefix bench/peers --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

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
