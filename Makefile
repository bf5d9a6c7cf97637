# make demo    install, make a corpus of synthetic speech, train, evaluate, transcribe
# make test    install, run the tests
# make lint    the linter that CI runs
# make web     install, serve a page that transcribes at http://127.0.0.1:7860
# make bench   install, measure on the CPU; tables on the screen, JSON in runs/bench
# make clean   delete .venv, caches and the demo corpus; runs/ with its checkpoints stays

PYTHON ?= python3
PY := .venv/bin/python
DEMO := data/corpora/demo
HOURS ?= 2
MODEL ?= deepspeech2
CONFIG := configs/$(MODEL)_demo.yaml
RUN := runs/$(MODEL)_demo

.PHONY: demo test lint web bench install clean

install: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt requirements-demo.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
		{ echo "Python 3.11 to 3.14 is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: install
	$(PY) -m data.synthetic --output $(DEMO) --hours $(HOURS)
	rm -rf $(RUN)
	$(PY) train.py --config $(CONFIG) --data_root $(DEMO) --output_dir $(RUN)
	@audio=$$(find $(DEMO)/test -name '*.flac' | sort | head -n 1); \
	echo "file:       $$audio"; \
	echo "reference:  $$(grep -h "^$$(basename $$audio .flac) " $${audio%-*}.trans.txt | cut -d' ' -f2- | tr A-Z a-z)"; \
	echo "hypothesis: $$($(PY) inference.py --checkpoint $(RUN)/checkpoints/best.ckpt --audio $$audio)"

test: install
	$(PY) -m pytest

lint: install
	$(PY) -m ruff check .

web: install
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-web.txt
	$(PY) -m models.inference.web

BENCHMARKS := padding data startup las beam_search transcribe mingru training_step

bench: install
	@for name in $(BENCHMARKS); do \
		$(PY) -m benchmarks.$$name --json runs/bench/$$name.json && echo || exit 1; \
	done

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache $(DEMO) $(DEMO).partial
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
