"""The flags of vLLM's benchmarks that these have not, each with its remedy (api/arguments.py reads the tables)."""

from __future__ import annotations

from octavo.api.arguments import LATER, OFF, SWITCH, Foreign

_ONE_ENGINE = "this measures Octavo's own engine; leave it out"
_DATASETS = "take --dataset-name random, sharegpt, custom or prefix_repetition"
_TEXT = "only text generation is measured"
_PROFILE = Foreign(OFF, "profile the process from outside, with perf or py-spy")

OFFLINE: dict[str, Foreign] = {
    "use_beam_search": Foreign(OFF, LATER),
    "profile": _PROFILE,
    "profile_result_dir": _PROFILE,
}

DATASETS: dict[str, Foreign] = {
    "dataset": Foreign((None,), "name the file by --dataset-path"),
    "hf_subset": Foreign((None,), _DATASETS),
    "hf_split": Foreign((None,), _DATASETS),
    "hf_name": Foreign((None,), _DATASETS),
    "hf_output_len": Foreign((None,), _DATASETS),
    "sonnet_input_len": Foreign((), _DATASETS),
    "sonnet_output_len": Foreign((), _DATASETS),
    "sonnet_prefix_len": Foreign((), _DATASETS),
    "spec_bench_output_len": Foreign((), _DATASETS),
    "spec_bench_category": Foreign((None,), _DATASETS),
    "blazedit_min_distance": Foreign((), _DATASETS),
    "blazedit_max_distance": Foreign((), _DATASETS),
    "random_batch_size": Foreign((1,), _TEXT),
    "no_reranker": Foreign(OFF, _TEXT),
    "random_mm_base_items_per_request": Foreign((0,), _TEXT),
    "random_mm_num_mm_items_range_ratio": Foreign((0,), _TEXT),
    "random_mm_limit_mm_per_prompt": Foreign((None, {}), _TEXT),
    "random_mm_bucket_config": Foreign((None, {}), _TEXT),
    "enable_multimodal_chat": Foreign(OFF, _TEXT),
    "no_stream": Foreign(SWITCH, "files are read whole", harmless=True),
    "lora_path": Foreign((None,), LATER),
}

THROUGHPUT: dict[str, Foreign] = {
    **OFFLINE,
    **DATASETS,
    "backend": Foreign(("vllm",), _ONE_ENGINE),
    "hf_max_batch_size": Foreign((None,), _ONE_ENGINE),
    "async_engine": Foreign(OFF, "octavo bench serve measures the engine behind a server"),
    "disable_frontend_multiprocessing": Foreign(SWITCH, "the engine runs in this process", harmless=True),
    "prefix_len": Foreign((0,), "say --random-prefix-len"),
}

SERVE: dict[str, Foreign] = {
    **DATASETS,
    "endpoint_type": Foreign((None,), "say --backend"),
    "use_beam_search": Foreign(OFF, LATER),
    "profile": _PROFILE,
    "lora_modules": Foreign((None,), LATER),
    "lora_assignment": Foreign((None,), LATER),
    "probe_request_rate": Foreign((0,), "run a second octavo bench serve beside this one"),
    "self_timed": Foreign(OFF, "give --request-rate, or --ramp-up-strategy"),
    "chat_template_kwargs": Foreign((None, {}), "give it in --extra-body, with --backend openai-chat"),
    "plot_timeline": Foreign(OFF, "say --plot FILE"),
    "timeline_itl_thresholds": Foreign((), "say --plot FILE"),
    "plot_dataset_stats": Foreign(OFF, "say --plot FILE"),
}
