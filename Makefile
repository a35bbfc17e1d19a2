PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test lint types layers unit faults bench dashboard deploy-test units lock audit clean

help:  ## Show what can be done
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: $(STAMP)  ## Run all eight services and publish the two sample events
	$(BIN)/python -m workers.demo

test: $(STAMP) lint types layers  ## Lint, types, layers, then every test
	$(BIN)/pytest -n 2 --dist loadfile

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy --strict
	$(BIN)/mypy --strict rabbitflow workers

layers: $(STAMP)  ## Imports point one way
	$(BIN)/lint-imports --no-cache

unit: $(STAMP)  ## The tests that need no broker
	$(BIN)/pytest tests/unit

faults: $(STAMP)  ## Break brokers of our own under load (needs rabbitmq-server, minutes)
	$(BIN)/pytest tests/faults/test_neighbours.py -m slow --faults-table docs/guarantees.md
	$(BIN)/pytest tests/faults -m "slow or not slow" -n 3 --dist loadfile --no-loadscope-reorder \
	  --ignore tests/faults/test_neighbours.py --faults-table docs/guarantees.md

dashboard: $(STAMP)  ## Draw docs/dashboard.png: the dashboard of a worker with failures
	$(BIN)/python -m pip install --quiet --group docs
	$(BIN)/python -m deploy.grafana.draw

bench: $(STAMP)  ## Race the peers and write docs/benchmarks.md (15 minutes)
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m benchmarks.decoupling
	$(BIN)/python -m benchmarks.race

deploy-test: $(STAMP)  ## Boot a machine, run the units on it, kill, hang and upgrade them (root)
	$(BIN)/pytest tests/deploy -s -v -m slow

units: $(STAMP)  ## Write deploy/systemd anew, as `rabbitflow systemd --template` does
	rm -rf build/etc
	$(BIN)/rabbitflow systemd --template --venv /opt/rabbitflow/venv --directory /opt/rabbitflow \
	  --output build/etc >/dev/null
	rm -rf deploy/systemd && mkdir -p deploy
	mv build/etc/systemd/system deploy/systemd
	mv build/etc/sysusers.d build/etc/tmpfiles.d deploy/systemd

bench-isolation: $(STAMP)  ## Measure: does a broken consumer slow its neighbours, here and elsewhere (1 h)
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m benchmarks.isolation --rounds 3 --page docs/isolation.md

lock: $(STAMP)  ## Write requirements-dev.lock: the versions that development was done with
	$(BIN)/python -m pip freeze --exclude-editable > requirements-dev.lock

audit: $(STAMP)  ## Ask PyPI for known vulnerabilities of the locked versions
	$(BIN)/python -m pip install --quiet --group audit
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement requirements-dev.lock

clean:  ## Remove what make made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "rabbitflow needs Python 3.11 or newer; set PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
	  || { echo "venv is missing; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[crypto,fast,mail,otel,reload,store]' --group dev
	@touch $(STAMP)
