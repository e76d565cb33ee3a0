"""The command line: commands, options of the guides, exit codes."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_nvml import GIB, gpus, install

import mgpu_nb
from mgpu_nb import GPUPool, Task
from mgpu_nb.cli import main
from mgpu_nb.workloads.base import WORKLOADS, Workload
from mgpu_nb.workloads.request import parse

PROGRAM = [sys.executable, "-m", "mgpu_nb"]
SMALL = (
    "--slots 2 --num_samples 1 --sample_length 20 --steps 10 --branch_counts 2 --methods standard best_of_n"
)


def exit_code(arguments: list[str]) -> str | int | None:
    try:
        return main(arguments)
    except SystemExit as left:  # the parser's own way out
        return left.code


def test_a_workload_keeps_its_tables_beside_those_of_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["protein", *SMALL.split(), "--output_dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "best_of_n" in shown
    assert str(tmp_path / "results" / "detailed_results.json") in shown
    details = json.loads((tmp_path / "results" / "detailed_results.json").read_text())
    assert [(entry["method"], entry["status"]) for entry in details] == [
        ("standard", "ok"),
        ("best_of_n", "ok"),
    ]
    records = json.loads((tmp_path / "detailed_results.json").read_text())
    assert [record["name"] for record in records] == ["standard-b1", "best_of_n-b2"]
    with (tmp_path / "summary_results.csv").open(newline="") as file:
        assert next(csv.reader(file))[:2] == ["name", "status"]
    assert len(list((tmp_path / "structures").rglob("*.pdb"))) == 2


@pytest.mark.slow
def test_options_name_what_is_in_a_module_beside_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    Path("loss_beside.py").write_text(
        "from torch.nn import functional\n\ndef loss(model, triples):\n"
        "    return 2 * functional.softplus(-model.score(triples))\n"
    )
    options = ["tracin", "--slots", "1", "--max_test_triples", "1", "--output_dir", "run", "--loss"]
    assert main([*options, "loss_beside:los"]) == 2
    assert "has no attribute 'los'" in capsys.readouterr().err
    assert main([*options, "loss_beside:loss"]) == 0  # a worker imports it, too
    assert sys.path == before
    program = Path(sys.executable).parent / "mgpu-nb"
    done = subprocess.run([program, *options, "loss_beside:los"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "has no attribute 'los'" in done.stderr) == (2, True)


@pytest.mark.slow
def test_the_same_command_goes_on_and_no_resume_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["protein", *SMALL.split(), "--output_dir", str(tmp_path)]
    assert main(command) == 0
    first = (tmp_path / "journal.jsonl").read_text()
    assert main([*command, "--branch_counts", "2", "4"]) == 0
    records = mgpu_nb.Run.open(tmp_path).records
    assert [record.name for record in records] == ["standard-b1", "best_of_n-b2", "best_of_n-b4"]
    assert (tmp_path / "journal.jsonl").read_text().startswith(first)  # what was done was taken over
    before = (tmp_path / "journal.jsonl").read_text()
    assert main([*command, "--no_resume"]) == 0
    (new,) = tmp_path.glob("run-*")
    assert len(mgpu_nb.Run.open(new).records) == 2
    assert (tmp_path / "journal.jsonl").read_text() == before
    capsys.readouterr()
    assert main(["runs", str(tmp_path)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["name", "began", "time", "state", "tasks", "ok"]
    cells = [re.split(r"  +", line) for line in lines]
    assert [[row[0], *row[3:6]] for row in cells] == [
        ["protein", "done", "2", "2"],
        ["protein", "done", "3", "3"],
    ]
    assert main(["report", str(new)]) == 0
    shown = capsys.readouterr().out
    assert "best_of_n" in shown
    assert "4  " not in shown.splitlines()[4]


GUIDES = {
    "protein": """
        --gpu_ids 0 1 2
        --num_samples 10 --sample_length 100 --gpu_ids 0 1 2 3 --branch_counts 2 4 8 16
        --experiment quick_test
        --experiment comprehensive
        --run-all
        --gpu_ids 0 1 --num_samples 2 --branch_counts 2 4
        --gpu_ids 0 1 2 --num_samples 8 --sample_length 100 --branch_counts 2 4 8 16
        --gpu_ids 0 1 2 --noise_scale 0.1 --lambda_div 0.3 --branch_counts 2 4 8
        --scoring_function rmsd --branch_interval 0.1
    """,
    "tracin": """
        --model-path model.pt --train train.txt --test test.txt --entity-to-id node_dict.txt \
            --relation-to-id rel_dict.txt --output results.json --use-optimized-tracin --enable-multi-gpu --device cuda
        --use-optimized-tracin --use-mixed-precision --use-torch-compile --enable-multi-gpu --batch-size 512
        --batch-size 128 --use-gradient-checkpointing --disable-test-gradient-caching
        --enable-multi-gpu
        --model-path models/conve/best_model.pt --train data/train.txt --test data/test.txt \
            --entity-to-id data/node_dict.txt --relation-to-id data/rel_dict.txt \
            --output results/tracin_multi_gpu.json --use-optimized-tracin --use-mixed-precision \
            --use-torch-compile --enable-multi-gpu --batch-size 512 --device cuda
    """,
    "tracin-batch": """
        --test-triples test_list.txt --model-path model.pt --train train.txt --entity-to-id node_dict.txt \
            --relation-to-id rel_dict.txt --output-dir results/ --use-optimized-tracin --use-mixed-precision \
            --enable-multi-gpu
    """,
    "training": """
        --config multi_gpu --output_dir multi_gpu_results --log_level INFO --world_size 4 --backend nccl
        --config minimal --world_size 2 --output_dir test_results
        --config full_dataset --world_size 4 --output_dir full_results
    """,
}
LINES = [
    (name, line.strip())
    for name, text in GUIDES.items()
    for line in text.replace("\\\n", "").splitlines()
    if line.strip()
]


def _with_separator(word: str, separator: str) -> str:
    """An option with dashes, or with underscores, between its words."""
    return f"--{re.sub('[-_]', separator, word[2:])}" if word.startswith("--") else word


@pytest.mark.parametrize("separator", ["-", "_"])
@pytest.mark.parametrize(("name", "line"), LINES)
def test_the_command_lines_of_the_guides_are_understood(
    name: str, line: str, separator: str, capsys: pytest.CaptureFixture[str]
) -> None:
    workload, _, verb = name.partition("-")
    found = WORKLOADS[workload].verbs[verb] if verb else WORKLOADS[workload]
    request = parse(found, [_with_separator(word, separator) for word in shlex.split(line)], "mgpu-nb")
    (config, *more) = request.configs.values()
    assert bool(more) == ("--run-all" in line)
    assert isinstance(config, found.config)
    wanted = {
        "--gpu_ids 0 1 2 3": ("gpu_ids", (0, 1, 2, 3)),
        "--experiment comprehensive": ("branch_counts", (2, 4, 8, 16)),
        "--noise_scale 0.1": ("noise_scale", 0.1),
        "--test-triples test_list.txt": ("test", "test_list.txt"),
        "--batch-size 512": ("batch_size", 512),
        "--disable-test-gradient-caching": ("cache_test_gradients", False),
        "--use-mixed-precision": ("use_mixed_precision", True),
        "--output-dir results/": ("output_dir", "results/"),
        "--backend nccl": ("distributed_backend", "nccl"),
        "--config full_dataset": ("columns", 4096),
    }
    for part, (option, value) in wanted.items():
        if part in line:
            assert getattr(config, option) == value
    said = capsys.readouterr().err
    for always in ("--use-optimized-tracin", "--enable-multi-gpu", "--use-gradient-checkpointing"):
        assert (f"{always.replace('-', '_').replace('__', '--')}: always so" in said) == (always in line)


def test_a_device_can_be_named_in_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--device", "cpu"], ["--device=cpu"]):
        (config,) = parse(WORKLOADS["tracin"], words, "mgpu-nb").configs.values()
        assert config.gpu_ids == "cpu"
    files = "--test-triples=a --train b --entity_to_id c --relation_to_id d --model_path e"
    (config,) = parse(WORKLOADS["tracin"], files.split(), "mgpu-nb").configs.values()
    assert config.test == "a"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["protein", "--preset", "quick_tset"], "did you mean 'quick_test'"),
        (["protein", "--branch_counts", "0"], "branch_counts"),
        (["protein", "--sample_length", "3"], "sample_length"),
        (["protein", "--gpu_ids", "77"], "77"),
        (["protein", "--num_sample", "3"], "--num_samples"),
        (["protien"], "did you mean 'protein'"),
        (["protein", "trian"], "did you mean 'train'"),
        (["training", "chek"], "did you mean 'check'"),
        (["repotr", "here"], "did you mean 'report'"),
        (["report", "no/such/folder"], "is not a run's folder"),
        (
            ["report", __file__],
            "test_cli.py is a file, not a run's folder: give the folder that holds its journal",
        ),
        (["runs", "no/such/folder"], "is not a folder"),
        (["slurm", "tracni"], "did you mean 'tracin'"),
        (["slurm", "protein", "--ranks_per_node", "2", "--gpus_per_node", "2"], "protein is one process"),
        (
            ["protein", "--cluster", "slurm", "--detach"],
            "mgpu-nb slurm protein --submit has a job run all of this",
        ),
        (["watch", "--interval", "0"], "--interval must be a finite number > 0, got 0.0"),
        (["watch", "--intervall", "1"], "did you mean --interval?"),
        (["runs", "--nonsense"], "there is no option --nonsense; the command has none"),
        (["report", "--sav", "x"], "there is no option --sav; did you mean --save?"),
        (["tracin", "--train", "x"], "--test, --entity_to_id, --relation_to_id missing: give all files"),
        (["devices", "--nonsense"], "there is no option --nonsense; the command has none but --help"),
        (["protein", "--gpu_ids", "0", "1"], "--gpu_ids 0 1, but there is no GPU to use"),
        (["protein", "--gpu-ids", "0", "1"], "Use --slots 2 for virtual CPU devices"),
        (["train", "--gpu-ids", "0", "1"], "Use --world_size 2 for virtual CPU devices"),
        (
            ["slurm", "protein", "--nodess", "2"],
            "there is no option --nodess; did you mean --nodes?",
        ),
        (
            ["slurm", "training", "--sbatch", "--mail-type=END"],
            "(a directive is given without dashes, as --sbatch mail-type=END",
        ),
        (
            ["slurm", "protein", "--launcher", "torchrun"],
            "give --ranks_per_node 1 and --launcher srun",
        ),
        (["tracin", "--device", "gpu"], "--device must be one of cuda, cpu, got 'gpu'"),
        (["protein", "--methods", "standrd"], "--methods must be one of standard"),
    ],
)
def test_bad_input_is_a_line_and_not_a_traceback(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(arguments) == 2
    said = capsys.readouterr().err
    assert words in " ".join(said.split())
    assert "Traceback" not in said


def test_usage_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    shown = capsys.readouterr().out
    for line in (
        "protein train",
        "tracin batch",
        "training check",
        "devices",
        "watch",
        "report",
        "runs",
        "slurm",
    ):
        assert any(part.startswith(f"  {line} ") for part in shown.splitlines())
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mgpu-nb {mgpu_nb.__version__}\n"


@pytest.mark.parametrize(
    "words", [["protein"], ["tracin", "batch"], ["tracin-train"], ["train"], ["training", "check"], ["runs"]]
)
def test_help_is_in_whole_sentences(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([*words, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ("--preset" in shown) == (words in (["protein"], ["train"]))
    if words == ["protein"]:
        assert "--preset {quick_test,comprehensive,sde_focused,ode_focused}" in shown
    if words == ["train"]:
        assert "(default: multi_gpu)" in shown
    for python in ("Raises", "ValueError", "{None}", "NoneType"):
        assert python not in shown
    assert ("--no_resume a new run starts in a new folder below output_dir" in shown) == (words != ["runs"])


def test_devices_and_watch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert "cpu:0" in shown
    assert main(["watch", "--times", "2", "--interval", "0.01"]) == 0
    assert capsys.readouterr().out.count("memory") >= 2


def test_gpus_that_are_named_replace_the_slots_of_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protein", "--preset", "quick_test", "--gpu_ids", "0", "1", "2"]) == 2
    said = capsys.readouterr().err
    assert "already" not in said  # this machine has no GPU, and that is all there is to say
    assert "GPU" in said


def test_the_freest_gpus_are_taken_on_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = gpus("NVIDIA L4", "NVIDIA L4", "NVIDIA L4")
    cards[0].used, cards[0].compute = 30 * GIB, [(os.getppid(), 30 * GIB)]
    install(monkeypatch, cards)
    taken = []

    def start(workload: Workload, config: object, pool: GPUPool | None = None, **options: bool) -> None:
        with pool or GPUPool(slots=2) as pool:
            taken.append([slot.gpu_id for slot in pool.slots])
        raise ValueError("this is no machine with GPUs")

    monkeypatch.setattr("mgpu_nb.workloads.command.start", start)
    for words in (["--slots", "2", "--pick", "free"], ["--slots", "2"]):
        with (
            contextlib.nullcontext() if "--pick" in words else pytest.warns(UserWarning, match="pick='free'")
        ):
            assert main(["protein", *words, "--output_dir", str(tmp_path)]) == 2
    assert main(["train", "--world_size", "1", "--pick", "free"]) == 2
    assert taken == [[1, 2], [0, 1], [1]]
    assert main(["protein", "--gpu_ids", "0", "--pick", "free"]) == 2
    said = capsys.readouterr().err
    assert "--gpu_ids and --pick free both choose devices" in said


def test_what_fails_is_told_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fails.py"
    path.write_text("def make():\n    import os\n    os._exit(3)\n")
    sys.path.insert(0, str(tmp_path))
    try:
        arguments = [*SMALL.split(), "--model", "fails:make", "--output_dir", str(tmp_path / "run")]
        assert main(["protein", *arguments]) == 1
    finally:
        sys.path.remove(str(tmp_path))
    said = capsys.readouterr()
    assert "2 of 2 experiments failed" in said.out
    assert "standard-b1: killed" in said.err
    assert f"To go on: mgpu-nb protein {SMALL} --model fails:make --output_dir {tmp_path / 'run'}" in said.err


@pytest.mark.slow
def test_what_tasks_return_sends_no_escape_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;title\x07\x1b[2J"
    with GPUPool(slots=1) as pool:
        tasks = [Task(str, evil + "text", name=f"a{evil}"), Task(int, evil, name="b")]
        pool.run(tasks, folder=tmp_path / "run").wait(60)
    for words in (
        ["report", str(tmp_path / "run")],
        ["runs", str(tmp_path)],
        ["report", f"{tmp_path}/{evil}"],
    ):
        main(words)
        said = capsys.readouterr()
        assert "\x1b" not in said.out + said.err
        assert "\x07" not in said.out + said.err


@pytest.mark.slow
def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    options = "--slots 1 --num_samples 1 --sample_length 20 --branch_counts 2 3 4 5 6 7 8 --methods best_of_n"
    command = [*PROGRAM, "protein", *options.split(), "--no_resume", "--output_dir", "out"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    journal, end = tmp_path / "out" / "journal.jsonl", time.monotonic() + 60
    while not journal.exists() or journal.read_text().count('"event": "record"') < 1:
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    shown, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert re.search("(Best|Highest mean): best_of_n", shown)  # of one sample no error is known
    assert re.search(r"protein: interrupted, \d of 7 tasks done", said)
    assert not re.search(r"\d failed|experiments failed", said)
    (line,) = [line for line in said.splitlines() if "To go on: " in line]
    assert "Traceback" not in said
    again = shlex.split(line.partition("To go on: ")[2])
    assert again == ["mgpu-nb", "protein", *options.split(), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run([*PROGRAM, *again[1:]], cwd="/", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(mgpu_nb.Run.open(tmp_path / "out").records) == 7


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["true", "head -1"])
@pytest.mark.parametrize(
    "words", ["protein --help", "devices", "--help", "runs {folder}", "slurm train --help"]
)
def test_a_closed_pipe_is_quiet(tmp_path: Path, words: str, reader: str) -> None:
    for n in range(3):
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / "journal.jsonl").write_text("damaged\n" * 2000)
    line = f"{shlex.join(PROGRAM)} {words.format(folder=tmp_path)} | {reader}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    damaged = [
        line for line in done.stderr.splitlines() if line.startswith("mgpu-nb: ") and "journal" in line
    ]
    assert damaged == done.stderr.splitlines()


def test_a_job_of_any_workload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        main(["slurm", "protein", "--preset", "quick_test", "--gpus-per-node", "2", "--time", "0:30:00"]) == 0
    )
    script = (tmp_path / "protein.sbatch").read_text()
    assert "#SBATCH --gpus-per-node=2" in script
    assert "#SBATCH --ntasks-per-node=1" in script
    called = f"python -m mgpu_nb protein --preset quick_test --output_dir {tmp_path}/protein_results"
    assert script.splitlines()[-1].endswith(called)
    assert (tmp_path / "protein_results").is_dir()
    assert (
        main(["slurm", "tracin", "batch", "--max_triples", "2", "--output_dir", "out", "--script", "b"]) == 0
    )
    assert (
        (tmp_path / "b")
        .read_text()
        .splitlines()[-1]
        .endswith("python -m mgpu_nb tracin batch --max_triples 2 --output_dir out")
    )
    assert main(["slurm", "train", "--config", "minimal", "--nodes", "2", "--script", "t"]) == 0
    assert "python -m mgpu_nb.workloads.training --config minimal" in (tmp_path / "t").read_text()
    assert "sbatch t" in capsys.readouterr().out
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho no >&2\nexit 1\n")
    sbatch.chmod(0o755)
    assert main(["slurm", "protein", "--script", "p", "--submit"]) == 1
    assert "sbatch refused p: no" in capsys.readouterr().err
