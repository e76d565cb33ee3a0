"""Times of records, for tests that compare them."""

from mgpu_nb import Record


def span(record: Record) -> tuple[float, float]:
    """Start and end of a task that has run, in seconds since the epoch."""
    assert record.started is not None
    assert record.finished is not None
    return record.started, record.finished
