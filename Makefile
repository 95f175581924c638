PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: book test peers html sizes lab bench lock clean help

book: $(READY)  ## run every chapter (profile cpu) and render _build/html/index.html
	$(BIN)/kdlib run --all --profile cpu && $(BIN)/kdlib book --from _build/cpu --out _build/html

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest -n auto --dist loadfile

peers: $(READY)  ## install the packages that benches and some tests compare with; without them those tests are skipped
	$(BIN)/uv pip install --python $(BIN)/python --constraints requirements.lock -r pyproject.toml --extra bench

html: $(READY)  ## render the published chapters: _build/published/html/index.html
	$(BIN)/kdlib book --out _build/published/html

sizes: html  ## hold the published pages to their budgets of size and sharpness
	$(BIN)/python -m bench.pages _build/published/html

lab: $(READY)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks/

bench: peers  ## time kdlib beside what does the same: bench/RESULTS.md (some minutes on an idle machine)
	$(BIN)/python -m bench

lock: $(READY)  ## write requirements.lock from pyproject.toml, and environment.yml from the lock
	printf 'torch==2.11.0\ntorchvision==0.26.0\n' | $(BIN)/uv pip compile pyproject.toml --extra dev \
		--constraints /dev/stdin --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header -o requirements.lock
	$(BIN)/python tools/environment.py

clean:  ## delete _build (the environment and the store of trained models stay)
	rm -rf _build

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 14

# Made once, and again when the lock or pyproject.toml changes. A usable .venv is kept.
$(READY): requirements.lock pyproject.toml
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
			echo "kdlib needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1). Install one, or name it: make PYTHON=python3.11" >&2; exit 1; }; \
		$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
			echo "$(PYTHON) cannot make environments: its venv module is missing (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }; \
		$(PYTHON) -m venv --clear .venv; }
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock | $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r /dev/stdin
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps -e .
	@touch $@
