"""The ready-made accelerate configurations: everything that `accelerate launch` does but starting the processes."""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import accelerate.utils.launch
import pytest
import torch
import torch.distributed.run
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType, patch_environment

from finetune import setup
from finetune.flags import Plan, training_parser
from finetune.optimizer import SetupError
from finetune.run.processes import is_main_process, processes_started
from finetune.setup import require_one_folder, start_accelerator
from finetune.training_loop import Training

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "accelerate_configs").glob("*.yaml"))
PROGRAM = ["train.py", "--max_train_steps", "3"]


def flags(output_dir: Path, *words: str) -> argparse.Namespace:
    """A training's, as its command line gives them."""
    parser = training_parser("train.py", "")
    args = parser.parse_args(["--output_dir", str(output_dir), *words])
    return argparse.Namespace(**vars(args), mixed_precision_asked=args.mixed_precision)


def dry_run(config: Path, monkeypatch, *flags: str):
    """What torchrun is asked to start, and the environment that its processes would see."""
    started = []
    monkeypatch.setattr(torch.distributed.run, "run", lambda args: started.append((args, dict(launch.os.environ))))
    # Nothing is started, so it does not matter that another test's processes meet at the same port just now.
    monkeypatch.setattr(accelerate.utils.launch, "is_port_in_use", lambda port: False)
    args = launch.launch_command_parser().parse_args(["--config_file", str(config), *flags, *PROGRAM])
    if load_config_from_file(str(config)).distributed_type == "DEEPSPEED":  # its launcher needs deepspeed installed
        args, defaults, _ = launch._validate_launch_command(args)
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, environment = launch.prepare_deepspeed_cmd_env(args)
        return args, environment
    launch.launch_command(args)
    return started[0]


def test_there_is_one_for_each_way_to_scale():
    assert [path.stem for path in CONFIGS] == ["deepspeed_zero2", "fsdp", "multi_gpu", "multi_node"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_program_and_its_flags_reach_every_process(config, monkeypatch):
    args, environment = dry_run(config, monkeypatch)
    assert [args.training_script, *args.training_script_args] == PROGRAM
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"


@pytest.mark.parametrize("name", ["multi_gpu", "fsdp"])
def test_one_machine_starts_a_process_for_each_gpu(name, monkeypatch):
    args, _ = dry_run(CONFIGS[0].with_name(f"{name}.yaml"), monkeypatch)
    assert int(args.nproc_per_node) == 4 and str(args.nnodes) in ("1", "1:1")


def test_each_of_two_machines_starts_its_half_and_meets_the_first(monkeypatch):
    flags = ("--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    args, _ = dry_run(CONFIGS[0].with_name("multi_node.yaml"), monkeypatch, *flags)
    assert (int(args.nproc_per_node), int(args.nnodes), int(args.node_rank)) == (8, 2, 1)
    assert args.rdzv_endpoint == "10.0.0.1:29500"


@pytest.mark.skipif(sys.version_info < (3, 9), reason="FSDP 2 needs accelerate 1.6, which needs Python 3.9")
def test_fsdp_shards_weights_gradients_and_optimiser(monkeypatch):
    from accelerate import FullyShardedDataParallelPlugin

    _, environment = dry_run(CONFIGS[0].with_name("fsdp.yaml"), monkeypatch)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    with patch_environment(**environment):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"


def test_zero_2_shards_gradients_and_optimiser(monkeypatch):
    _, environment = dry_run(CONFIGS[0].with_name("deepspeed_zero2.yaml"), monkeypatch)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    assert float(environment["ACCELERATE_GRADIENT_CLIPPING"]) == 1.0


def test_the_flag_for_accumulation_counts_whatever_a_launcher_sets(tmp_path, monkeypatch):
    """DeepSpeed's launcher passes its file's "auto" on, or a 1."""
    for of_launcher in ("auto", "1"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", of_launcher)
        accelerator = start_accelerator(flags(tmp_path, "--gradient_accumulation_steps", "4"), "run")
        assert accelerator.gradient_accumulation_steps == 4
        accelerator.end_training()


def test_the_flag_for_clipping_counts_whatever_deepspeeds_file_says(tmp_path):
    """DeepSpeed clips by itself; nothing of it but its configuration is asked for here."""
    config = {"gradient_clipping": 1.0}
    deepspeed = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED,
        state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(deepspeed_config=config)),
        prepare=lambda model, optimizer: (model, optimizer),
        device=torch.device("cpu"), gradient_accumulation_steps=1, num_processes=1, is_main_process=True,
        register_save_state_pre_hook=print, register_load_state_pre_hook=print,
    )  # fmt: skip
    plan = Plan(2, 3, 1e-3, "constant", 0, 0.25, False, False, 0, 0, None, 0)
    Training(deepspeed, torch.nn.Linear(2, 1), plan, [], print, print, tmp_path, "model", {})
    assert config == {"gradient_clipping": 0.25, "train_micro_batch_size_per_gpu": 2}


def test_the_flag_for_precision_counts_whatever_a_file_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    start_accelerator(flags(tmp_path), "run").end_training()
    assert "Precision: float32, as --mixed_precision says" in capsys.readouterr().out


def test_processes_wait_as_long_as_one_encodes(tmp_path):
    """Hours, where PyTorch gives up after 10 or 30 minutes."""
    accelerator = start_accelerator(flags(tmp_path), "run")
    assert accelerator.init_handler.timeout >= timedelta(hours=12)
    accelerator.end_training()


@pytest.mark.parametrize("names", [("WORLD_SIZE", "LOCAL_RANK"), ("OMPI_COMM_WORLD_SIZE",), ("PMI_SIZE",)])
def test_processes_are_counted_by_what_their_launcher_says(names, monkeypatch):
    assert processes_started() == 1
    monkeypatch.setenv("WORLD_SIZE", "5")  # which some machines set for no reason
    assert processes_started() == 1
    for name in names:
        monkeypatch.setenv(name, "3")
    assert processes_started() == 3


@pytest.mark.parametrize("names", [("RANK", "LOCAL_RANK"), ("OMPI_COMM_WORLD_RANK",), ("PMI_RANK",)])
def test_the_main_process_is_known_by_what_its_launcher_says(names, monkeypatch):
    monkeypatch.setenv("RANK", "5")  # which some machines set for no reason
    assert is_main_process()
    for rank in ("0", "1"):
        for name in names:
            monkeypatch.setenv(name, rank)
        assert is_main_process() == (rank == "0")


def test_processes_that_would_each_train_alone_stop_with_a_sentence(tmp_path, monkeypatch):
    """Two were started, and accelerate knows of one."""
    monkeypatch.setattr(setup, "join_processes_on_cpu", lambda: None)
    monkeypatch.setattr(setup, "processes_started", lambda: 2)
    with pytest.raises(SetupError, match="2 processes were started, but each would train for itself"):
        start_accelerator(flags(tmp_path), "run")


@pytest.mark.parametrize("shared", [True, False])
def test_machines_that_share_no_disk_are_told_so_before_anything_is_trained(shared, tmp_path):
    theirs = tmp_path / "first"

    def wait_for_the_first_machine() -> None:
        theirs.mkdir()
        (theirs / ".seen-by-all").touch()

    second = SimpleNamespace(
        num_processes=2, is_main_process=False, device="cpu", wait_for_everyone=wait_for_the_first_machine,
        gather=lambda seen: torch.cat([torch.ones_like(seen), seen]),
    )  # fmt: skip
    if shared:
        require_one_folder(second, theirs)
    else:
        with pytest.raises(SetupError, match="1 of 2 processes do not see .* on a disk that they share"):
            require_one_folder(second, tmp_path / "second", patience=0)
