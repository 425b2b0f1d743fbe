"""A verified run drops what nobody reads any more: its peak does not grow with depth."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_peak_of_a_filtered_verified_run_does_not_grow_with_layers(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory_by_depth

    shallow, deep = (memory_by_depth.peak(layers, "one site kept", 384, tmp_path) for layers in (6, 24))
    all_shallow, all_deep = (memory_by_depth.peak(layers, "everything kept", 384, tmp_path) for layers in (6, 24))
    assert shallow["kept"] == deep["kept"] == 1
    assert deep["compared"] > 3.5 * shallow["compared"]
    # 10 %, and 2 MiB for what the allocator keeps.
    assert deep["peak_mib"] <= 1.1 * shallow["peak_mib"] + 2
    # The measure itself sees what is kept.
    assert all_deep["peak_mib"] > 2.5 * all_shallow["peak_mib"]
    assert shallow["peak_mib"] < all_shallow["peak_mib"]
