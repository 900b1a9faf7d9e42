# make demo: a whole run on made-up data.   make test: linter, formatter and all quick tests.
# make venv: only the environment, for the commands of the README.   make test-slow: the slow ones.
PYTHON ?= python3
VENV = .venv
RUN = $(VENV)/bin/python

DEMO = demo
DEMO_DATA = --datadir $(DEMO)/decathlon-1.0 --ckpdir $(DEMO)/cv
DEMO_SIZE = --resize 40 --crop 32 --width 8 --batch_size 16

# make gpu: what needs a GPU is tested and measured; GPU_DEVICE=cpu with small GPU_SIZES tries it.
GPU_DEVICE = cuda
GPU_SIZES =
GPU_OUT = docs

.PHONY: venv demo test test-slow gpu clean

# The file is made last, so that a broken installation is started anew.
$(VENV)/installed: requirements.txt
	@test ! -L $(VENV) || { echo "error: $(VENV) is a link; remove it, or name another VENV" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

venv: $(VENV)/installed

demo: $(VENV)/installed
	$(RUN) -m sample_data.make $(DEMO)
	$(RUN) main.py $(DEMO_DATA) $(DEMO_SIZE) --pretrained none --train_split train \
	    --source_epochs 12 --source_steps 8 --nb_epochs 10 --step1 8
	$(RUN) submit_val.py $(DEMO_DATA) --out $(DEMO)/val/results.json
	$(RUN) submit_test.py $(DEMO_DATA) --out $(DEMO)/test/results.json --zip
	$(RUN) score.py $(DEMO)/val/results.json --annotations $(DEMO)/decathlon-1.0/annotations --split val

test: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/installed
	$(RUN) -m pytest tests/slow

# Measured even if a test fails, since a GPU may be at hand for minutes only.
gpu: $(VENV)/installed
	mkdir -p $(GPU_OUT)
	$(RUN) -m pytest tests/gpu --gpu_device $(GPU_DEVICE); tests=$$?; \
	$(RUN) -m benchmarks.run gpu --device $(GPU_DEVICE) $(GPU_SIZES) \
	    --json $(GPU_OUT)/gpu_measured.json --table $(GPU_OUT)/gpu_measured.md && exit $$tests

clean:
	rm -rf $(VENV) $(DEMO)
