import json

import pytest

from mgpu_nb.cli import main


def test_protein_with_the_flags_of_the_seed(tmp_path, capsys):
    flags = "--slots 2 --num_samples 1 --sample_length 20 --steps 10 --branch_counts 2 --methods standard best_of_n"
    assert main(["protein", *flags.split(), "--output_dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "best_of_n" in shown
    details = json.loads(next(tmp_path.rglob("detailed_results.json")).read_text())
    assert [(entry["method"], entry["status"]) for entry in details] == [
        ("standard", "ok"),
        ("best_of_n", "ok"),
    ]
    assert len(list(tmp_path.rglob("*.pdb"))) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["protein", "--preset", "quick_tset"], "quick_test"),
        (["protein", "--branch_counts", "0"], "branch_counts"),
        (["protein", "--sample_length", "3"], "sample_length"),
        (["protein", "--gpu_ids", "77"], "77"),
    ],
)
def test_bad_input_is_a_line_and_not_a_traceback(arguments, words, capsys):
    try:
        code = main(arguments)
    except SystemExit as left:  # the parser's own way out
        code = left.code
    assert code == 2
    assert words in capsys.readouterr().err


def test_usage(capsys):
    assert main([]) == 0
    assert main(["protien"]) == 2
    assert "protein-train" in capsys.readouterr().out


def test_gpus_that_are_named_replace_the_slots_of_a_preset(capsys):
    assert main(["protein", "--preset", "quick_test", "--gpu_ids", "0", "1", "2"]) == 2
    said = capsys.readouterr().err
    assert "already" not in said  # this machine has no GPU, and that is all there is to say
    assert "GPU" in said
