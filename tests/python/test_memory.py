"""A verified run drops what nobody reads any more: its peak does not grow with depth. Loading makes one copy."""

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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("case", ["float32 as bfloat16", "bfloat16 as bfloat16", "float32 as float32", "first layer of float32 as bfloat16"])
def test_shards_are_read_straight_into_the_dtype_that_is_asked_for(case, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory_of_loading

    found = memory_of_loading.peak(8, case, tmp_path)
    # One copy, a tensor on its way (6 MiB at most), and what the allocator keeps: a second copy would be 2.
    assert found["peak_mib"] <= 1.1 * found["weights_mib"] + 10, found
