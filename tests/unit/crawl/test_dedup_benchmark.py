"""The estimate for a whole Common Crawl snapshot follows from measured rates."""

import pytest

from benchmarks import dedup


def test_the_model_of_a_snapshot_follows_from_rates_by_hand():
    """A thousand texts on one core: two bands fit in memory, so four bands take two passes."""
    rates = {
        "signatures_per_s_core": 100.0,
        "bands_per_s_core": 4_000.0,
        "compared_per_s_core": 1_000.0,
        "read_per_s_core": 2_000.0,
        "pages_per_s_one_process": 500.0,
        "bytes_per_signature": 2**20,
    }
    pages = round(1_000 / dedup.KEPT)
    memory_gib = (2_000 + 1) * dedup.BYTES_PER_BAND / 2**30
    found = dedup.plan(pages, 1, 1, memory_gib, rates, 4)
    assert found["texts"] == pytest.approx(1_000, abs=1)
    assert found["passes"] == 2
    assert found["hours"] * 3600 == pytest.approx(10 + 1 + 1 + 2 * 0.5, rel=0.01)
    assert found["one_process_hours"] * 3600 == pytest.approx(pages / 500)
    assert found["disk_gib"] == pytest.approx(1_000 / 1024, rel=0.01)
    assert dedup.plan(pages, 2, 1, memory_gib, rates, 4)["passes"] == 1, (
        "two machines have twice the memory"
    )
