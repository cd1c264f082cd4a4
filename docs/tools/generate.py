"""The parts of README and docs that are made from the registries. `make docs` writes them, a test compares.

`python docs/tools/generate.py` rewrites the files; `blocks()` and `configuration()` give the texts.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "parity")]

import encoders  # noqa: E402
import msgspec  # noqa: E402
from checkpoints import CASES  # noqa: E402
from drive import BACKENDS  # noqa: E402

from octavo.base.config import config, env  # noqa: E402
from octavo.base.config.options import Option, options  # noqa: E402
from octavo.models.registry import families  # noqa: E402
from octavo.quant import dequantize  # noqa: E402, F401  (registers the formats)
from octavo.quant.scheme import DEQUANTIZERS  # noqa: E402
from octavo.weights.quantization import METHODS  # noqa: E402

TITLES = {"model": "Model", "device": "Device", "cache": "Cache", "scheduler": "Scheduler", "server": "Server"}
HEAD = "<!-- made by docs/tools/generate.py: change the source named there, then run `make docs` -->"


def models_table() -> str:
    """Family x backend: ticked where tests/parity compares the two with Transformers."""
    rows = ["| family (`model_type`) | " + " | ".join(BACKENDS) + " |", "|---|" + "---|" * len(BACKENDS)]
    for family in families():
        cases = [name for name in (*CASES, *encoders.CASES) if name == family or name.startswith(f"{family}_")]
        ticks = ["✓" if cases else "untested"] * len(BACKENDS)
        rows.append(f"| `{family}` | " + " | ".join(ticks) + " |")
    return "\n".join(rows)


def formats_line() -> str:
    """The stored number formats that both backends read."""
    formats = ", ".join(f"`{name}`" for name in DEQUANTIZERS)
    methods = ", ".join(f"`{name}`" for name in METHODS)
    return (
        f"Number formats, on every backend: {formats}. Quantized safetensors, by `quant_method`: {methods} "
        "([which of them](docs/quantization.md))."
    )


def blocks() -> dict[str, str]:
    """README's generated parts by the name in their markers."""
    return {"models": f"{models_table()}\n\n{formats_line()}"}


def with_blocks(text: str) -> str:
    """The text with each generated part between its `<!-- name -->` markers renewed."""
    for name, block in blocks().items():
        before, _, rest = text.partition(f"<!-- {name} -->")
        _, _, after = rest.partition(f"<!-- /{name} -->")
        text = f"{before}<!-- {name} -->\n{block}\n<!-- /{name} -->{after}"
    return text


def configuration() -> str:
    """docs/configuration.md: every option and environment variable."""
    parts = [
        HEAD,
        "# Configuration",
        "",
        "Flags of `octavo serve` (with dashes), arguments of `LLM` (with underscores). "
        "An object is given as JSON, or key by key: `--hf-overrides.rope_theta 1e6`. "
        "A whole number may end in k, m, g (8k: 8,000) or K, M, G (8K: 8,192). "
        "`octavo serve --config FILE` reads options from a YAML file, as vLLM does: a key for each, `model: smollm2` "
        "among them; lists, switches (`enforce_eager: true`) and objects as YAML has them. The command line wins.",
        "",
        "An option of vLLM's that is not listed here passes where its value asks for nothing "
        "(`--tensor-parallel-size 1`). Any other value is refused by name, with what to do instead, but for options "
        "that would change no answer (`--swap-space 4`): those have no effect, and a warning says so.",
    ]
    structs: dict[str, type[msgspec.Struct]] = {**config.PARTS, "server": config.ServerConfig}
    for name, struct in structs.items():
        parts += ["", f"## {TITLES[name]}", "", "| name | values | default | meaning |", "|---|---|---|---|"]
        parts += [_option_row(option) for option in options(struct).values()]
    parts += ["", "## Environment", "", "| variable | meaning |", "|---|---|"]
    parts += [f"| `{name}` | {text} |" for name, text in env.VARIABLES.items()]
    return "\n".join(parts) + "\n"


def _option_row(option: Option) -> str:
    values = " ".join(f"`{choice}`" for choice in option.choices) if option.choices else option.kind
    default = "required" if option.required else f"`{option.default}`"
    return f"| `{option.name}` | {values} | {default} | {option.description} |"


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(with_blocks(readme.read_text()))
    (ROOT / "docs" / "configuration.md").write_text(configuration())


if __name__ == "__main__":
    main()
