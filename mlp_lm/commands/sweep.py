"""`python -m mlp_lm sweep`: many runs of `fit`, each a process of its own, and one table."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from tqdm import tqdm

from mlp_lm.errors import SettingsError, TrainingError
from mlp_lm.figures import curves
from mlp_lm.files import write_text
from mlp_lm.parsing import check_config_file
from mlp_lm.settings import SEED, Range
from mlp_lm.training.runs import last_checkpoint, new_folder, run_name
from mlp_lm.training.sweep.folder import SweepFolder, make_way, read_report
from mlp_lm.training.sweep.grid import choose_points, parse_vary
from mlp_lm.training.sweep.plan import Run, check_points, config_flags, last_line, plan_runs
from mlp_lm.training.sweep.processes import note_signals, run_processes
from mlp_lm.training.sweep.table import Row, csv_text, series, table_text, varying

FIT = [sys.executable, "-m", "mlp_lm", "fit"]


def sweep(
    config: str | None = None,
    vary: Sequence[str] = (),
    seeds: Annotated[int, Range(1, 1000)] = 1,
    jobs: Annotated[int, Range(1, 1024)] = 1,
    random: Annotated[int, Range(1, 10_000)] | None = None,
    random_seed: Annotated[int, SEED] = 42,
    sweep_dir: str | None = None,
) -> None:
    """Many runs of fit, one table: all combinations of some settings' values, each with one seed or several.

    The sweep's folder gets a run folder for each run, sweep.csv, and a picture of the dev loss for each setting that
    varies; the test split stays unread. The same command with --sweep_dir resumes it: finished runs are
    recognised by their settings, begun ones are resumed, failed ones tried again. Exit code 2 if a run failed.

    Args:
        config: Config of all runs; without one, that of fit without one.
        vary: KEY=V1,V2,... (repeatable): a setting of fit and its values, as in YAML. With one value, it is set for all
            runs, for example trainer.max_steps=100.
        seeds: Runs of each point; they differ in seed_everything alone, counted up from the config's.
        jobs: Runs at a time. Each gets its share of the cores, unless OMP_NUM_THREADS is set.
        random: Run this many points of the grid, drawn at random, instead of all.
        random_seed: Seed of that draw.
        sweep_dir: Folder of the sweep, new or of a sweep to resume (default: runs/<config name>/sweep_N).
    """
    varied = parse_vary(vary)
    if not varied and seeds == 1:
        raise SettingsError("vary: missing, so that nothing varies; expected --vary KEY=V1,V2,... or --seeds above 1")
    points = choose_points(varied, random, random_seed, seeds)
    if config is not None:
        check_config_file(config)
    given = None if sweep_dir is None else SweepFolder(Path(sweep_dir).expanduser())
    with note_signals() as received:
        described, loading = check_points(config, points, seeds, given.half_finished() if given else [])
        _stop_if(received)
        name = run_name(config or "", described[0]["settings"]["data.path"])
        path = given.path if given else new_folder(name, "sweep", "sweep_dir")
        with SweepFolder(path).alone() as folder:
            runs = plan_runs(folder, points, described, seeds)
            folder.write_index()
            problems = _run_all(runs, _copy_config(path, config), loading, jobs, received)
            _write_results(path, runs, problems)
    flags = [*config_flags(config), *(f"--vary={text}" for text in vary), f"--seeds={seeds}", f"--jobs={jobs}"]
    flags += [] if random is None else [f"--random={random}", f"--random_seed={random_seed}"]
    again = f"python -m mlp_lm sweep {shlex.join([*flags, f'--sweep_dir={path}'])}"
    if received:
        print(f"stopped; to resume: {again}", file=sys.stderr)
    _stop_if(received)
    if problems:
        raise TrainingError(f"{len(problems)} of {len(runs)} runs failed, see the table; to try them again: {again}")


def _stop_if(received: Sequence[int]) -> None:
    if received:
        raise SystemExit(128 + received[0])  # what shells report for a signal


def _copy_config(path: Path, config: str | None) -> Path | None:
    """A copy of the config in the folder `path`: what runs read that start later, whatever becomes of the original."""
    if config is None:
        return None
    write_text(path / "config.yaml", Path(config).read_text(encoding="utf-8"))
    return path / "config.yaml"


def _run_all(
    runs: Sequence[Run], config: Path | None, loading: set[Path], jobs: int, received: Sequence[int]
) -> dict[Path, str]:
    """Run what has not finished, and say on stderr how far it is. Returns why runs failed, by their folder."""
    commands: dict[str, list[str]] = {}
    for run in runs:
        if read_report(run.folder) is not None:
            continue
        where = f"--ckpt_path={last_checkpoint(run.folder)}"
        if run.folder not in loading:
            make_way(run.folder)
            where = f"--run_dir={run.folder}"
        commands[str(run.folder)] = [*FIT, *config_flags(config), *run.flags, where]
    problems: dict[Path, str] = {}
    done = len(runs) - len(commands)
    if done:
        print(f"{done} of {len(runs)} runs have finished before", file=sys.stderr)
    bar = tqdm(total=len(runs), initial=done, unit="run", dynamic_ncols=True, disable=not sys.stderr.isatty())

    def on_end(name: str, status: int, stderr: str) -> None:
        nonlocal done
        done += 1
        bar.update()
        folder = Path(name)
        report = read_report(folder)
        if report is not None:
            said = f"dev loss {report['losses']['dev']['nats_per_token']:.4f}"
        else:
            said = problems[folder] = last_line(stderr) if status >= 0 else f"ended by signal {-status}"
        if report is None or bar.disable:
            bar.write(f"{done}/{len(runs)} {folder.name}: {said}", file=sys.stderr)

    with bar:
        run_processes(commands, jobs, _environment(min(jobs, len(commands))), received, on_end)
    return problems


def _environment(jobs: int) -> dict[str, str]:
    """The environment of a run that shares the cores with others. One alone chooses its number of threads itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = {"OMP_NUM_THREADS": str(max(1, cores // jobs))} if jobs > 1 else {}
    return share | os.environ


def _write_results(path: Path, runs: Sequence[Run], problems: Mapping[Path, str]) -> None:
    """sweep.csv, the table, and a picture for each setting that varies."""
    rows = [
        Row(run.values, run.seed, run.folder.name, read_report(run.folder), problems.get(run.folder, ""))
        for run in runs
    ]
    write_text(path / "sweep.csv", csv_text(rows))
    print(table_text(rows))
    for key in varying(rows) if any(row.report for row in rows) else []:
        curves.save(curves.draw_varied(key, series(rows, key)), str(path / f"{key}.png"))
    print(f"\nrows and pictures: {path}")
