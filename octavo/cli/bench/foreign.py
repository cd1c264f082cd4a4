"""The flags of vLLM's benchmarks that these have not, each with its remedy (api/arguments.py reads the tables)."""

from __future__ import annotations

from octavo.api.arguments import Foreign

_OFF = (None, False)
_NOT_HERE = "this version does not have it; leave it out"
_ONE_ENGINE = "this measures Octavo's own engine; leave it out"
_DATASETS = "take --dataset-name random, sharegpt, custom or prefix_repetition"
_TEXT = "only text generation is measured"
_PROFILE = Foreign(_OFF, "profile the process from outside, with perf or py-spy")

OFFLINE: dict[str, Foreign] = {
    "use_beam_search": Foreign(_OFF, _NOT_HERE),
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
    "no_reranker": Foreign(_OFF, _TEXT),
    "random_mm_base_items_per_request": Foreign((0,), _TEXT),
    "random_mm_num_mm_items_range_ratio": Foreign((0,), _TEXT),
    "random_mm_limit_mm_per_prompt": Foreign((None, {}), _TEXT),
    "random_mm_bucket_config": Foreign((None, {}), _TEXT),
    "enable_multimodal_chat": Foreign(_OFF, _TEXT),
    "no_stream": Foreign((True, False), "files are read whole", harmless=True),
    "lora_path": Foreign((None,), _NOT_HERE),
}

THROUGHPUT: dict[str, Foreign] = {
    **OFFLINE,
    **DATASETS,
    "backend": Foreign(("vllm",), _ONE_ENGINE),
    "hf_max_batch_size": Foreign((None,), _ONE_ENGINE),
    "async_engine": Foreign(_OFF, "octavo bench serve measures the engine behind a server"),
    "disable_frontend_multiprocessing": Foreign((True, False), "the engine runs in this process", harmless=True),
    "prefix_len": Foreign((0,), "say --random-prefix-len"),
}

SERVE: dict[str, Foreign] = {
    **DATASETS,
    "endpoint_type": Foreign((None,), "say --backend"),
    "use_beam_search": Foreign(_OFF, _NOT_HERE),
    "profile": _PROFILE,
    "lora_modules": Foreign((None,), _NOT_HERE),
    "lora_assignment": Foreign((None,), _NOT_HERE),
    "probe_request_rate": Foreign((0,), "run a second octavo bench serve beside this one"),
    "self_timed": Foreign(_OFF, "give --request-rate, or --ramp-up-strategy"),
    "chat_template_kwargs": Foreign((None, {}), "give it in --extra-body, with --backend openai-chat"),
    "plot_timeline": Foreign(_OFF, "say --plot FILE"),
    "timeline_itl_thresholds": Foreign((), "say --plot FILE"),
    "plot_dataset_stats": Foreign(_OFF, "say --plot FILE"),
}
