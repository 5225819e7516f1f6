# The two commands of the README are `make demo` and `make test`; both set up .venv first.
PYTHON ?= python3
PYTHON_COURSE ?= python3.8
RUN := runs/demo
BASE := ../tiny_sd

.PHONY: demo test test-course starter autograder grade

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

# Trains a ControlNet on the embedded base (or goes on with the run that is there), then draws and scores. It learns at
# 64 px first, where a step costs a quarter: where the disc belongs does not depend on the size.
TRAIN := cd task_1_controlnet && ../.venv/bin/python train.py --pretrained_model_name_or_path $(BASE) \
	--dataset_name rendered --conditioning_channels 8 16 32 64 --train_batch_size 16 --gradient_accumulation_steps 1 \
	--learning_rate 6e-4 --lr_warmup_steps 20 --snr_gamma 0.05 --mixed_precision auto --validation_guidance_scale 3 \
	--resume_from_checkpoint latest
demo: .venv/ready
	$(TRAIN) --resolution 64 --max_train_samples 4000 --max_train_steps 900 --lr_scheduler constant_with_warmup \
		--checkpointing_steps 300 --validation_steps 0 --output_dir ../$(RUN)/64px --part_of ../$(RUN)
	$(TRAIN) --resolution 128 --max_train_samples 2000 --max_train_steps 400 --lr_scheduler cosine \
		--checkpointing_steps 100 --validation_steps 200 --output_dir ../$(RUN) \
		--controlnet_model_name_or_path ../$(RUN)/64px/controlnet
	cd task_1_controlnet && ../.venv/bin/python evaluate.py --base $(BASE) --controlnet ../$(RUN)/controlnet \
		--guidance_scale 3 --num_inference_steps 12 --output_dir ../$(RUN)

# One thread for each process of the tests: threads of several would wait for each other.
test: export OMP_NUM_THREADS = 1
test: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --durations 20

test-course: export OMP_NUM_THREADS = 1
test-course: .venv-course/ready
	.venv-course/bin/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --durations 20 --ignore tests/grading --ignore-glob 'tests/test_benchmarks*'

# The student's view of this repository, without the solution.
starter: .venv/ready
	.venv/bin/python -m grading.starter --output build/starter

# The zip that Gradescope's form takes; see docs/teacher.md.
autograder: .venv/ready
	.venv/bin/python -m grading.gradescope --output build/autograder.zip

# Grades one hand-in or a folder of them: make grade HAND_INS=FOLDER
HAND_INS ?= hand_ins
grade: .venv/ready
	.venv/bin/python -m grading.autograder $(HAND_INS) --output build/grades
