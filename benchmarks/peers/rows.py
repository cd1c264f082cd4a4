"""What is compared, as data: model files, pieces of work, targets, and what vLLM was seen to do on the same machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SETTLE = 8  # steps before a decode is timed, so that no prompt is still being read


@dataclass(frozen=True)
class Work:
    """A prompt of `context` tokens to read, or `steps` tokens to add to each of `sequences` of `context` tokens."""

    kind: Literal["prefill", "decode"]
    context: int
    sequences: int = 1
    steps: int = 0

    @property
    def name(self) -> str:
        return f"prefill_{self.context}" if self.kind == "prefill" else f"decode_{self.sequences}"

    @property
    def tokens(self) -> int:
        """How many tokens its seconds are divided by."""
        return self.context if self.kind == "prefill" else self.sequences * self.steps

    @property
    def longest(self) -> int:
        """Positions a sequence needs."""
        return self.context + (1 if self.kind == "prefill" else SETTLE + self.steps)


PREFILL = Work("prefill", 512)
DECODES = {count: Work("decode", 128, count, 64) for count in (1, 8, 16, 32)}
WORKS = (PREFILL, *DECODES.values())
DECODE_RATIOS = {"decode_1": 1.3, "decode_32": 3.0}


@dataclass(frozen=True)
class Row:
    """One model file. `source`: the file it is requantized from; `products`: the arithmetic its peak is taken of.

    prefill_ratio, least: what Octavo aims at, as a multiple of llama.cpp's speed and in tokens a second by work.
    """

    name: str
    model: str
    format: str
    file: str
    prefill_ratio: float
    least: dict[str, float]
    source: str | None = None
    products: Literal["int8", "bf16"] = "int8"

    def ratio(self, work: Work) -> float | None:
        """The multiple of llama.cpp's speed that is aimed at, if any."""
        return self.prefill_ratio if work == PREFILL else DECODE_RATIOS.get(work.name)


SMOLLM2, GEMMA = "SmolLM2-135M", "Gemma-3-270M"
SMOLLM2_FILE, GEMMA_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"
QUANTIZED = {"prefill_512": 1600.0, "decode_32": 1.3 * 635}

ROWS = (
    Row("smollm2-q4_1", SMOLLM2, "Q4_1", SMOLLM2_FILE, 6.0, QUANTIZED),
    Row("smollm2-q4_0", SMOLLM2, "Q4_0", "SmolLM2-135M-Instruct.Q4_0.gguf", 2.5, QUANTIZED, SMOLLM2_FILE),
    Row("smollm2-q8_0", SMOLLM2, "Q8_0", "SmolLM2-135M-Instruct.Q8_0.gguf", 3.0, QUANTIZED, SMOLLM2_FILE),
    Row(
        "smollm2-bf16", SMOLLM2, "BF16", "SmolLM2-135M-Instruct.BF16.gguf", 1.8, {"prefill_512": 1245.0},
        SMOLLM2_FILE, "bf16",
    ),
    Row("gemma3-q4_k_m", GEMMA, "Q4_K_M", GEMMA_FILE, 3.5, {}),
    Row("gemma3-q8_0", GEMMA, "Q8_0", "gemma-3-270m-q8_0.gguf", 3.0, {}, GEMMA_FILE),
    Row("gemma3-bf16", GEMMA, "BF16", "gemma-3-270m-bf16.gguf", 1.8, {"prefill_512": 1094.0}, GEMMA_FILE, "bf16"),
)  # fmt: skip

# vLLM 0.32's CPU build, two threads of the same processor, November 2026: tokens a second, the better end where a
# figure moved. Constants: vLLM is not run again here, and it reads safetensors, not these files.
VLLM = {
    SMOLLM2: {
        "vLLM BF16": {"prefill_512": 1245, "decode_1": 50, "decode_8": 310, "decode_16": 480, "decode_32": 573},
        "vLLM INT8": {"prefill_512": 1603, "decode_1": 61, "decode_8": 315, "decode_16": 467, "decode_32": 635},
    },
    GEMMA: {"vLLM BF16": {"prefill_512": 1094, "decode_1": 34, "decode_8": 210, "decode_16": 296, "decode_32": 341}},
}


def pick_rows(names: str) -> list[Row]:
    """Rows by name, comma separated, or GGUF files of any model; all rows for an empty text. Exits with the names."""
    files = {name: _file_row(Path(name)) for name in names.split(",") if name.endswith(".gguf")}
    return _pick("--rows", names, {row.name: row for row in ROWS} | files)


def _file_row(path: Path) -> Row:
    """Without targets of its own."""
    if not path.is_file():
        raise SystemExit(f"--rows: there is no file {path}")
    products: Literal["int8", "bf16"] = "bf16" if "bf16" in path.stem.lower() else "int8"
    return Row(path.stem, "", path.stem, str(path.resolve()), 0.0, {}, products=products)


def pick_works(names: str) -> list[Work]:
    """Pieces of work, as pick_rows."""
    return _pick("--works", names, {work.name: work for work in WORKS})


def _pick(flag: str, names: str, known: dict[str, Any]) -> list[Any]:
    wanted = [name for name in names.split(",") if name]
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"{flag}: {', '.join(unknown)} unknown; there are {', '.join(known)}")
    return [known[name] for name in wanted] if wanted else list(known.values())
