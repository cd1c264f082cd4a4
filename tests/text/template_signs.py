"""What chat templates of the families hold that tells their formats: short strings, each as it stands in the template.

From published templates, of which nothing else is kept: vLLM's examples/ (Apache-2.0), llama.cpp's models/templates
(MIT) and the models' own tokenizer_config.json; `source` names the file or the model. Files of the first two, and
excerpts of Llama 3.1 and 4, DeepSeek V3, Granite 3, Devstral and Phi-4-mini, were open when this was written; the
strings of Qwen 2.5 and 3, gpt-oss, Gemma, Granite 4 and the present Kimi K2 are from knowledge of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One template. tool, reasoning: names of the formats; None for none.  shows: whether it reads `tools`."""

    name: str
    source: str
    strings: tuple[str, ...]
    tool: str | None
    reasoning: str | None = None
    shows: bool = True


_QWEN = ("{%- if tools %}", "<tools>", '{"name": <function-name>, "arguments": <args-json-object>}', "</tool_call>")
_LLAMA = ("{%- if not tools is defined %}", "<|start_header_id|>", "<|eot_id|>")
_LLAMA4 = ("{%- set tools = custom_tools %}", "<|header_start|>", "<|eot|>")
_PARAMETERS = ('{"name": function name, "parameters": dictionary of argument name', "{{- '\"parameters\": ' }}")
_GRANITE = ("{%- if tools %}", "<|start_of_role|>assistant<|end_of_role|>", "<|end_of_text|>")
_MISTRAL = ("{%- if tools is not none", "[AVAILABLE_TOOLS]", "[TOOL_RESULTS]")
_DEEPSEEK = ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")

_COHERE = ("<|START_ACTION|>[", '"tool_name": "', "<|START_THINKING|>", "<|END_THINKING|>")

FAMILIES = (
    Family("Qwen2.5", "Qwen/Qwen2.5-7B-Instruct", (*_QWEN, '\'\\n<tool_call>\\n{"name": "\''), "hermes"),
    Family("Qwen3", "Qwen/Qwen3-8B", (*_QWEN, "<tool_call>", "'<think>\\n\\n</think>\\n\\n'"), "hermes", "qwen3"),
    Family(
        "Qwen3-Coder",
        "vLLM tool_chat_template_qwen3coder.jinja",
        (
            "{%- if tools is iterable",
            "<tool_call>\\n<function=example_function_name>\\n<parameter=example_parameter_1>",
        ),
        "qwen3_coder",
    ),
    Family(
        "Llama 3.1",
        "meta-llama/Llama-3.1-8B-Instruct",
        (*_LLAMA, *_PARAMETERS, '"<|python_tag|>" + tool_call.name + ".call("'),
        "llama3_json",
    ),
    Family("Llama 3.2", "vLLM tool_chat_template_llama3.2_json.jinja", (*_LLAMA, *_PARAMETERS), "llama3_json"),
    Family(
        "Llama 3.2, pythonic",
        "vLLM tool_chat_template_llama3.2_pythonic.jinja",
        (*_LLAMA, "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]"),
        "pythonic",
    ),
    Family(
        "Llama 4",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        (*_LLAMA4, *_PARAMETERS, "{{- '<|python_start|>' }}", "{{- '<|python_end|>' }}"),
        "llama3_json",
    ),
    Family(
        "Llama 4, pythonic",
        "vLLM tool_chat_template_llama4_pythonic.jinja",
        (*_LLAMA4, "Use exact format: [func_name1(param1=value1, param2=value2), func_name2(...)]"),
        "llama4_pythonic",
    ),
    Family(
        "Mistral v3, v7",
        "vLLM tool_chat_template_mistral3.jinja",
        (*_MISTRAL, '{{- "[TOOL_CALLS] [" }}', '\', "id": "\' + tool_call.id[-9:]'),
        "mistral",
    ),
    Family(
        "Mistral v11, v13",
        "mistralai/Devstral-Small-2-24B-Instruct-2512",
        (*_MISTRAL, "'[TOOL_CALLS]' + tool['function']['name'] + '[ARGS]' + arguments", "[THINK]"),
        "mistral",
        "mistral",
    ),
    Family(
        "DeepSeek V3",
        "deepseek-ai/DeepSeek-V3-0324",
        (*_DEEPSEEK, "'<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>'", "'\\n' + '```json' + '\\n'"),
        "deepseek_v3",
        shows=False,
    ),
    Family(
        "DeepSeek V3.1",
        "llama.cpp deepseek-ai-DeepSeek-V3.1.jinja",
        (*_DEEPSEEK, "tool['function']['name'] + '<｜tool▁sep｜>'", "{{'<think>'}}", "{{'</think>'}}"),
        "deepseek_v31",
        "deepseek_v3",
        shows=False,
    ),
    Family(
        "GLM-4.5, GLM-4.6",
        "llama.cpp GLM-4.6.jinja",
        ("{%- if tools -%}", "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>", "'\\n<think></think>'"),
        "glm45",
        "qwen3",
    ),
    Family(
        "Kimi K2",
        "moonshotai/Kimi-K2-Instruct",
        (
            "{%- if tools -%}",
            "<|im_system|>tool_declare<|im_middle|>",
            "<|tool_call_begin|>{{ formatted_id }}<|tool_call_argument_begin|>",
        ),
        "kimi_k2",
    ),
    Family(
        "Kimi K2, first version",
        "llama.cpp moonshotai-Kimi-K2.jinja",
        ("{% if tools -%}", "<|im_system|>tool_declare<|im_middle|>", "<|im_assistant|>assistant<|im_middle|>"),
        "kimi_k2",
    ),
    Family(
        "Granite 3.2",
        "ibm-granite/granite-3.2-8b-instruct",
        (*_GRANITE, "respond with <|tool_call|> followed by a JSON list of tools", "Here is my thought process:"),
        "granite",
        "granite",
    ),
    Family(
        "Granite 3.3",
        "ibm-granite/granite-3.3-8b-instruct",
        (
            *_GRANITE,
            "respond only with <|tool_call|> followed by a JSON list of tools",
            "<think></think>",
            "<response>",
        ),
        "granite",
        "granite",
    ),
    Family(
        "Granite 4", "ibm-granite/granite-4.0-h-small", (*_GRANITE, "within <tool_call></tool_call> XML tags"), "hermes"
    ),
    Family(
        "Phi-4-mini",
        "microsoft/Phi-4-mini-instruct",
        ("'tools' in message and message['tools'] is not none", "'<|tool|>' + message['tools'] + '<|/tool|>'"),
        "phi4_mini_json",
        shows=False,
    ),
    Family(
        "Phi-4-mini, llama.cpp's",
        "llama.cpp llama-cpp-microsoft-Phi-4-mini-instruct.jinja",
        ("{% elif tools is defined -%}", "'<|tool|>' + (tool['function'] | tojson) + '<|/tool|>'", "'<|tool_call|>'"),
        "phi4_mini_json",
    ),
    Family(
        "Phi-4-mini, vLLM's",
        "vLLM tool_chat_template_phi4_mini.jinja",
        (
            "{%- if tools %}",
            'formatted as functools[{"name": [function name], "arguments": [function arguments as JSON]}',
        ),
        "phi4_mini_json",
    ),
    Family(
        "gpt-oss",
        "openai/gpt-oss-20b",
        (
            "{%- if tools",
            "namespace functions",
            "<|channel|>commentary json<|message|>",
            "<|channel|>analysis<|message|>",
        ),
        "openai",
        "openai_gptoss",
    ),
    Family(
        "MiniMax-M2",
        "llama.cpp MiniMax-M2.jinja",
        ("{%- if tools -%}", "'<minimax:tool_call>'", '<invoke name="tool-name-1">', "'\\n<response>'", "'<think>'"),
        "minimax_m2",
        "minimax_m2",
    ),
    Family(
        "DeepSeek V3.2",
        "llama.cpp deepseek-ai-DeepSeek-V3.2.jinja",
        (
            "{%- if tools is defined",
            "'｜DSML｜'",
            "dsml_token + 'function_calls>\\n'",
            "message['tool_calls']",
            "'<think>'",
        ),
        "deepseek_v32",
        "deepseek_v3",
    ),
    Family(
        "DeepSeek V4",
        "llama.cpp deepseek-ai-DeepSeek-V4.jinja",
        ("{%- if tools is defined", "'｜DSML｜'", "dsml_token + 'tool_calls>\\n'", "'</think>'"),
        "deepseek_v4",
        "deepseek_v3",
    ),
    Family(
        "LFM2",
        "llama.cpp LFM2-8B-A1B.jinja",
        ("{%- if tools -%}", '"List of tools: <|tool_list_start|>["', "<|im_start|>"),
        "lfm2",
    ),
    Family(
        "Nemotron Nano v2",
        "llama.cpp NVIDIA-Nemotron-Nano-v2.jinja",
        ("{%- if tools -%}", "<AVAILABLE_TOOLS>[", '<TOOLCALL>[{{"name": "tool_name1"', "'<think></think>'"),
        "nemotron_json",
        "deepseek_v3",
    ),
    Family(
        "MiniMax M1",
        "llama.cpp MiniMax-M1.jinja",
        ("{%- if tools is not none %}", "<beginning_of_sentence>ai name=assistant\\n<tool_calls>\\n", "</tool_calls>"),
        "minimax",
    ),
    Family(
        "xLAM 2",
        "vLLM tool_chat_template_xlam_llama.jinja",
        ("{%- if tools", '[{"name": "tool_call_name", "arguments": {"arg1": "value1"', "<|eot_id|>"),
        "xlam",
    ),
    Family(
        "MiniMax-M3",
        "llama.cpp MiniMax-M3.jinja",
        (
            "{%- if tools -%}",
            "']<]minimax[>['",
            "ns_token ~ '<tool_call>'",
            "ns_token + '<invoke name=\"'",
            "'<mm:think>'",
        ),
        "minimax_m3",
        "minimax_m3",
    ),
    Family(
        "Kimi K3",
        "llama.cpp Kimi-K3.jinja",
        ("{%- if tools is defined", "'<|open|>' + tag", "'<|sep|>'", "open_tag('tools')", "open_tag('think')"),
        "kimi_k3",
        "kimi_k3",
    ),
    Family(
        "Hunyuan Hy3",
        "llama.cpp tencent-Hy3.jinja",
        ("{%- if tools %}", "':opensource'", "'<tool_call{}>'", "'<tool_sep{}>'", "'<arg_key{}>'", "'<think{}>'"),
        "hy_v3",
        "hy_v3",
    ),
    Family(
        "Command R7B",
        "llama.cpp CohereForAI-c4ai-command-r7b-12-2024-tool_use.jinja",
        ("{% if tools or documents %}", *_COHERE, "<|START_RESPONSE|>"),
        "cohere_command3",
        "cohere_command3",
    ),
    Family(
        "North Mini Code",
        "llama.cpp Cohere2MoE.jinja",
        ("{%- for tool in tools %}", *_COHERE, "<|START_TEXT|>"),
        "cohere_command3",
        "cohere_command4",
    ),
    Family(
        "Solar Open",
        "llama.cpp upstage-Solar-Open-100B.jinja",
        (
            "{%- for tool in tools %}",
            "<|tool_call:begin|>",
            "<|tool_call:args|>",
            "<|think|>",
            "<|content|>",
            "<|end|>",
        ),
        "solar_open",
        "solar_open",
    ),
    Family(
        "Apertus",
        "vLLM tool_chat_template_apertus.jinja",
        ("{%- if tools is defined and tools -%}", "'<|tools_prefix|>'", "'<|inner_prefix|>'", "'<|inner_suffix|>'"),
        "apertus",
        "apertus",
    ),
    Family(
        "GigaChat 3",
        "llama.cpp GigaChat3-10B-A1.8B.jinja",
        ("{%- if tools -%}", '"<|role_sep|>\\n"', "'role': 'function call'"),
        "gigachat30",
    ),
    Family(
        "GigaChat 3.1",
        "llama.cpp GigaChat3.1-10B-A1.8B.jinja",
        ("{%- if tools -%}", '"<|role_sep|>\\n"', '"<|function_call|>"'),
        "gigachat3",
    ),
    Family(
        "GigaChat 3.5",
        "llama.cpp GigaChat3.5.jinja",
        ("{%- if tools -%}", "'<｜GCML｜tool_calls>\\n'", '"<|role_sep|>\\n"', "'function call'", "'<think>'"),
        "gigachat35",
        "deepseek_v3",
    ),
    Family(
        "OLMo 3",
        "vLLM tool_chat_template_olmo3.jinja",
        ("{%- if tools is not none", "function call wrapped in <function_calls></function_calls>", "<|im_start|>"),
        "olmo3",
    ),
    Family(
        "functionary 3.1",
        "llama.cpp meetkai-functionary-medium-v3.1.jinja",
        ("{%- if tools %}", "start with <function= and end with </function>", "<|eot_id|>", "'<|python_tag|>'"),
        "functionary_v31",
    ),
    Family(
        "MiniCPM5",
        "llama.cpp openbmb-MiniCPM5-1B.jinja",
        ("{%- if tools %}", '<function name="function-name"><param name="param-name">', "'<think>\\n\\n</think>"),
        "minicpm5",
        "deepseek_v3",
    ),
    Family(
        "InternLM 2.5",
        "vLLM tool_chat_template_internlm2_tool.jinja",
        ("{%- if tools is not none %}", '"<|action_start|><|plugin|>\\n"', "<|im_start|>"),
        "internlm",
    ),
    Family(
        "Granite 20B, functions",
        "vLLM tool_chat_template_granite_20b_fc.jinja",
        ("{% if tools is iterable", "<|function_call_library|>", "'<function_call> '"),
        "granite-20b-fc",
    ),
    Family(
        "Hunyuan A13B, vLLM's",
        "vLLM tool_chat_template_hunyuan_a13b.jinja",
        ("{% if tools %}", "'<tool_calls>'", "'<|extra_0|>'", "'<think>\\n\\n</think>\\n'"),
        "jamba",
        "hunyuan_a13b",
    ),
    Family("Gemma 3", "google/gemma-3-4b-it", ("<start_of_turn>model", "<end_of_turn>"), None, shows=False),
    Family(
        "Gemma 4",
        "vLLM tool_chat_template_gemma4.jinja",
        ("{%- if tools", "'<|tool_call>call:'", "'<tool_call|>'", "<|channel>thought\\n<channel|>"),
        "gemma4",
        "gemma4",
    ),
)
