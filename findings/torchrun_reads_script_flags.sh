#!/usr/bin/env bash
# Version: torch 2.14.1, accelerate 1.15.0 (Python 3.11)
# Behaviour: torchrun reads the flags behind the script's name before it hands them on. One that begins a flag of its
#   own is refused as ambiguous: nearly all of those are declared twice, --start-method and --start_method, so --start
#   "could match" two spellings of one. 97 flags are hit, among them --start, --log, --local, --max, --node, --num,
#   --run, --print, --monitor, --master, --signal, --shutdown, --event, --duplicate and --m, --n, --l, --p, --r, --s.
#   Whole flags (--role x) and short ones (-s x) reach the script. accelerate launch hands on all.
# Output seen:
#   torchrun script.py --start x: ambiguous option: --start could match --start-method, --start_method
#   torchrun -- script.py --start x and accelerate launch script.py --start x: the script sees --start x
#   97 flags refused
# One would have guessed: All behind the script's name is the script's, as its usage says (training_script ...) and as
#   python and accelerate do it; and a script that runs under the torchrun of today runs under the next one, which has
#   more flags.
# What follows: Write `torchrun OPTIONS -- script.py ...`, always, in job scripts and manuals.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.14.1 accelerate==1.15.0 numpy
echo 'import sys; print("the script sees", *sys.argv[1:])' > script.py

if venv/bin/torchrun --standalone --nproc_per_node 1 script.py --start x > seen 2>&1; then
    cat seen; echo "torchrun hands on --start now"; exit 1
fi
grep "ambiguous option: --start could match --start-method, --start_method" seen
venv/bin/torchrun --standalone --nproc_per_node 1 -- script.py --start x | grep -x "the script sees --start x"
venv/bin/accelerate launch --cpu --num_processes 1 script.py --start x 2> warnings | grep -x "the script sees --start x"

venv/bin/python - <<'PY'
import contextlib
import io

from torch.distributed.run import get_args_parser

parser = get_args_parser()
flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
beginnings = {flag[:end] for flag in flags for end in range(3, len(flag) + 1)}


def reaches_the_script(*arguments):
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            return parser.parse_args(["script.py", *arguments]).training_script_args == list(arguments)
        except SystemExit:
            return False


refused = sorted((flag for flag in beginnings if not reaches_the_script(flag, "x")), key=lambda flag: (len(flag), flag))
print(len(refused), "flags refused:", *refused)
assert len(refused) == 97 and not set(refused) & set(flags)
common = {"--start", "--log", "--local", "--max", "--node", "--num", "--run", "--print", "--monitor", "--master",
          "--signal", "--shutdown", "--event", "--duplicate", "--m", "--n", "--l", "--p", "--r", "--s"}
assert common <= set(refused)
assert not reaches_the_script("more", "--log=x"), "behind another word, and with =, it is handed on now"
for whole in ("--role", "--log_dir", "-s", "--start_at"):
    assert reaches_the_script(whole, "x"), f"{whole} is refused now"
PY
