"""lens.doctor: the same report as the program's, as an object."""

import json

import pytest

import lenscpp as lens


@pytest.fixture(scope="module")
def report():
    return lens.doctor()


def test_the_cpu_is_to_be_used(report):
    assert isinstance(report, lens.DoctorReport) and report.usable
    assert report.recommendation["advice"] == "use it"
    assert report["forward"]["status"] == "pass" and report["ioi"]["measured"]["logit_difference"] > 1
    with pytest.raises(KeyError, match="availability"):
        report["nothing"]


def test_it_reads_well(report):
    text = str(report)
    assert text.startswith("cpu in float32, with tiny-ioi\n\navailability  pass  cpu answers")
    assert text.endswith("\nuse it\n  because every run was verified")
    assert report._repr_html_().count("<tr>") == len(report.phases)


def test_it_is_fit_for_json(report):
    document = json.loads(json.dumps(report.to_dict()))
    assert document["recommendation"] == report.recommendation
    assert [p["name"] for p in document["phases"]] == [p["name"] for p in report.phases]


def test_a_missing_device_is_no_error():
    report = lens.doctor("nonsense")
    assert not report.usable and report["availability"]["status"] == "fail"
    assert "nonsense" in report["availability"]["summary"]
    assert {p["status"] for p in report.phases[1:]} == {"skipped"}


@pytest.mark.parametrize(
    "options, error",
    [
        ({"model": "no-such-model"}, FileNotFoundError),
        ({"dtype": "float8"}, ValueError),
        ({"seconds": 0}, ValueError),
        ({"seconds": "long"}, TypeError),
    ],
)
def test_bad_arguments(options, error):
    with pytest.raises(error):
        lens.doctor(**options)
