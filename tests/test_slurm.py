"""scripts/slurm.sh, with stand-ins for what only a cluster has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(("code", "requeued"), [(143, "requeue 7\n"), (0, ""), (2, "")])
def test_a_job_is_requeued_after_sigterm_alone(code: int, requeued: str, tmp_path: Path) -> None:
    calls = {"srun": tmp_path / "srun.txt", "scontrol": tmp_path / "scontrol.txt"}
    for name, exit_code in (("srun", code), ("scontrol", 0)):
        calls[name].touch()
        (tmp_path / name).write_text(f'#!/bin/sh\necho "$@" >> {calls[name]}\nexit {exit_code}\n')
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "SLURM_NNODES": "4", "SLURM_JOB_ID": "7"}
    result = subprocess.run(["bash", ROOT / "scripts" / "slurm.sh"], env=variables, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (code, "")
    assert calls["scontrol"].read_text() == requeued
    assert calls["srun"].read_text() == (
        "--kill-on-bad-exit=1 python -m mlp_lm fit --config configs/best.yaml --run_dir runs/big --ckpt_path auto "
        "--trainer.num_nodes 4 --trainer.devices 8\n"
    )
