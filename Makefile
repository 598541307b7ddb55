# Every target sets up .venv first if it is missing or older than the files that describe it.
SHELL := /bin/sh
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.installed
# nbdev would otherwise install packages with whatever pip comes first
export PIP_REQUIRE_VIRTUALENV := 1
# small networks train faster on one thread a process
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test test-newest slow export refresh readme docs lint bench gpu zoo lab hooks clean
help:
	@echo 'make demo         train on the bundled digits, dense and pruned, and show the table (3 minutes)'
	@echo 'make test         everything CI runs: notebooks, tests, lint, docs'
	@echo 'make slow         the tests that take minutes: long trainings, two tutorials in JupyterLab'
	@echo 'make lab          open the book in JupyterLab'
	@echo 'make docs         rebuild the studies from their files, compare, and build the site into _docs/'
	@echo 'make bench        measure selection, upkeep, memory and import time against other libraries'
	@echo 'make gpu          one slice of nine minutes of all that wants a GPU; without one a dry run on the CPU'
	@echo 'make zoo          cut every network of torchvision, fastai, timm and transformers that is not in the file (1 hour)'
	@echo 'make optimizers  mask, cut and resume with every optimizer of ten libraries that is not in the file (10 minutes)'
	@echo 'make export       write early_prune/ from the notebooks'
	@echo 'make refresh      run the notebooks and store their outputs'
	@echo 'make test-newest  run the tests on the newest fastai'

setup: $(STAMP)
$(STAMP): settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info<(3,11) else 0)'
	test -x $(PY) || $(PYTHON) -m venv .venv
	if command -v uv >/dev/null; then uv pip install -q --compile-bytecode -p $(PY) -c constraints.txt -e '.[dev]'; \
	else $(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'; fi
	touch $@

demo: setup
	.venv/bin/early_prune demo

test: setup lint
	$(PY) docs/build.py --check-readme
	$(PY) tests/notebooks.py
	$(PY) docs/build.py
	$(PY) -m pytest -m 'not slow'

slow: setup
	$(PY) -m pytest -m slow

test-newest: .venv-newest/.installed
	.venv-newest/bin/python -m pytest -m 'not slow' --ignore tests/test_sync.py --ignore tests/test_bridge.py --ignore tests/test_site.py
.venv-newest/.installed: settings.ini setup.py
	$(PYTHON) -m venv .venv-newest
	if command -v uv >/dev/null; then uv pip install -q --compile-bytecode -U -p .venv-newest/bin/python -e . pytest hypothesis; \
	else .venv-newest/bin/python -m pip install -q -U -e . pytest hypothesis; fi
	touch $@

lint: setup
	$(PY) -m ruff check early_prune nbs tests bench docs setup.py

export: setup
	.venv/bin/nbdev_export
refresh: setup
	$(PY) docs/refresh.py
readme: setup
	$(PY) docs/build.py --readme
docs: setup
	$(PY) -m pytest tests/test_evidence.py
	$(PY) docs/build.py

bench: setup
	if command -v uv >/dev/null; then uv pip install -q -p $(PY) -c constraints.txt -e '.[peers]'; \
	else $(PY) -m pip install -q -c constraints.txt -e '.[peers]'; fi
	OMP_NUM_THREADS=2 $(PY) bench/run.py

# where PyTorch and fastai are there already, nothing is installed
gpu:
	if test -x $(PY); then $(PY) bench/gpu.py; else $(PYTHON) bench/gpu.py; fi

zoo: setup
	if command -v uv >/dev/null; then uv pip install -q -p $(PY) -c constraints.txt -e '.[peers]'; \
	else $(PY) -m pip install -q -c constraints.txt -e '.[peers]'; fi
	$(PY) tests/zoo.py

optimizers: setup
	if command -v uv >/dev/null; then uv pip install -q -p $(PY) -c constraints.txt -e '.[peers]'; \
	else $(PY) -m pip install -q -c constraints.txt -e '.[peers]'; fi
	$(PY) tests/optimizers_zoo.py

lab: setup
	$(PY) -m jupyterlab nbs/index.ipynb

hooks: setup
	ln -sf ../../.githooks/pre-commit .git/hooks/pre-commit

clean:
	rm -rf _docs _proc demo build *.egg-info .pytest_cache .ruff_cache .hypothesis
