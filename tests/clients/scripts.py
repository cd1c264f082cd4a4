"""What the scripted model answers, by the last message that it is sent: for a tool's result, that text."""

from __future__ import annotations

_CALL = '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>'

SCRIPTS = {
    "What is the weather in Paris?": "I will look.\n" + _CALL.format("get_weather", '{"city": "Paris"}'),
    "22 degrees in Paris": "It is 22 degrees in Paris.",
    "Think": "<think>\nTwo and two.\n</think>\n\nFour.",
    "Who is Ada?": '{"name": "Ada", "age": 36}',
    "Call Ada": _CALL.format("Person", '{"name": "Ada", "age": 36}'),
    "Begin Ada": _CALL.format("PartialPerson", '{"name": "Ada", "age": 36}'),
    "Give Ada": _CALL.format("final_result", '{"name": "Ada", "age": 36}'),
    "Hello": "Hello, there!",
    "Call and say": _CALL.format("get_weather", '{"city": "Paris"}') + "\nSo it is.",
    "Both": "<think>\nI look.\n</think>\n\n" + _CALL.format("get_weather", '{"city": "Paris"}'),
}
