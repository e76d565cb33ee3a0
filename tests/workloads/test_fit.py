"""The report of the training of a small model."""

import pytest

from mgpu_nb.workloads.fit import MOST_LOSSES, FitReport


@pytest.mark.parametrize("count", [0, 1, MOST_LOSSES, MOST_LOSSES + 1, 100])
def test_a_report_shows_some_losses_and_the_last(count: int) -> None:
    report = FitReport(None, {10 * n: 2.0 - n / 1000 for n in range(count)}, "step", [], "a model")
    shown = str(report)
    assert "a model" in shown
    assert sum(f" {2.0 - n / 1000:.4f}" in shown for n in range(count)) <= MOST_LOSSES
    if count:
        assert f"{2.0 - (count - 1) / 1000:.4f}" in shown
    assert len(report.frame()) == count
