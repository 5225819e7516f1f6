# The two commands of the README are `make demo` and `make test`; both set up .venv first.
PYTHON ?= python3
PYTHON_COURSE ?= python3.8
RUN := runs/demo
BASE := ../tiny_sd

.PHONY: demo test test-course starter

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -r requirements.txt
	touch $@

.venv-course/ready: requirements-course.txt pyproject.toml
	@$(PYTHON_COURSE) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 8))' 2>/dev/null || { echo \
		"The course's environment needs Python 3.8: make test-course PYTHON_COURSE=/path/to/python3.8"; exit 1; }
	$(PYTHON_COURSE) -m venv .venv-course
	.venv-course/bin/python -m pip install -r requirements-course.txt
	touch $@

# Trains a ControlNet on the embedded base (or goes on with the run that is there), then draws and scores.
demo: .venv/ready
	cd task_1_controlnet && ../.venv/bin/python train.py --pretrained_model_name_or_path $(BASE) \
		--dataset_name rendered --max_train_samples 4000 --resolution 128 --conditioning_channels 8 16 32 64 \
		--train_batch_size 16 --gradient_accumulation_steps 1 --max_train_steps 1300 --learning_rate 1e-3 \
		--lr_scheduler cosine --lr_warmup_steps 50 --snr_gamma 0.05 --mixed_precision auto --validation_steps 325 \
		--validation_guidance_scale 3 --checkpointing_steps 325 --resume_from_checkpoint latest \
		--output_dir ../$(RUN)
	cd task_1_controlnet && ../.venv/bin/python evaluate.py --base $(BASE) --controlnet ../$(RUN)/controlnet \
		--guidance_scale 3 --output_dir ../$(RUN)

test: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest -q

test-course: .venv-course/ready
	.venv-course/bin/python -m pytest -q

# The student's view of this repository, without the solution.
starter: .venv/ready
	.venv/bin/python -m grading.starter --output build/starter
