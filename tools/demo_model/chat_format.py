"""The V4 prompt format, as far as the corpus uses it. The fixed texts are protocol constants."""
import json

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT, THINK, NO_THINK, DSML = "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜"

TOOLS_BEFORE = """## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a "<｜DSML｜tool_calls>" block like the following:

<｜DSML｜tool_calls>
<｜DSML｜invoke name="$TOOL_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$TOOL_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside <think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

"""
TOOLS_AFTER = "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n"


def dumps(value):
    return json.dumps(value, ensure_ascii=False)


def tools_block(functions):
    return TOOLS_BEFORE + "\n".join(dumps(f) for f in functions) + TOOLS_AFTER


def dsml_call(name, arguments):
    lines = []
    for key, value in arguments.items():
        text = isinstance(value, str)
        shown = value if text else dumps(value)
        lines.append(f'<{DSML}parameter name="{key}" string="{"true" if text else "false"}">{shown}</{DSML}parameter>')
    body = "\n".join(lines)
    return f'\n\n<{DSML}tool_calls>\n<{DSML}invoke name="{name}">\n{body}\n</{DSML}invoke>\n</{DSML}tool_calls>'


def render(messages, thinking):
    """Segments [(text, is_reply)] of a conversation that ends with an assistant turn. Messages are the dicts a client
    sends (system may carry tools); with tools reasoning is kept, without it only the last turn keeps it."""
    tools = any(m.get("tools") for m in messages)
    last = max(i for i, m in enumerate(messages) if m["role"] in ("user", "tool"))
    out = [(BOS, False)]
    for i, m in enumerate(messages):
        role = m["role"]
        if role == "system":
            text = m["content"] + ("\n\n" + tools_block([t["function"] for t in m["tools"]]) if m.get("tools") else "")
            out.append((text, False))
        elif role in ("user", "tool"):
            text = m["content"] if role == "user" else f"<tool_result>{m['content']}</tool_result>"
            keep = thinking and (tools or i >= last)
            out.append((USER + text + ASSISTANT + (THINK if keep else NO_THINK), False))
        else:
            reply = ""
            if thinking and (tools or i > last):
                reply = m.get("reasoning_content", "") + NO_THINK
            reply += m.get("content") or ""
            for call in m.get("tool_calls", []):
                reply += dsml_call(call["function"]["name"], json.loads(call["function"]["arguments"]))
            out.append((reply + EOS, True))
    return out
