"""lens.run_experiments, merged files, tasks and lens.distributed, as notebooks use them."""

import json
import os
import signal

import pytest
import torch

import lenscpp as lens

CLEAN = "When John and Mary went to the store, John gave the bag to"
CORRUPTED = "When John and Mary went to the store, Mary gave the bag to"
PAIR = {"id": "a", "clean": CLEAN, "corrupted": CORRUPTED, "answer": " Mary", "wrong": " John"}


@pytest.fixture(scope="module")
def model():
    return lens.HookedTransformer.from_pretrained("tiny-ioi")


@pytest.fixture(scope="module")
def task(model):
    return lens.tasks.ioi(model, n=20)


@pytest.fixture(scope="module")
def report(model, task, tmp_path_factory):
    return lens.run_experiments(model, task, tmp_path_factory.mktemp("batch") / "ioi", block=4)


@pytest.fixture(scope="module")
def result(report):
    return report.merge()


def test_reports_what_became_of_it(report, task):
    assert report.complete and report["experiments"] == len(task) and report["refused"] == 0
    assert "shards there" in repr(report)


def test_values_are_those_of_patch_grid(model, task, result):
    grid = result["z"]
    assert grid.shape == (result.n, 4, 4) and grid.over == ("layer", "head") and len(grid) == result.n
    for row in (0, result.n - 1):
        one = task[int(result.index[row])]
        alone = lens.patching.patch_grid(model, one["clean"], one["corrupted"], "z", ("layer", "head"), lens.LogitDiff(one["answer"], one["wrong"]), savings=False)
        scale = abs(alone.clean - alone.corrupted)
        assert (grid[row] - alone.values).abs().max() < 1e-4 * scale
        assert abs(float(result.clean[row]) - alone.clean) < 1e-4 * scale
        assert (grid.normalized[row] - alone.normalized).abs().max() < 1e-3


def test_rows_are_read_by_themselves(result):
    grid = result["resid_pre"]
    every = grid.values
    assert torch.equal(grid[3:7], every[3:7]) and torch.equal(grid[-1], every[-1])
    assert torch.equal(grid[::-2], every.flip(0)[::2]) and torch.equal(grid[2:5, 1], every[2:5, 1])
    assert grid[5:5].shape == (0, *grid.shape[1:])
    with pytest.raises(IndexError, match="out of range"):
        grid[len(grid)]
    assert result.experiments(2, 4) == result.experiments()[2:4]


def test_statistics_are_those_of_the_values(result):
    grid = result["z"]
    effect = grid.values - result.corrupted[:, None, None]
    assert torch.allclose(grid.statistics["mean"], effect.mean(0), atol=1e-12)
    ratio = effect.sum(0) / (result.clean - result.corrupted).sum()
    assert torch.allclose(grid.statistics["ratio_of_means"], ratio, atol=1e-12)
    assert torch.equal(grid.statistics["n"], torch.full((4, 4), float(result.n), dtype=torch.float64))
    top = grid.top
    assert top and top[0]["layer"] == str(int(effect.mean(0).abs().max(1).values.argmax()))
    assert all(abs(a["mean"]) >= abs(b["mean"]) for a, b in zip(top, top[1:]))
    assert 0 <= grid.stability <= 1


def test_goes_to_pandas_and_xarray(result):
    pandas, xarray = pytest.importorskip("pandas"), pytest.importorskip("xarray")
    frame = result["z"].to_dataframe()
    assert len(frame[frame.layer == 1]) == 4  # numbers, where labels are
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 16 and list(frame.columns[:2]) == ["layer", "head"]
    long = result["z"].to_long_dataframe(1, 3)
    assert len(long) == 32 and torch.equal(torch.tensor(long["value"].to_numpy()).reshape(2, 4, 4), result["z"][1:3])
    assert list(result.to_dataframe()["id"]) == [row["id"] for row in result.experiments()]
    array = result["resid_pre"].to_xarray()
    assert isinstance(array, xarray.DataArray) and array.dims == ("experiment", "layer", "pos")
    assert array.attrs["status"] == "VERIFIED"
    picked = array.sel(pos="S2", layer=1).compute()
    column = result["resid_pre"].labels["pos"].index("S2")
    assert torch.equal(torch.tensor(picked.to_numpy()), result["resid_pre"].values[:, 1, column])


def test_plots_show_every_cell(result):
    figure = result.plot("resid_pre")
    assert len(figure.data) == 1 and len(figure.data[0].z) == 4 and "ratio of means" in figure.layout.title.text and "VERIFIED" in figure.layout.title.text
    assert "same sign" in figure.data[0].customdata[0][0]
    assert result["z"].plot("mean").data[0].z is not None
    with pytest.raises(ValueError, match="allowed: mean"):
        result["z"].plot("median")


def test_is_loaded_again(result, report):
    again = lens.load(os.path.join(report.folder, "merged.h5"))
    assert isinstance(again, lens.ExperimentsResult) and torch.equal(again["z"].values, result["z"].values) and again.status == "VERIFIED"
    shard = lens.load(os.path.join(report.folder, "shards", sorted(os.listdir(os.path.join(report.folder, "shards")))[0]))
    assert isinstance(shard, lens.ShardResult) and shard["z_by_layer_head"].shape == (len(shard), 4, 4)
    with pytest.raises(ValueError, match="no grid \"mlp_out\"; there are|no grid .*there are"):
        result["mlp_out"]


def test_takes_a_dataframe_and_token_ids(model, tmp_path):
    pandas = pytest.importorskip("pandas")
    ids = model.to_tokens(CLEAN)[0], model.to_tokens(CORRUPTED)[0]
    frame = pandas.DataFrame([PAIR, {"id": "b", "clean": ids[0], "corrupted": ids[1].tolist(), "answer": " Mary", "wrong": model.to_single_token(" John"), "template": None}])
    merged = lens.run_experiments(model, frame, tmp_path / "out", sites=[("z", ("layer", "head", "pos"))]).merge()
    assert merged.n == 2 and merged["z"].over == ("layer", "head", "pos")
    assert (merged["z"][0] - merged["z"][1]).abs().max() < 1e-4


def test_rejects_with_a_reason(model, tmp_path):
    bad = {**PAIR, "id": "b", "answer": " Mary and"}
    swapped = {**PAIR, "id": "c", "answer": " John", "wrong": " Mary"}
    merged = lens.run_experiments(model, [PAIR, bad, swapped], tmp_path / "out").merge()
    assert merged.reasons == {"not_one_token": 1, "clean_wrong": 1} and merged.n == 1
    assert {one["id"] for one in merged.rejected} == {"b", "c"}


def test_refuses_what_it_cannot_use(model, tmp_path):
    for wrong, error in [("none.jsonl", FileNotFoundError), (PAIR, TypeError), ([3], TypeError), ([{**PAIR, "anwser": 1}], ValueError), ([], ValueError), ([PAIR, PAIR], ValueError)]:
        with pytest.raises(error):
            lens.run_experiments(model, wrong, tmp_path / "out")
    with pytest.raises(ValueError, match="resid_pr"):
        lens.run_experiments(model, [PAIR], tmp_path / "out", sites=["resid_prr"])
    with pytest.raises(TypeError, match="HookedTransformer"):
        lens.run_experiments("tiny-ioi", [PAIR], tmp_path / "out")
    lens.run_experiments(model, [PAIR], tmp_path / "twice")
    with pytest.raises(ValueError, match="holds a batch already"):
        lens.run_experiments(model, [PAIR], tmp_path / "twice")
    assert lens.run_experiments(model, [PAIR], tmp_path / "twice", resume=True)["before"] == 1


def test_is_a_mapping_of_grids(result):
    assert list(result) == ["resid_pre_by_layer_pos", "z_by_layer_head"] and len(result) == 2
    assert "z" in result and "mlp_out" not in result and 3 not in result
    assert {key: grid.key for key, grid in result.items()} == {key: key for key in result}
    for wrong in ([0, 2], ..., None, "a"):
        with pytest.raises(TypeError, match="an int or a slice"):
            result["z"][wrong]


def test_metrics_are_kept_apart(model, tmp_path):
    pairs = [PAIR, {**PAIR, "id": "b", "metric": "prob"}, {**PAIR, "id": "c", "metric": "log_prob"}]
    merged = lens.run_experiments(model, pairs, tmp_path / "out", sites=["head_z"]).merge()
    assert set(merged) == {"z_by_layer_head", "z_by_layer_head_of_prob", "z_by_layer_head_of_log_prob"}
    assert all(int(merged[key].statistics["n"][0, 0]) == 1 for key in merged)
    assert set(merged.to_dataframe()["metric"]) == {"logit_diff", "prob", "log_prob"}


def test_the_error_bar_is_that_of_rounding(model, result):
    assert 0 < result.error_bar < 1e-3
    assert all(abs(cell["mean"]) > result.error_bar for cell in result["resid_pre"].top)


def test_a_batch_keeps_its_experiments(model, task, tmp_path):
    lens.run_experiments(model, task[:4], tmp_path / "out")
    with pytest.raises(ValueError, match="experiments? that are not among these"):
        lens.run_experiments(model, task[:2], tmp_path / "out", resume=True)
    with pytest.raises(ValueError, match="sites"):
        lens.run_experiments(model, task[:4], tmp_path / "out", resume=True, sites=["mlp_out"])
    more = lens.run_experiments(model, task[:8], tmp_path / "out", resume=True)
    assert more.complete and more.merge().n + sum(more["rejected"].values()) == 8


def test_bad_values_name_their_experiment(model, tmp_path):
    for wrong in ({**PAIR, "answer": float("nan")}, {**PAIR, "answer": {1, 2}}, {**PAIR, "clean": "\ud800"}):
        with pytest.raises(ValueError, match="experiment 0"):
            lens.run_experiments(model, [wrong], tmp_path / "out")
    deep: list = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises((ValueError, RecursionError)):
        lens.run_experiments(model, [{**PAIR, "clean": deep}], tmp_path / "out")
    for options in ({"sites": []}, {"block": 0}, {"block": None}, {"block": 10**30}):
        with pytest.raises(ValueError):
            lens.run_experiments(model, [PAIR], tmp_path / "out", **options)
    for sites in (3, [("z", "layer")], [("z", ("layer", "head"), 3)]):
        with pytest.raises(TypeError):
            lens.run_experiments(model, [PAIR], tmp_path / "out", sites=sites)
    for over, what in ((["head"], "layer is missing"), (["layer", "layer"], "twice")):
        with pytest.raises(ValueError, match=what):
            lens.run_experiments(model, [PAIR], tmp_path / "out", sites=[("z", over)])
    with pytest.raises(ValueError, match="empty"):
        lens.run_experiments(model, [PAIR], "")
    assert not (tmp_path / "out").exists()


def test_statistics_take_no_nonsense(report, tmp_path):
    before = open(os.path.join(report.folder, "batch.json"), "rb").read()
    report.merge(tmp_path / "m.h5")
    kept = (tmp_path / "m.h5").read_bytes()
    for options in ({"false_discovery_rate": float("nan")}, {"false_discovery_rate": 2}, {"permutations": 0}, {"resamples": -1}, {"resamples": 10**12}):
        with pytest.raises(ValueError, match="allowed"):
            report.merge(tmp_path / "m.h5", **options)
        assert (tmp_path / "m.h5").read_bytes() == kept
    assert open(os.path.join(report.folder, "batch.json"), "rb").read() == before


def test_a_shard_opened_unverified_says_so(report, tmp_path):
    shard = os.path.join(report.folder, "shards", sorted(os.listdir(os.path.join(report.folder, "shards")))[0])
    assert lens.load(shard).status == "VERIFIED" and lens.load_unverified(shard).status == "UNVERIFIED"


def test_a_fault_is_refused_and_never_merged(model, task, tmp_path):
    with lens.faults.inject("head", hook="blocks.1.attn.hook_z", head=2) as fault:
        report = lens.run_experiments(model, task, tmp_path / "out")
    assert fault.fired and report["refused"] == report["shards"] and "INVALID" in repr(report)
    with pytest.raises(ValueError, match="INVALID"):
        report.merge()


def test_unverified_results_say_so(model, tmp_path):
    merged = lens.run_experiments(model, [PAIR], tmp_path / "out", verify="off").merge()
    assert merged.status == "UNVERIFIED" and "UNVERIFIED" in merged.plot("z").layout.title.text
    with pytest.raises(lens.NotVerified):
        lens.load(tmp_path / "out" / "merged.h5")
    assert lens.load_unverified(tmp_path / "out" / "merged.h5").status == "UNVERIFIED"


def test_stops_at_the_keyboard(model, task, tmp_path):
    def press(done, patches):
        if done > 0:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        lens.run_experiments(model, task, tmp_path / "out", progress=press, block=1)
    assert lens.run_experiments(model, task, tmp_path / "out", resume=True, block=1).complete


def test_tasks_are_lists_of_experiments(model, tmp_path):
    task = lens.tasks.ioi(model, n=4, corruption="abc", names=["Mary", "John", "Tom", "Dan", "Amy", "Xanthippe"])
    assert len(task) == 4 and len(task.dropped) == 1 and "Xanthippe" in task.dropped[0]
    task.save(tmp_path / "t.jsonl")
    assert lens.tasks.read_experiments(tmp_path / "t.jsonl") == list(task)
    assert len(lens.tasks.induction(model, n=3, length=10)) == 3
    with pytest.raises(ValueError, match="years"):
        lens.tasks.greater_than(model, n=3)


@pytest.fixture
def reads_years(tmp_path):
    """A random model whose tokenizer has a token for each two digits, as GPT-2's nearly has."""
    transformers = pytest.importorskip("transformers")
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(b) for b in letters] + [chr(256 + i) for i in range(256 - len(letters))]
    pairs = [f"{n:02d}" for n in (*range(11, 19), *range(11), *range(19, 100))]
    vocab = {symbol: i for i, symbol in enumerate([*symbols, *pairs])}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bpe = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": [f"{a} {b}" for a, b in pairs]}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level, "model": bpe}
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(vocab), n_positions=64, n_embd=32, n_layer=2, n_head=4)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "years")
    (tmp_path / "years" / "tokenizer.json").write_text(json.dumps(tokenizer))
    return lens.HookedTransformer.from_pretrained(tmp_path / "years")


def test_greater_than_asks_for_later_years(reads_years, tmp_path):
    model = reads_years
    task = lens.tasks.greater_than(model, n=6)
    for one in task:
        year = model.to_tokens(one["clean"])[0, one["positions"]["YY"]]
        text = model.to_string([int(year)])
        answers, wrong = ([int(model.to_string([token])) for token in one[which]] for which in ("answer", "wrong"))
        assert min(answers) == int(text) + 1 and max(wrong) == int(text) and len(answers) + len(wrong) == 100
        assert model.to_string(model.to_tokens(one["corrupted"])[0, one["positions"]["YY"]].unsqueeze(0)) == "01"
        assert model.to_tokens(one["clean"])[0, one["positions"]["XX"]] == model.to_tokens(one["clean"])[0, -1]
    merged = lens.run_experiments(model, task, tmp_path / "out", keep_wrong=True, least_difference=0).merge()
    row, one = 0, task[int(merged.index[0])]
    probs = model(one["clean"]).double().softmax(-1)[0, -1]
    assert abs(float(merged.clean[row]) - float(probs[one["answer"]].sum() - probs[one["wrong"]].sum())) < 1e-6
    assert merged["resid_pre"].labels["pos"] == ["XX", "YY", "END"]


def test_patch_grid_takes_positions(model):
    metric = lens.LogitDiff(" Mary", " John")
    every = lens.patching.patch_grid(model, CLEAN, CORRUPTED, "resid_pre", metric=metric)
    some = lens.patching.patch_grid(model, CLEAN, CORRUPTED, "resid_pre", metric=metric, positions=[10, -1])
    assert some.labels["pos"] == [every.labels["pos"][10], every.labels["pos"][14]]
    assert (some.values - every.values[:, [10, 14]]).abs().max() < 1e-4 * abs(every.clean - every.corrupted)
    for wrong, error in [([15], IndexError), ([], ValueError), ([1, 1], ValueError)]:
        with pytest.raises(error):
            lens.patching.patch_grid(model, CLEAN, CORRUPTED, "resid_pre", metric=metric, positions=wrong)


def test_patch_grid_keeps_each_prompts_values(model):
    pairs = [CLEAN, CLEAN.replace("store", "school")], [CORRUPTED, CORRUPTED.replace("store", "school")]
    grid = lens.patching.patch_grid(model, *pairs, "z", ("layer", "head"), lens.LogitDiff(" Mary", " John"))
    assert grid.values_of_prompts.shape == (4, 4, 2)
    assert torch.allclose(grid.values_of_prompts.mean(-1), grid.values, atol=1e-12)
    alone = lens.patching.patch_grid(model, pairs[0][1], pairs[1][1], "z", ("layer", "head"), lens.LogitDiff(" Mary", " John"))
    assert (grid.values_of_prompts[..., 1] - alone.values).abs().max() < 1e-4 * abs(alone.clean - alone.corrupted)


def test_prob_diff_sums_answers(model):
    logits = model("When John and Mary went to the store, John gave the bag to")
    probs = logits.double().softmax(-1)[0, -1]
    ids = {name: model.to_single_token(name) for name in (" Mary", " Tom", " John")}
    metric = lens.ProbDiff([" Mary", " Tom"], " John").resolve(model)
    assert abs(float(metric(logits)) - float(probs[ids[" Mary"]] + probs[ids[" Tom"]] - probs[ids[" John"]])) < 1e-6
    with pytest.raises(ValueError, match="is text"):
        lens.ProbDiff(" Mary", " John")(logits)


# --- many machines ---


@pytest.fixture
def client():
    distributed = pytest.importorskip("dask.distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, distributed.Client(cluster) as client:
        yield client


def test_dask_makes_the_same_folder(model, task, report, client, tmp_path):
    seen = []
    with lens.faults.inject("nan"), pytest.raises(ValueError, match="do not reach workers"):
        lens.distributed.run(task, client, model="tiny-ioi", folder=tmp_path / "out")
    with pytest.raises(TypeError, match="Client"):
        lens.distributed.run(task, None, model="tiny-ioi", folder=tmp_path / "out")
    done = lens.distributed.run(task, client, model="tiny-ioi", folder=tmp_path / "out", block=4, progress=lambda a, b: seen.append((a, b)))
    assert set(done) >= set(report) - {"seconds"} and done["rejected"] == report["rejected"]
    assert done.complete and done["done"] == done["shards"] == report["shards"] and seen[-1] == (report["shards"],) * 2
    assert sorted(os.listdir(tmp_path / "out" / "shards")) == sorted(os.listdir(os.path.join(report.folder, "shards")))
    merged, own = done.merge(), report.merge()
    for site in ("z", "resid_pre"):
        scale = (own.clean - own.corrupted).abs().max()
        assert (merged[site].values - own[site].values).abs().max() < 1e-4 * scale
    assert lens.run_experiments(model, task, tmp_path / "out", resume=True, block=4)["before"] == done["shards"]


def test_dask_goes_on_when_a_worker_is_killed(task, report, client, tmp_path):
    pids = list(client.run(os.getpid).values())

    def kill(done, shards):
        if done == 2:
            os.kill(pids[0], signal.SIGKILL)

    done = lens.distributed.run(task, client, model="tiny-ioi", folder=tmp_path / "out", block=2, progress=kill)
    assert done.complete, done
    names = {shard["name"] for shard in json.load(open(tmp_path / "out" / "batch.json"))["shards"]}
    assert {name.removesuffix(".h5") for name in os.listdir(tmp_path / "out" / "shards")} == names
    assert done.merge().status == "VERIFIED"
