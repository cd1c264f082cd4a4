"""Many requests from a file, answered into a file: OpenAI's batch JSONL, for `octavo run-batch` and /v1/batches."""
