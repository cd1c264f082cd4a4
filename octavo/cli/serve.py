"""`octavo serve MODEL`: flags in, a running HTTP server out; returns when it has drained."""

from __future__ import annotations

from typing import Any

from octavo.api.arguments import LATER, OFF, SWITCH, Foreign
from octavo.api.engine_process import spawn
from octavo.api.log import set_up_logging
from octavo.base.config.config import ServerConfig
from octavo.base.config.options import build_struct, options
from octavo.cli.config_file import with_file
from octavo.cli.flags import Parser, add_engine, add_model, add_options, take_engine

FOREIGN: dict[str, Foreign] = {
    "uds": Foreign((None,), "listen on --host and --port"),
    "ssl_keyfile": Foreign((None,), "put a TLS proxy in front"),
    "ssl_certfile": Foreign((None,), "put a TLS proxy in front"),
    "ssl_ca_certs": Foreign((None,), "put a TLS proxy in front"),
    "root_path": Foreign((None, ""), "let the proxy strip the prefix"),
    "api_server_count": Foreign((1,), "one process serves HTTP"),
    "lora_modules": Foreign((None,), LATER),
    "middleware": Foreign((None, []), LATER),
    "response_role": Foreign(("assistant",), "the role of an answer is assistant"),
    "allow_credentials": Foreign(OFF, LATER),
    "chat_template_content_format": Foreign(("auto", "string"), "the template decides", harmless=True),
    "enable_request_id_headers": Foreign(SWITCH, "X-Request-Id is always sent", harmless=True),
    "enable_auto_tool_choice": Foreign(SWITCH, "tool_choice auto is always allowed", harmless=True),
    "disable_fastapi_docs": Foreign(SWITCH, "", harmless=True),
    "disable_uvicorn_access_log": Foreign(SWITCH, "", harmless=True),
    "disable_frontend_multiprocessing": Foreign(OFF, "the engine is always a process of its own", harmless=True),
    "enable_per_request_metrics": Foreign(SWITCH, "ask with include_metrics in the request", harmless=True),
    "enable_prompt_tokens_details": Foreign(SWITCH, "cached tokens are always told", harmless=True),
    "enable_server_load_tracking": Foreign(SWITCH, "GET /load always tells it", harmless=True),
    "enable_tokenizer_info_endpoint": Foreign(SWITCH, "GET /tokenizer_info is always there", harmless=True),
    "enable_force_include_usage": Foreign(OFF, "ask with stream_options.include_usage in the request"),
    "return_tokens_as_token_ids": Foreign(OFF, "ask with it in the request"),
    "exclude_tools_when_tool_choice_none": Foreign(SWITCH, "they always are", harmless=True),
    "tool_parser_plugin": Foreign((None, ""), "install a package with the entry point octavo.tool_parsers"),
    "tool_server": Foreign((None,), "calls are the client's to carry out"),
    "tokens_only": Foreign(OFF, LATER),
    "headless": Foreign(OFF, "one process serves HTTP"),
    "grpc": Foreign(OFF, LATER),
    "enable_log_outputs": Foreign(OFF, "no text of an answer is logged", harmless=True),
    "log_error_stack": Foreign(SWITCH, "errors that nobody intended are always logged whole", harmless=True),
    "disable_access_log_for_endpoints": Foreign((), "requests that ask are logged at DEBUG only", harmless=True),
    "allowed_methods": Foreign((["*"],), "--allowed-origins may send every method", harmless=True),
    "allowed_headers": Foreign((["*"],), "--allowed-origins may send every header", harmless=True),
    "fingerprint_mode": Foreign(("none",), "a system_fingerprint is null", harmless=True),
    "h11_max_incomplete_event_size": Foreign((), "see --max-body-bytes", harmless=True),
    "h11_max_header_count": Foreign((), "see --max-body-bytes", harmless=True),
    "enable_offline_docs": Foreign(SWITCH, "GET /docs fetches nothing", harmless=True),
    "uvicorn_log_level": Foreign((), "set OCTAVO_LOG_LEVEL", harmless=True),
    "log_config_file": Foreign((None,), "see --log-format and OCTAVO_LOG_LEVEL", harmless=True),
    "max_log_len": Foreign((), "no text of a request is logged", harmless=True),
}


def make_parser(command: str, text: str) -> Parser:
    """Of every option that a server has."""
    parser = Parser(command, text, foreign=FOREIGN)
    add_model(parser)
    parser.add_argument("--config", metavar="FILE", help="options in YAML, by their names; flags win over them")
    add_options(parser.add_argument_group("server options"), list(options(ServerConfig).values()))
    add_engine(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM or Ctrl-C, and end the process; the exit code only where it could not begin."""
    parser = make_parser("serve", "Serve a model over HTTP, by OpenAI's protocol.")
    values: dict[str, Any] = with_file(parser, parser.parse(arguments))
    server = build_struct(ServerConfig, {name: values.pop(name) for name in options(ServerConfig) if name in values})
    config = take_engine(values)
    # once the flags are known to be right; the process's imports and ours go on side by side
    set_up_logging(form=server.log_format)
    process = spawn(config.device.device)
    try:
        from octavo.server.launch import leave, serve

        leave(serve(config, server, process=process))
    except BaseException:
        process.drop()
        raise
