"""`octavo bench latency|throughput|startup` on a small model; datasets, figures, charts and mistakes of all four."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.api.build import open_text
from octavo.base.config.config import EngineConfig, ModelConfig
from octavo.base.errors import ConfigError, UnsupportedError
from octavo.base.types.output import RequestOutput
from octavo.cli import main
from octavo.cli.bench import BENCHMARKS, figures, plot, startup, throughput
from octavo.cli.bench.datasets import Sample, Texts, make_samples
from octavo.cli.bench.options import DatasetOptions

SMALL = ["--device", "cpu", "--threads", "1", "--kv-cache-memory-bytes", "2M"]
PNG = b"\x89PNG"


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_every_benchmark_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"octavo bench {name}" in shown
    assert "--plot" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["latence"], "did you mean latency?"),
        (["sweep"], "bench sweep is not supported: call octavo bench serve"),
        (["latency"], "name a model"),
        (["latency", "m", "--batch-siz", "3"], "did you mean --batch-size?"),
        (["latency", "m", "--batch-size", "0"], "batch_size=0"),
        (["latency", "m", "--use-beam-search"], "--use-beam-search=True is not supported"),
        (["latency", "m", "-tp", "2"], "--tensor-parallel-size=2 is not supported"),
        (["latency", "m", "--output-json", "/nowhere/x.json"], "/nowhere does not exist"),
        (["latency", "m", "--plot", "chart.jpeg"], ".png, .svg, .pdf"),
        (["throughput", "m", "--backend", "hf"], "--backend='hf' is not supported"),
        (["throughput", "m", "--dataset-name", "sonnet"], "must be one of custom, prefix_repetition, random"),
        (["throughput", "m", "--async-engine"], "octavo bench serve"),
        (["throughput", "m", "--prefix-len", "5"], "--random-prefix-len"),
        (["startup", "/nowhere"], "/nowhere"),
        (["serve", "--lora-modules", "x"], "--lora-modules='x' is not supported"),
        (["serve", "--plot-timeline"], "say --plot FILE"),
        (["serve", "--backend", "openai-audio"], "must be one of openai, openai-chat, vllm"),
        (["serve", "--request-rate", "0"], "request_rate=0.0"),
        (["serve", "--metric-percentiles", "50,101"], "0 to 100"),
        (["serve", "--percentile-metrics", "ttft,speed"], "'speed' must be of ttft"),
        (["serve", "--goodput", "itl:5"], "'itl:5' must be NAME:MILLISECONDS"),
        (["serve", "--metadata", "version"], "'version' must be KEY=VALUE"),
        (["serve", "--ramp-up-start-rps", "1"], "need --ramp-up-strategy"),
        (["serve", "--ramp-up-strategy", "linear", "--request-rate", "3"], "one of the two"),
        (["serve", "--ramp-up-strategy", "linear", "--ramp-up-start-rps", "3"], "--ramp-up-end-rps"),
        (["serve", "--port", "1"], "start a server there"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.strip().splitlines()
    assert line.startswith("octavo bench: ")
    assert words in line


def test_a_chart_without_matplotlib_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'octavo\[plot\]'"):
        plot.check("chart.png")


def test_percentiles_are_numpys() -> None:
    rng = random.Random(3)
    for count in (1, 2, 7, 100):
        values = [rng.random() for _ in range(count)]
        for percent in (0, 10, 50, 99, 99.5, 100):
            assert figures.percentile(values, percent) == pytest.approx(np.percentile(values, percent))
        assert figures.mean(values) == pytest.approx(np.mean(values))
        assert figures.deviation(values) == pytest.approx(np.std(values))
    assert (figures.percentile([], 50), figures.mean([]), figures.deviation([])) == (0, 0, 0)


def charts() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def chart(path: Path) -> list[str]:
    return ["--plot", str(path)] if charts() else []


def check_chart(path: Path) -> None:
    assert not charts() or path.read_bytes().startswith(PNG)


def test_latency(llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [
        "--input-len",
        "6",
        "--output-len",
        "5",
        "--batch-size",
        "3",
        "--num-iters-warmup",
        "1",
        "--num-iters",
        "4",
    ]
    files = ["--output-json", str(tmp_path / "r.json"), *chart(tmp_path / "c.png")]
    assert main(["bench", "latency", llama, *sizes, *files, *SMALL]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert set(result) == {"model_id", "avg_latency", "std_latency", "latencies", "percentiles"}
    assert result["model_id"] == llama
    assert len(result["latencies"]) == 4
    assert list(result["percentiles"]) == ["10", "25", "50", "75", "90", "99"]
    assert result["avg_latency"] == pytest.approx(np.mean(result["latencies"]))
    assert f"Avg latency: {result['avg_latency']} seconds" in capsys.readouterr().out
    check_chart(tmp_path / "c.png")


def test_latency_refuses_what_the_context_would_cut(llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "latency", llama, "--input-len", "250", "--output-len", "7", *SMALL]) == 2
    assert "do not fit max_model_len=256" in capsys.readouterr().err


def test_throughput(llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load = ["--num-prompts", "5", "--input-len", "8", "--output-len", "6", "--n", "2", "--num-warmups", "1"]
    files = ["--output-json", str(tmp_path / "r.json"), *chart(tmp_path / "c.png")]
    assert main(["bench", "throughput", "--model", llama, *load, *files, *SMALL]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["model_id"], result["num_requests"], result["failed"]) == (llama, 5, 0)
    assert (result["total_prompt_tokens"], result["total_output_tokens"]) == (40, 60)
    assert result["total_num_tokens"] == 100
    assert result["requests_per_second"] == pytest.approx(5 / result["elapsed_time"])
    assert result["tokens_per_second"] == pytest.approx(100 / result["elapsed_time"])
    assert f"Throughput: {result['requests_per_second']:.2f} requests/s" in capsys.readouterr().out
    check_chart(tmp_path / "c.png")


def test_warmups_leave_nothing_in_the_prefix_cache(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cached: list[int] = []

    def note(outputs: list[RequestOutput], elapsed: float) -> dict[str, Any]:
        cached.extend(output.num_cached_tokens for output in outputs)
        return summarise(outputs, elapsed)

    summarise = throughput.summarise
    monkeypatch.setattr(throughput, "summarise", note)
    load = ["--num-prompts", "4", "--input-len", "40", "--output-len", "2", "--num-warmups", "4"]
    assert main(["bench", "throughput", llama, *load, *SMALL]) == 0
    assert cached == [0] * 4


def test_throughput_over_a_file(llama: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Hello"}\n\n{"prompt": "The quick brown fox"}\n')
    where = ["--dataset-name", "custom", "--dataset-path", str(path), "--num-prompts", "3", "--output-len", "4"]
    assert main(["bench", "throughput", llama, *where, "--output-json", str(tmp_path / "r.json"), *SMALL]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["total_output_tokens"] == 12


def test_startup(llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    starts = ["--num-iters-cold", "1", "--num-iters-warmup", "0", "--num-iters-warm", "1"]
    files = ["--output-json", str(tmp_path / "r.json"), *chart(tmp_path / "c.png")]
    assert main(["bench", "startup", llama, *starts, *files, *SMALL]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["model_id"] == llama
    for phase in ("cold", "warm"):
        for name in ("startup", "compilation", "first_token"):
            assert len(result[f"{phase}_{name}_times"]) == 1
            assert result[f"avg_{phase}_{name}_time"] == result[f"{phase}_{name}_percentiles"]["50"]
        assert 0 < result[f"avg_{phase}_startup_time"] < result[f"avg_{phase}_first_token_time"]
    assert "COLD STARTUP" in capsys.readouterr().out
    check_chart(tmp_path / "c.png")


def test_a_start_that_fails_tells_why(tmp_path: Path) -> None:
    config = EngineConfig(model=ModelConfig(model=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"does not start \(exit code 2\): .*config.json"):
        startup.start_once(config, {})


def samples(llama: str, *, as_ids: bool = True, seed: int = 0, **more: Any) -> list[Sample]:
    tokenizer, template = open_text(llama)
    render = None if template is None else template.render_ids
    return make_samples(DatasetOptions(**more), Texts(tokenizer, render, as_ids=as_ids), seed=seed)


def test_random_prompts_are_exact_and_repeatable(llama: str) -> None:
    tokenizer, _ = open_text(llama)
    asked = {"num_prompts": 20, "random_input_len": 12, "random_output_len": 8, "random_prefix_len": 3}
    found = samples(llama, **asked)
    assert found == samples(llama, **asked)
    assert found != samples(llama, **asked, seed=1)
    assert {(len(one.prompt), one.prompt_len, one.output_len) for one in found} == {(15, 15, 8)}
    assert len({tuple(one.prompt[:3]) for one in found}) == 1
    assert len({tuple(one.prompt) for one in found}) == 20
    assert not set(tokenizer.special_ids().values()) & {token for one in found for token in one.prompt}
    spread = samples(llama, **{**asked, "num_prompts": 200}, random_range_ratio=0.5)
    assert {one.output_len for one in spread} == set(range(4, 13))
    assert {one.prompt_len for one in spread} == set(range(9, 22))


def test_random_texts_count_as_asked(llama: str) -> None:
    tokenizer, _ = open_text(llama)
    found = samples(llama, as_ids=False, num_prompts=30, input_len=40)
    lengths = [len(tokenizer.encode(str(one.prompt))) for one in found]
    assert lengths == [one.prompt_len for one in found]
    assert sum(length == 40 for length in lengths) > 25


def test_prefix_repetition(llama: str) -> None:
    found = samples(
        llama,
        dataset_name="prefix_repetition",
        num_prompts=12,
        prefix_repetition_prefix_len=5,
        prefix_repetition_suffix_len=4,
        prefix_repetition_num_prefixes=3,
        prefix_repetition_output_len=2,
    )
    assert {(one.prompt_len, one.output_len) for one in found} == {(9, 2)}
    assert len({tuple(one.prompt[:5]) for one in found}) == 3


def test_sharegpt(llama: str, tmp_path: Path) -> None:
    long, short = "many words here " * 4, "x"
    rows = [
        {"conversations": [{"value": f"{number} {long}"}, {"value": answer}]}
        for number, answer in enumerate([long, short, long])
    ]
    path = tmp_path / "share.json"
    path.write_text(json.dumps([*rows, {"conversations": [{"value": long}]}, {"conversations": 5}]))
    asked = {"dataset_name": "sharegpt", "dataset_path": str(path), "num_prompts": 4}
    tokenizer, _ = open_text(llama)
    found = samples(llama, **asked, oversample=False)
    assert sorted(str(one.prompt)[0] for one in found) == ["0", "2"]
    assert {one.output_len for one in found} == {len(tokenizer.encode(long))}
    assert len(samples(llama, **asked)) == 4
    fixed = samples(llama, **asked, oversample=False, output_len=9)
    assert [one.output_len for one in fixed] == [9, 9, 9]


def test_custom_prompts_are_messages_unless_told(llama: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "o\u2028ne"}\r\n{"prompt": "two"}\n', "utf-8", newline="")
    asked = {"dataset_name": "custom", "dataset_path": str(path), "num_prompts": 2, "disable_shuffle": True}
    tokenizer, _ = open_text(llama)
    plain = samples(llama, **asked, skip_chat_template=True)
    assert [one.prompt for one in plain] == ["o\u2028ne", "two"]
    assert [one.prompt_len for one in plain] == [len(tokenizer.encode(text)) for text in ("o\u2028ne", "two")]
    rendered = samples(llama, **asked)
    assert "o\u2028ne" in tokenizer.decode(list(rendered[0].prompt), skip_special_tokens=False)
    assert rendered[0].prompt_len == len(rendered[0].prompt) > plain[0].prompt_len


def test_custom_prompts_bring_their_lengths(llama: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "one", "output_tokens": 7}\n{"prompt": "two", "output_tokens": "9"}\n')
    asked = {"dataset_name": "custom", "dataset_path": str(path), "num_prompts": 2, "disable_shuffle": True}
    assert [one.output_len for one in samples(llama, **asked)] == [256, 256]
    assert [one.output_len for one in samples(llama, **asked, custom_output_len=-1)] == [7, 9]
    assert [one.output_len for one in samples(llama, **asked, custom_output_len=-1, output_len=3)] == [3, 3]
    with pytest.raises(ConfigError, match="--custom-output-len=0"):
        samples(llama, **asked, custom_output_len=0)
    for row in ("{}", '{"output_tokens": 0}', '{"output_tokens": "x"}', '{"output_tokens": [1]}'):
        path.write_text(row.replace("{", '{"prompt": "a", ').replace(", }", "}"))
        with pytest.raises(ConfigError, match=r"p\.jsonl: .*output_tokens"):
            samples(llama, **asked, custom_output_len=-1)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "not JSON"), ("[1]", '"prompt"'), ('{"prompt": 3}', '"prompt"'), ("", "no usable prompt")]
)
def test_bad_files_are_named(llama: str, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        samples(llama, dataset_name="custom", dataset_path=str(path))
    assert words in caught.value.message
    assert str(path) in caught.value.message


def test_datasets_that_lack_something(llama: str) -> None:
    with pytest.raises(ConfigError, match="needs --dataset-path"):
        samples(llama, dataset_name="sharegpt")
    with pytest.raises(ConfigError, match="reads no file"):
        samples(llama, dataset_path="x")
    with pytest.raises(ConfigError, match="cannot be read"):
        samples(llama, dataset_name="custom", dataset_path="/nowhere/x")
    with pytest.raises(ConfigError, match="--skip-tokenizer-init"):
        make_samples(DatasetOptions(), Texts(None), seed=0)


def test_foreign_refusals_are_unsupported() -> None:
    with pytest.raises(UnsupportedError):
        main(["bench", "throughput", "m", "--hf-split", "train", "--debug"])


def test_curves_over_time() -> None:
    times, rates = plot.rate_over_time([(0.0, 2.0), (3.0, 4.0), (6.0, 1.0)])
    width = 6.0 / plot.POINTS
    assert sum(rates) * width == pytest.approx(7.0)
    assert (times[0], times[-1]) == (pytest.approx(width / 2), pytest.approx(6.0 - width / 2))
    assert plot.rate_over_time([]) == ([], [])
    assert plot.running_over_time([(0.0, 2.0), (1.0, 2.0)]) == ([0.0, 0.0, 1.0, 2.0, 2.0], [0, 1, 2, 1, 0])
