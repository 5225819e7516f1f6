# The two commands of the README are `make demo` and `make test`; both set up .venv first. What each does stands in kit/:
# without make it is `python -m kit demo` and so on.
PYTHON ?= python3
PYTHON_COURSE ?= python3.8
RUN := runs/demo
BASE := tiny_sd
HOST := 127.0.0.1
PORT := 7860
export TORCH_INDEX

.PHONY: demo page test test-course starter autograder grade docs real-size

.PHONY: .venv/ready
.venv/ready:
	@$(PYTHON) -m kit environment

demo:
	@$(PYTHON) -m kit demo --output "$(RUN)" --base "$(BASE)"

# Draw in the browser; BASE=CompVis/stable-diffusion-v1-4 on a GPU.
page:
	@$(PYTHON) -m kit page --base "$(BASE)" --host "$(HOST)" --port "$(PORT)"

test:
	@$(PYTHON) -m kit test

test-course:
	@$(PYTHON) -m kit test-course --python "$(PYTHON_COURSE)"

# The student's view of this repository, without the solution.
starter:
	@$(PYTHON) -m kit starter

# The zip that Gradescope's form takes; see docs/teacher.md.
autograder:
	@$(PYTHON) -m kit autograder

# Grades one hand-in or a folder of them: make grade HAND_INS=FOLDER; with JOBS=2 two at the same time.
HAND_INS ?= hand_ins
JOBS :=
grade:
	@$(PYTHON) -m kit grade $(if $(JOBS),--jobs "$(JOBS)") "$(HAND_INS)"

# The lecture's pages with the code that the files hold today.
docs:
	@$(PYTHON) -m kit docs

# All programs once at Stable Diffusion 1.4's size, with random weights: at most half an hour and 22 GB of memory and disk.
real-size:
	@$(PYTHON) -m kit real-size
