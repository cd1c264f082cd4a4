"""`octavo serve --config FILE`: options of a file, below the command line's; what is wrong, by file, line and key."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.base.config.config import ServerConfig
from octavo.base.config.options import options
from octavo.base.errors import ConfigError, UnsupportedError
from octavo.cli import doctor, serve
from octavo.cli.config_file import with_file
from octavo.cli.flags import take_model


def read(path: Path, text: str, *arguments: str) -> dict[str, Any]:
    path.write_text(text)
    parser = serve.make_parser("serve", "")
    return with_file(parser, parser.parse(["--config", str(path), *arguments]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "served.yaml"


VLLM = """\
# as in vLLM's docs
model: some/model
host: "127.0.0.1"
port: 6379
uvicorn-log-level: "info"
served_model_name: [a, b]
api-key:
  - sk-1
  - --sk-2
max-model-len: 4k
dtype: half
gpu_memory_utilization: 0.5
enable-prefix-caching: false
enforce_eager: true
hf-overrides: {rope_scaling: {type: linear, factor: 2}}
tensor-parallel-size: 1
trust-remote-code: false
disable_log_stats: true
tokenizer: null
"""


def test_options_of_a_file(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "octavo"):
        values = read(path, VLLM)
    assert take_model(values) == "some/model"
    del values["debug"]
    assert values == {
        "host": "127.0.0.1",
        "port": 6379,
        "served_model_name": ["a", "b"],
        "api_key": ["sk-1", "--sk-2"],
        "max_model_len": 4000,
        "dtype": "half",
        "gpu_memory_utilization": 0.5,
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "hf_overrides": {"rope_scaling": {"type": "linear", "factor": 2}},
    }


def test_the_command_line_wins(path: Path) -> None:
    values = read(path, VLLM, "other", "--port", "1",
                  "--served-model-name", "c", "--no-enforce-eager", "--hf-overrides.a", "1")  # fmt: skip
    assert take_model(values) == "other"
    assert (values["port"], values["served_model_name"], values["enforce_eager"]) == (1, ["c"], False)
    assert values["hf_overrides"] == {"a": 1}
    assert take_model(read(path, "model: m\n", "--model", "n")) == "n"


def test_json_and_nothing(path: Path) -> None:
    assert read(path, '{"model": "m", "port": 9}')["port"] == 9
    assert take_model(read(path, "# nothing\n", "m")) == "m"


def test_every_server_option_can_stand_in_a_file(path: Path) -> None:
    for name, option in options(ServerConfig).items():
        shown = {"list": '["x"]', "bool": "true", "object": '{"a": 1}', "str": "x", "choice": str(option.choices[:1])}
        text = shown.get(option.kind, "3") if option.kind != "choice" else str(option.choices[0])
        assert name in read(path, f"{name}: {text}\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "model: m\nmax-modle-len: 3\n",
            r"line 2: max-modle-len: unknown option --max-modle-len; did you mean --max-m",
        ),
        ("port: many\n", r"line 1: port: argument --port: invalid whole number value: 'many'"),
        ("port: [1, 2]\n", r"line 1: port: argument --port: invalid whole number"),
        ("port: true\n", r"line 1: port: argument --port: expected one argument"),
        ("dtype: [a\n", r"not valid YAML: .*line 2"),
        ("- model\n", r"`name: value`"),
        ("1: 2\n", r"`name: value`"),
        ("port: 1\nport: 2\n", r"line 2: port is there twice"),
        ("max-num-seqs: 1\nmax_num_seqs: 2\n", r"line 2: max_num_seqs is there twice"),
        ("--port: 1\n", r"line 1: --port is no option; options are named without dashes"),
        ("config: other.yaml\n", r"line 1: config is no option"),
        ("hf-overrides: &a {port: 1}\n<<: *a\n", r"line 2: << is no option"),
        ("a: !!python/object/apply:os.system [id]\n", r"not valid YAML: .*could not determine a constructor"),
        ("hf_overrides: &a {b: *a}\n", r"line 1: hf_overrides: Circular"),
    ],
)
def test_what_is_wrong_is_named(path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read(path, text)
    assert caught.value.message.startswith(f"--config {path}")


def test_options_of_vllm_alone_are_refused_by_the_files_line(path: Path) -> None:
    with pytest.raises(UnsupportedError, match="line 2: ssl_keyfile: --ssl-keyfile='k' is not supported"):
        read(path, "port: 1\nssl_keyfile: k\n")
    path.write_text("port: x")
    with pytest.raises(ConfigError, match="line 1: port"):
        doctor.main(["--config", str(path)])
    with pytest.raises(ConfigError, match="No such file"):
        serve.main(["--config", str(path.parent / "none.yaml")])


def test_a_file_is_utf8_whatever_the_locale(path: Path) -> None:
    path.write_text("served_model_name: [größe]\n", "utf-8")
    code = f"""
from pathlib import Path
from octavo.cli import serve
from octavo.cli.config_file import with_file
parser = serve.make_parser("serve", "")
print(ascii(with_file(parser, parser.parse(["--config", {str(path)!r}]))["served_model_name"]))
"""
    plain = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    found = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=False)
    assert found.stdout.strip() == r"['gr\xf6\xdfe']", found.stderr
