# `make help` lists the targets.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: protocol settings help lock run listen reload logs log-level check test unit services torture containers page lint format bench bench-peers regression clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

run: $(VENV)/installed ## start the service in the foreground; Ctrl-C stops it
	@exec $(BIN)/python -m workers.run

listen: $(VENV)/installed ## show what a client receives from the running service
	@PYTHONPATH=clients/python/src exec $(BIN)/python -m yujian_realtime watch $(if $(URL),--url $(URL))

reload: $(VENV)/installed ## let the running service take new code and settings
	@$(BIN)/python -m workers.reload $(if $(JSON),--json)

logs: $(VENV)/installed ## show the log of the running service and go on with what comes (TAIL=lines of the past)
	@scripts/logs.sh $(if $(TAIL),--lines $(TAIL))

log-level: $(VENV)/installed ## LEVEL=debug: change the level of the running service; LEVEL=default: back
	@$(BIN)/python -m scripts.log_level $(LEVEL)

check: lint ## lint, types, import directions, unit tests: before each commit
	$(BIN)/pytest -q -n 4 tests/architecture tests/unit

# Every process of a service would compile the code anew, and so would those of a copy of it.
unexport PYTHONDONTWRITEBYTECODE

# Services of a module are started once for it, so a file stays in one process; so does the service
# with default settings, one for each process. Services wait a good deal, so there are more
# processes than processors, and lint and the unit tests run beside them with what they leave.
# What is marked `alone` measures; `long` is for `make torture`.
PARALLEL := -n 6 --dist loadfile --no-loadscope-reorder
COVERED := --cache-clear --cov --cov-fail-under=0 --cov-report=
# What fails while others use the processors must pass alone; the first failure stays in the output.
AGAIN := $(BIN)/pytest --lf --lfnf=none
PARTS := $(addprefix tests/,component integration deploy monitoring page)
test: $(VENV)/installed-dev ## lint, types, coverage, all tests but those of `make torture` and `make containers`
	rm -f .coverage .coverage.*
	$(BIN)/python -m compileall -q app workers scripts
	nice -n 5 $(MAKE) --jobs 2 --output-sync=recurse lint unit & \
	  $(MAKE) services; services=$$?; wait $$! && exit $$services
	$(BIN)/pytest -m alone $$(grep -rl --include='test_*.py' 'mark[.]alone' $(PARTS))
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Each of the two has data of its own, for they end at their own times.
unit services: export COVERAGE_FILE = .coverage.$@
unit services: CACHE = -o cache_dir=.pytest_cache/$@

unit: $(VENV)/installed-dev
	$(BIN)/pytest -n 2 tests/architecture tests/unit $(COVERED) $(CACHE) || $(AGAIN) $(CACHE)

services: $(VENV)/installed-dev
	$(BIN)/pytest $(PARALLEL) -m 'not alone and not long' $(PARTS) $(COVERED) $(CACHE) || $(AGAIN) $(CACHE)

torture: $(VENV)/installed-dev ## fuzzing, the Autobahn suite, storms, load and a soak, at full length (TORTURE=0.1: a tenth; TORTURE=0: the short form of CI; TORTURE_SEED=n repeats a run)
ifeq ($(TORTURE),0)
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder -m long --cache-clear tests/torture $(PARTS) || $(AGAIN)
else
	TORTURE=$(or $(TORTURE),1) $(BIN)/pytest -s -m long tests/torture $(PARTS)
endif

containers: $(VENV)/installed-dev ## tests with a real Docker engine, which root installs into ENGINE_DIR where it is missing
	$(BIN)/pytest -n 3 --dist loadfile --cache-clear tests/containers || $(BIN)/pytest --lf --lfnf=none tests/containers

page: ## build the page at /, the runbook as a page and the client library into the files that are committed
	$(or $(wildcard $(BIN)/python),python3) -m scripts.runbook
	npm ci
	npm run build

protocol: $(VENV)/installed ## write the types of the clients and the tables of docs from app/protocol/schema
	$(BIN)/python -m scripts.protocol

settings: $(VENV)/installed ## write the table of docs/SETTINGS.md from app/config.py
	$(BIN)/python -m scripts.settings

lint: $(VENV)/installed-dev ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck -x .ci/run *.sh scripts/*.sh monitoring/*.sh deploy/systemd/*.sh tests/containers/engine/*.sh

format: $(VENV)/installed-dev ## format the code and fix what can be fixed automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-dev ## measure this service beside a plain python-socketio
	$(BIN)/python -m benchmarks

bench-peers: $(VENV)/installed-dev ## measure this service beside Node, Bun, Nchan, NATS and others; writes docs/benchmarks
	$(BIN)/pip install --quiet -r benchmarks/peers/servers/requirements.txt
	npm ci --silent --prefix benchmarks/peers/servers
	$(BIN)/python -m benchmarks.peers $(ARGS)

regression: $(VENV)/installed-dev ## REV=commit: what this checkout costs beside another one, in the same run
	$(BIN)/python -m benchmarks.regression $(REV)

lock: $(VENV)/installed-dev ## write requirements.lock: the pins of requirements.txt with the hashes of their files
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --custom-compile-command "make lock" --output-file requirements.lock requirements.txt

clean: ## remove what tests and builds leave; data and .env stay
	rm -rf $(VENV) .coverage .coverage.* htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then \
	    echo "$$python -m venv $(VENV)"; \
	    "$$python" -m venv $(VENV) && exit; rm -rf $(VENV); exit 1; \
	  fi; \
	done; echo 'Python 3.11 or newer is needed' >&2; exit 1

$(VENV)/installed: requirements.lock | $(BIN)/python
	@echo 'Installing requirements.lock'
	@$(BIN)/pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	@echo 'Installing requirements-dev.txt'
	@$(BIN)/pip install -qq --disable-pip-version-check -r requirements-dev.txt
	@touch $@
