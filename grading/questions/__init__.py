"""Questions on the five TODO places, drawn from a student id, for a test in class or a talk. For teachers only.

    python -m grading.questions --student-id 20241234 --answers

`drawing.py` draws a configuration, `place_*.py` hold the questions, `sheet.py` chooses six. What is right is computed
from our models by `key.py`, in a process of its own; nothing else here imports the models or PyTorch.
"""
