#!/usr/bin/env python3
"""Chat templates, conversations, and what Python's jinja2 makes of them -> tests/data/chat_templates.json.

    pip install jinja2 && python3 tools/chat_oracle.py

The environment is the one in which transformers renders chat templates: an immutable sandbox with trim_blocks, lstrip_blocks, loop
controls, the generation tag, raise_exception, strftime_now and tojson as plain json.dumps. The templates are written for this
test after the shape of well-known families; the snippets exercise one thing of the language each. `expected` is null where
jinja2 refuses.
"""
import datetime
import json
import pathlib
import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = 1722470400 + 3 * 3600 + 25 * 60 + 7  # Thursday 2024-08-01 03:25:07


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_pass"), [], [], body).set_lineno(line)

    def _pass(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(fmt):
    return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None).strftime(fmt)


def render(source, variables):
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    try:
        return env.from_string(source).render(**variables)
    except Exception:
        return None


TEMPLATES = {}

TEMPLATES["chatml"] = """\
{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

TEMPLATES["llama-2"] = """\
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}\
{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate: user, assistant, user, assistant ...') }}
    {% endif %}
    {% if loop.index0 == 0 and system_message != false %}
        {% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {% else %}
        {% set content = message['content'] %}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {{ ' '  + content.strip() + ' ' + eos_token }}
    {% endif %}
{% endfor %}"""

TEMPLATES["llama-3"] = """\
{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + \
'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}\
{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

TEMPLATES["llama-3.1-tools"] = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- The system turn, if the conversation opens with one. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "You can call these functions:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("One call at a time.") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

TEMPLATES["mistral"] = """\
{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""

TEMPLATES["mistral-tools"] = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("Roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- else %}
                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + "}[/TOOL_RESULTS]" }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""

TEMPLATES["zephyr"] = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

TEMPLATES["phi-3"] = """\
{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""

TEMPLATES["gemma"] = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

TEMPLATES["gemma-3"] = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""

TEMPLATES["qwen2.5"] = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nSignatures within <tools></tools> XML tags:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nFor each call:\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

TEMPLATES["qwen3-thinking"] = """\
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

TEMPLATES["deepseek-r1"] = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}\
{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}\
{{bos_token}}{{ns.system_prompt}}\
{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<\uff5cUser\uff5c>' + message['content']}}{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is none %}{%- set ns.is_tool = false -%}\
{%- for tool in message['tool_calls']%}{%- if not ns.is_first %}\
{{'<\uff5cAssistant\uff5c><\uff5ctool\u2581calls\u2581begin\uff5c>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + (tool['function']['arguments'] | tojson) + '\\n' + '```'}}\
{%- set ns.is_first = true -%}{%- else %}{{'\\n' + tool['function']['name']}}{%- endif %}{%- endfor %}{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is not none %}{%- if ns.is_tool %}{{'<\uff5ctool\u2581outputs\u2581end\uff5c>' + message['content'] + eos_token}}{%- set ns.is_tool = false -%}\
{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}\
{{'<\uff5cAssistant\uff5c>' + content + eos_token}}{%- endif %}{%- endif %}\
{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}{{'<\uff5ctool\u2581output\u2581begin\uff5c>' + message['content']}}{%- set ns.is_output_first = false %}\
{%- else %}{{'\\n' + message['content']}}{%- endif %}{%- endif %}{%- endfor -%}\
{% if add_generation_prompt and not ns.is_tool %}{{'<\uff5cAssistant\uff5c><think>\\n'}}{% endif %}"""

TEMPLATES["falcon"] = """\
{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}{% if message['role'] == 'system' %}{{ 'System: ' + message['content'] }}\
{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] }}{% elif message['role'] == 'assistant' %}{{ 'Falcon: ' + message['content'] }}\
{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\\n' + 'Falcon:' }}{% endif %}"""

TEMPLATES["command-r"] = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}\
{% elif false == true %}{% set loop_messages = messages %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}\
{% if system_message != false %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}{% endif %}\
{% for message in loop_messages %}{% set content = message['content'] %}{% if message['role'] == 'user' %}\
{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% elif message['role'] == 'assistant' %}\
{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'  + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""

TEMPLATES["schema-macros"] = """\
{%- macro render_typescript_type(spec, required) -%}
    {%- if spec.type == "array" -%}
        {%- if spec['items'] -%}
            {{- render_typescript_type(spec['items'], required) + "[]" }}
        {%- else -%}
            {{- "any[]" }}
        {%- endif -%}
        {%- if spec.nullable -%}{{- " | null" -}}{%- endif -%}
    {%- elif spec.type is defined and spec.type is iterable and spec.type is not string and spec.type is not mapping and spec.type[0] is defined -%}
        {{- spec.type | join(" | ") }}
    {%- elif spec.enum -%}
        {{- '"' + spec.enum|join('" | "') + '"' -}}
    {%- elif spec.type in ("number", "integer") -%}
        {{- "number" -}}
    {%- elif spec.type == "object" -%}
        {%- if spec.properties -%}
            {{- "{\\n" }}
            {%- for name, prop in spec.properties.items() -%}
                {{- name -}}{%- if name not in (spec.required or []) -%}{{- "?" }}{%- endif -%}{{- ": " }}{{ render_typescript_type(prop, spec.required or []) }}
                {%- if not loop.last -%}{{-", " }}{%- endif -%}
            {%- endfor -%}
            {{- "}" }}
        {%- else -%}
            {{- "object" -}}
        {%- endif -%}
    {%- else -%}
        {{- spec.type | default("any", true) -}}
    {%- endif -%}
{%- endmacro -%}
{%- for tool in tools or [] %}
    {%- set tool = tool.function if tool.function is defined else tool %}
    {{- "// " + tool.description + "\\n" }}
    {{- "type " + tool.name + " = (_: " }}{{ render_typescript_type(tool.parameters, []) }}{{ ") => any;\\n" }}
    {%- for param in tool.parameters.properties %}
        {{- "//   " ~ loop.index ~ ". " ~ param ~ ": " ~ (tool.parameters.properties[param].default | tojson if tool.parameters.properties[param].default is defined else "-") ~ "\\n" }}
    {%- endfor %}
{%- endfor %}
{%- for message in messages if message.role != 'system' %}
    {%- generation %}
    {{- '<' ~ message.role ~ '>' ~ (message.content if message.content is string else message.content | tojson) ~ '\\n' }}
    {%- endgeneration %}
    {%- if loop.index >= 6 %}{% break %}{% endif %}
{%- endfor %}
"""

TEMPLATES["generation-tags"] = """\
{% for message in messages %}
    {% if message.role == 'assistant' %}
        {% generation %}
        {{ message.content }}{{ eos_token }}
        {% endgeneration %}
    {% elif message.role == 'tool' %}
        {% continue %}
    {% else %}
<|{{ message.role }}|>
{{ message.content }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}
"""

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Today's weather in a city, \u00b0C & \u2603 <b>\"quoted\"</b>", "parameters": {
        "type": "object", "properties": {
            "city": {"type": "string", "description": "The city's name"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
            "days": {"type": "integer", "minimum": 1, "maximum": 14, "default": 3},
            "precision": {"type": "number", "default": 0.1},
            "items": {"type": "array", "items": {"type": "string"}, "nullable": True},
            "values": {"type": ["string", "null"], "default": None}},
        "required": ["city"]}, "return": {"type": "string"}}},
    {"type": "function", "function": {"name": "noop", "description": "Nothing.", "parameters": {"type": "object", "properties": {}}}},
]

CALL = {"id": "abc123def", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Z\u00fcrich", "days": 2, "exact": True, "near": None, "t": 1e-7}}}

CONVERSATIONS = {
    "one": [{"role": "user", "content": "Hello, who are you?"}],
    "system": [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "  Hi!  "}, {"role": "assistant", "content": " Hello. "},
               {"role": "user", "content": "What's \"2 < 3\" & so on?\n\nLine two \u2014 \u00e9\u4e16\U0001f600"}],
    "long": [m for i in range(5) for m in ({"role": "user", "content": f"Question {i}"}, {"role": "assistant", "content": f"<think>\nhm {i}\n</think>\n\nAnswer {i}"})],
    "odd": [{"role": "assistant", "content": "I go first."}, {"role": "user", "content": ""}],
    "tools": [{"role": "system", "content": "Use tools."}, {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
              {"role": "tool", "name": "get_weather", "content": "{\"t\": 21.5}"}, {"role": "assistant", "content": "It is 21.5."}, {"role": "user", "content": "Thanks"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": " Look: "}, {"type": "image"}, {"type": "text", "text": "what is it?"}]}],
    "empty": [],
}

# One thing of the language each; V is what they see.
V = {"s": "Hello, World", "pad": " \t x y \n", "n": 7, "neg": -3, "f": 2.5, "big": 12345678901234567890, "tiny": 1e-07, "huge": 1e+16, "huge2": 1.5e+300, "t": True, "nul": None,
     "l": [3, 1, 2], "ls": ["b", "a", "C"], "d": {"b": 1, "a": "x", "items": 5, "get": "g", "keys": [1]}, "nested": {"k": [1, 2.0, None, True, {"q": "it's", "r": "say \"hi\""}]},
     "uni": "\u00e9\u4e16\U0001f600\u00a0\u200b\u0001\u007f/<>&'\"\\", "lines": "a\nb\r\nc\n\nd", "words": "the quick  brown fox", "empty": "", "lod": [{"r": "x", "v": 1}, {"r": "y", "v": 2}, {"r": "x", "v": 3}]}

SNIPPETS = """
{{ s }}|{{ n }}|{{ neg }}|{{ f }}|{{ big }}|{{ tiny }}|{{ huge }}|{{ huge2 }}|{{ t }}|{{ nul }}|{{ undefined_thing }}
{{ l }}|{{ d }}|{{ nested }}|{{ uni }}|{{ [uni, pad] }}|{{ (1,) }}|{{ (1, 'a') }}|{{ () }}|{{ {} }}|{{ [] }}
{{ l ~ d ~ f ~ nul ~ t }}
{{ l|tojson }}|{{ d|tojson }}|{{ nested|tojson }}|{{ uni|tojson }}|{{ tiny|tojson }}|{{ huge|tojson }}|{{ f|tojson }}|{{ big|tojson }}|{{ nul|tojson }}
{{ nested|tojson(indent=2) }}
{{ nested|tojson(indent=0) }}
{{ d|tojson(indent=4, sort_keys=true) }}
{{ d|tojson(separators=(',', ':')) }}|{{ l|tojson(separators=(',', ':')) }}
{{ uni|tojson(ensure_ascii=true) }}|{{ uni|tojson(ensure_ascii=false) }}|{{ uni|tojson(True) }}
{{ {}|tojson(indent=2) }}|{{ []|tojson(indent=2) }}|{{ {'a': [], 'b': {}}|tojson(indent=2) }}
{{ {1: 'a', false: 2, none: 3, 2.5: 4}|tojson }}
{{ undefined_thing|tojson }}
{{ (1, 2)|tojson }}
{{ {'z': 1, 'y': 2, 'x': 3} }}|{{ {'z': 1, 'y': 2}|list }}|{{ d.items()|list }}|{{ d.keys()|list }}|{{ d.values()|list }}
{{ d.get('b') }}|{{ d.get('zz') }}|{{ d.get('zz', 'dflt') }}|{{ d['items'] }}|{{ d.a }}|{{ d.b }}|{{ 'a' in d }}|{{ 'zz' in d }}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d|items %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d|dictsort %}{{ k }}={{ v }};{% endfor %}
{% for k in d %}{{ k }}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% endfor %}
{% for x in l %}{{ loop.previtem|default('-') }}{{ x }}{{ loop.nextitem|default('-') }}{{ loop.cycle('o','e') }};{% endfor %}
{% for x in [] %}x{% else %}none{% endfor %}
{% for x in l if x > 1 %}{{ x }}{{ loop.length }}{% endfor %}
{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% if x == 2 %}{% break %}{% endif %}{% endfor %}
{% for a in [[1,[2,3]],[4,[5,6]]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}
{{ l[::-1] }}|{{ s[::-1] }}|{{ s[1:3] }}|{{ s[-3:] }}|{{ l[:-1] }}|{{ l[5:] }}|{{ s[::2] }}|{{ l[-1] }}|{{ s[0] }}|{{ s[-1] }}
{{ l[10] }}|{{ l[10] is defined }}|{{ d.nope is defined }}|{{ d['nope'] }}
{{ d.nope.deeper }}
{{ nul.x }}
{{ 7 / 2 }}|{{ 6 / 2 }}|{{ 7 // 2 }}|{{ -7 // 2 }}|{{ 7 % 3 }}|{{ -7 % 3 }}|{{ 2 ** 10 }}|{{ 2 ** -1 }}|{{ 7.0 // 2 }}|{{ 1 + 2.0 }}|{{ 0.1 + 0.2 }}
{{ 1 / 0 }}
{{ 'a' * 3 }}|{{ [0] * 3 }}|{{ [1] + [2] }}|{{ 'a' + 'b' }}|{{ 'a' ~ 1 }}
{{ 'a' + 1 }}
{{ 'a' + nul }}
{{ 'a' + undefined_thing }}
{{ undefined_thing + 'a' }}
{{ 1 < 2 < 3 }}|{{ 1 == 1.0 }}|{{ 'a' < 'b' }}|{{ [1,2] == [1,2] }}|{{ d == d }}|{{ t == 1 }}|{{ true == 'true' }}|{{ nul == false }}
{{ not t }}|{{ t and 'x' }}|{{ nul or 'y' }}|{{ '' or 0 or 'z' }}|{{ 'a' if f else 'b' }}|{{ 'q' if empty }}
{{ True }}{{ true }}{{ False }}{{ false }}{{ None }}{{ none }}
{{ 'l' in s }}|{{ 3 in l }}|{{ 9 not in l }}|{{ 'a' in ('a', 'b') }}|{{ '' in s }}
{{ s.upper() }}|{{ s.lower() }}|{{ s.title() }}|{{ "they're bill's".title() }}|{{ s.capitalize() }}|{{ s.swapcase() }}|{{ s.casefold() }}
{{ pad.strip() }}|{{ pad.lstrip() }}|{{ pad.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abcab'.lstrip('ab') }}|{{ 'abcab'.rstrip('ab') }}|{{ pad|trim }}|{{ 'xxax'|trim('x') }}
{{ s.split(',') }}|{{ words.split() }}|{{ words.split(' ') }}|{{ words.split(' ', 1) }}|{{ words.split(maxsplit=1) }}|{{ 'a,b,c'.rsplit(',', 1) }}|{{ pad.split() }}|{{ words.split(None, 2) }}|{{ empty.split() }}|{{ empty.split(',') }}
{{ lines.splitlines() }}|{{ lines.splitlines(true) }}|{{ 'a-b-c'.partition('-') }}|{{ 'a-b-c'.rpartition('-') }}|{{ 'abc'.partition('-') }}
{{ s.startswith('Hell') }}|{{ s.endswith('ld') }}|{{ s.startswith(('x', 'H')) }}|{{ s.find('o') }}|{{ s.rfind('o') }}|{{ s.find('zz') }}|{{ s.index('W') }}|{{ s.count('l') }}
{{ s.index('zz') }}
{{ s.replace('l', 'L') }}|{{ s.replace('l', 'L', 1) }}|{{ s|replace('o', '0') }}|{{ s|replace('l', 'L', 2) }}
{{ s.removeprefix('Hello') }}|{{ s.removesuffix('World') }}|{{ s.removeprefix('x') }}
{{ '7'.zfill(3) }}|{{ '-7'.zfill(4) }}|{{ 'a'.center(4) }}|{{ 'ab'.center(5, '*') }}|{{ 'a'.ljust(3, '.') }}|{{ 'a'.rjust(3) }}
{{ ', '.join(ls) }}|{{ ''.join(['a', 'b']) }}|{{ ls|join(', ') }}|{{ l|join('-') }}|{{ lod|join(',', attribute='r') }}|{{ s|join('.') }}
{{ ', '.join(l) }}
{{ '123'.isdigit() }}|{{ 'abc'.isalpha() }}|{{ 'a1'.isalnum() }}|{{ ' '.isspace() }}|{{ 'ABC'.isupper() }}|{{ 'abc'.islower() }}|{{ ''.isdigit() }}
{{ '{} and {}'.format('a', 1) }}|{{ '{0}{1}{0}'.format('x', 'y') }}|{{ '%s is %d'|format('a', 3) }}|{{ '{:.2f}'.format(f) }}|{{ '{:>5}|'.format('a') }}|{{ '{a}'.format(a=1) }}
{{ s|upper }}|{{ s|lower }}|{{ s|title }}|{{ s|capitalize }}|{{ s|length }}|{{ l|length }}|{{ d|length }}|{{ uni|length }}|{{ words|wordcount }}
{{ l|first }}|{{ l|last }}|{{ l|min }}|{{ l|max }}|{{ l|sum }}|{{ l|sort }}|{{ ls|sort }}|{{ l|reverse|list }}|{{ s|reverse }}|{{ ls|sort(case_sensitive=true) }}|{{ l|sort(reverse=true) }}
{{ 3.7|round }}|{{ 3.14159|round(2) }}|{{ 2.5|round }}|{{ 3.2|round(method='ceil') }}|{{ neg|abs }}|{{ '42'|int }}|{{ 'x'|int }}|{{ '2.5'|float }}|{{ 3.9|int }}|{{ 7|float }}|{{ 'x'|int(9) }}
{{ lod|map(attribute='v')|list }}|{{ ls|map('upper')|list }}|{{ lod|selectattr('r', 'equalto', 'x')|list }}|{{ lod|rejectattr('r', '==', 'x')|map(attribute='v')|list }}|{{ l|select('odd')|list }}|{{ l|reject('gt', 2)|list }}
{% for g in lod|groupby('r') %}{{ g.grouper }}:{{ g.list|length }};{% endfor %}|{{ l|batch(2)|list }}|{{ [1,2,2,3]|unique|list }}
{{ s|string }}|{{ f|string }}|{{ l|string }}|{{ nul|string }}|{{ t|string }}|{{ huge|string }}|{{ 'abc'|list }}
{{ undefined_thing|default('d') }}|{{ empty|default('d') }}|{{ empty|default('d', true) }}|{{ nul|default('d') }}|{{ nul|d('x', true) }}
{{ 'a\nb\n\nc'|indent(2) }}|{{ 'a\nb'|indent(2, true) }}|{{ 'a\nb'|indent(width=3, first=true) }}|{{ 'a\n\nb'|indent(2, blank=true) }}
{{ '<a href="x">\'</a>'|e }}|{{ '<b>'|escape }}|{{ '<b>'|safe }}|{{ '<p>a  b</p>'|striptags }}|{{ words|truncate(9) }}
{{ s is string }}{{ n is number }}{{ n is integer }}{{ f is float }}{{ f is number }}{{ t is boolean }}{{ t is number }}{{ nul is none }}{{ l is sequence }}{{ l is iterable }}{{ d is mapping }}{{ s is iterable }}{{ s is sequence }}{{ d is sequence }}{{ d is iterable }}
{{ t is true }}{{ t is false }}{{ n is odd }}{{ n is even }}{{ n is divisibleby 7 }}{{ n is divisibleby(2) }}{{ s is defined }}{{ zz is undefined }}{{ zz is not defined }}{{ n is eq 7 }}{{ n is sameas 7 }}{{ 'abc' is lower }}{{ 'a' is in ['a'] }}{{ raise_exception is callable }}{{ s is callable }}
{% set x = 1 %}{% for i in l %}{% set x = i %}{% endfor %}{{ x }}|{% set ns = namespace(x=1, y=[]) %}{% for i in l %}{% set ns.x = i %}{% set ns.y = ns.y + [i] %}{% endfor %}{{ ns.x }}{{ ns.y }}
{% if t %}{% set y = 5 %}{% endif %}{{ y }}|{% set a, b = 1, 2 %}{{ a }}{{ b }}|{% set c = [1, 2] %}{% set p, q = c %}{{ p }}{{ q }}
{% set block %}in {{ s }} block{% endset %}{{ block }}|{% set b2 | upper %}abc{% endset %}{{ b2 }}|{{ block|length }}
{% macro m(a, b='x', c=none) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(1, c=3) }}{{ m('q') + 'z' }}
{% macro outer(x) %}<{{ caller() }}{{ x }}>{% endmacro %}{% call outer(1) %}body{% endcall %}
{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}|{% filter upper %}abc{{ s }}{% endfilter %}
{% raw %}{{ not }} {% generation %}{% endraw %}|{# comment {% generation %} #}|{{ '{% generation %}' }}
{% generation %}{% set inner = 1 %}{{ s }}{% endgeneration %}{{ inner is defined }}
  {%- if t -%}   a   {%- endif -%}   b   {{- s -}}   c
{% for i in range(3) %}{{ i }}{% endfor %}{{ range(2, 8, 3)|list }}{{ range(3, 0, -1)|list }}{% for i in range(0, 3) -%} {{ i }} {%- endfor %}
{{ strftime_now('%d %B %Y') }}|{{ strftime_now('%Y-%m-%d %H:%M:%S') }}|{{ strftime_now('%a %A %b %j %y %I %p %U %w %%') }}|{{ strftime_now('%-d %-m %-H') }}|{{ strftime_now('%e') }}
{{ raise_exception('no: ' + s) }}
{{ 'a' 'b' }}|{{ "tab\tq\"uote'" }}|{{ 'nl\\n' }}|{{ '\d \u00e9 \x41 \101' }}|{{ 'it\'s' }}
{{ dict(a=1, b=2) }}|{{ dict(a=1)['a'] }}|{% set j = joiner(', ') %}{% for i in l %}{{ j() }}{{ i }}{% endfor %}|{% set cy = cycler('a', 'b') %}{{ cy.next() }}{{ cy.next() }}{{ cy.next() }}
{{ l.append(4) }}
{{ d.update({'q': 1}) }}
{{ l.index(2) }}|{{ l.count(2) }}|{{ (1, 2, 2).count(2) }}
{{ s.__class__ }}
{{ ''.__class__.__mro__ }}
{% if s is string and s|length > 3 and (n == 7 or not t) %}yes{% elif n %}mid{% else %}no{% endif %}
{% for m in [{'role': 'a', 'content': 'x'}, {'role': 'b'}] %}{{ m.role }}:{{ m.content }}{% if m.content is defined %}!{% endif %}{% if 'content' in m %}?{% endif %};{% endfor %}
{{ nosuchfilter|nosuch }}
{{ s.nosuch() }}
{{ nosuch() }}
{% if %}
{{ s
{% for x in l %}
{% include 'x' %}
{{ [1, 2, 3,] }}|{{ {'a': 1,} }}|{{ (1, 2)[0] }}|{{ [[1, 2], [3]][0][1] }}|{{ 'abc'[1] }}
{{ 1_000 }}|{{ 1e3 }}|{{ 1.5e-7 }}|{{ 0x1f }}|{{ 100000000000000000000 }}
{{ lod|map(attribute='zz', default='-')|list }}|{{ [[1, 2]]|map('first')|list }}|{{ [1, none, 2]|select|list }}|{{ lod|sum(attribute='v') }}|{{ lod|sort(attribute='v', reverse=true)|map(attribute='v')|list }}
{{ (messages|default([]))|length }}|{{ s|first }}|{{ s|last }}|{{ [l, ls]|sum(start=[]) }}
{{ l|map('string') is iterable }}
{%- set t2 = 'x' -%}{{ t2 }}{{ "\n" }}
{{ s[:5] ~ '...' if s|length > 5 else s }}|{{ (s ~ '!')|upper }}|{{ -n }}|{{ not n == 7 }}|{{ n is not none }}
{{ 'ß'.upper() }}|{{ 'É'.lower() }}|{{ 'İ'|lower }}|{{ 'éa b'|title }}|{{ 'o’neil-x y_z'|title }}
{{ "%.3f"|format(f) }}|{{ "%5d|%-5d|"|format(n, n) }}
{{ namespace(a=1).a }}|{% set q = namespace() %}{% set q.z = 'v' %}{{ q.z }}|{{ q.missing is defined }}
{{ l|tojson|safe }}|{{ (l|tojson)[1:] }}|{{ l|tojson|length }}|{{ 'x' + l|tojson }}|{{ d|tojson|upper }}
{{ loop is defined }}
{{ 10 > 9 > 8 }}|{{ 3 == 3 == 3 }}|{{ 'x' in 'xyz' in ['xyz'] }}
{{ f|int + 1 }}|{{ '3' * 2 }}|{{ 5 * '3' }}|{{ 2 * [1] }}|{{ n % 2 == 1 }}|{{ true + 1 }}
{{ 1000000|filesizeformat }}
{{ l[1:][0] }}|{{ l[1:]|length }}|{{ l[1:]|tojson }}|{{ l[1:] + [5] }}|{{ l[1:] == [1, 2] }}|{{ l[1:] is sequence }}|{{ l[1:][-1] }}|{{ l[::-1][0] }}|{{ (1, 2, 3)[:2] }}
{{ [][::-1] }}|{{ ''[::-1] }}|{{ [][::2] }}|{{ [1][::-1] }}|{{ l[2::-1] }}|{{ l[:0:-1] }}|{{ l[-9:9] }}|{{ l[9:-9:-1] }}|{{ l[1:1] }}|{{ l[2:1] }}|{{ s[n - 2 : n + 1] }}|{{ s[:s.index(',')] }}|{{ l[{'a': 1}['a']:] }}|{{ s[ : ] }}|{{ l[:none] }}
{{ l[::0] }}
{{ nul|trim }}|{{ n|trim }}|{{ nul|upper }}|{{ t|lower }}|{{ undefined_thing|trim }}|{{ l|upper }}|{{ 'xxax'|trim('x') }}
{{ nul is iterable }}{{ n is iterable }}{{ zz is iterable }}{{ t is iterable }}{{ empty is iterable }}{{ nul is sequence }}{{ nul is mapping }}{{ zz is string }}{{ l[1:] is iterable }}{{ d.items() is iterable }}
{{ nul|length }}
{{ n|length }}
{{ d[1:] }}
{{ undefined_thing[1:] }}
{% set ns = namespace(m=l[1:]) %}{{ ns.m }}|{% for x in l[1:] %}{{ x }}{{ loop.last }}{% endfor %}|{{ {'a': l[:2], 'b': s[1:2]} }}
{{ '2.9'|int }}|{{ '1f'|int(0, 16) }}|{{ 'x'|float }}|{{ ' 7 '|int }}|{{ nul|int }}|{{ t|int }}|{{ '1e3'|float }}|{{ 'x'|float(1.5) }}|{{ 'x'|int(default=-1) }}
""".strip("\n").split("\n")

# Those that need line breaks.
BLOCKS = [
    "{% if t %}\n  a\n{% endif %}\n  {% if t %}\n b {% endif %} c\n",
    "x\n  {% for i in l %}\n  {{ i }}\n  {% endfor %}\n\ty {# c #}\n\n",
    "x\r\n{% if t %}\r\ny\r\n{% endif %}\r\nz\r\n",
    "{%+ if t %}\n a\n{%+ endif %}\n  {%- set q = 1 +%}\nb",
    "  {{ s }}\n  {#- c -#}\n  {{ n }}\n\n\n",
    "{% set x %}\n  a\n{% endset %}\n[{{ x }}]\n",
    "{% raw %}  {{ x }}\n{% endraw %}\nend\n",
    "{%- for i in l %}\n    {%- generation %}\n    {{ i }}\n    {%- endgeneration %}\n{%- endfor %}\n",
    "{% for i in l %}\n  {% generation -%}\n    {{ i }}\n  {%- endgeneration %}\n{% endfor %}\n",
    "{{ 'a\nb' }}\n{{ 'c\\\nd' }}",
    "{% macro m(x) %}\n  {{ x }}\n{% endmacro %}\n{{ m(1) }}{{ m(2) -}}\n z",
    "a{% if t -%}\n\n  b\n\n{%- endif %}\n\nc",
    "{{ s\n  | upper\n}}\n{%\n  if t\n%}y{% endif %}",
    "{#\n multi\n line {{ x }} {% if %}\n#}\nz",
    "\n\n{{ s }}\n",
    "{% for m in lod -%}\n{{ m.r }}\n{%- if not loop.last %}, {% endif %}\n{%- endfor %}",
]


def main():
    cases = []
    for name in TEMPLATES:
        for conversation, messages in CONVERSATIONS.items():
            for tools in (None, TOOLS):
                if (tools is not None) != (conversation in ("tools", "one")) and not (conversation == "tools"):
                    if tools is not None:
                        continue
                for prompt in (False, True):
                    if conversation in ("odd", "empty", "parts") and not prompt:
                        continue
                    variables = {"add_generation_prompt": prompt, "bos_token": "<s>", "eos_token": "</s>", "tools": None}
                    if prompt and name.startswith("qwen3"):
                        variables["enable_thinking"] = False
                    expected = render(TEMPLATES[name], {**variables, "tools": tools, "messages": messages})
                    cases.append({"template": name, "conversation": conversation, "tools": tools is not None,
                                  "variables": {k: v for k, v in variables.items() if k != "tools"}, "expected": expected})
    snippets = [{"source": s, "expected": render(s, V)} for s in SNIPPETS + BLOCKS]
    out = {"now": NOW, "templates": TEMPLATES, "conversations": CONVERSATIONS, "tools": TOOLS, "cases": cases, "variables": V, "snippets": snippets}
    path = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "chat_templates.json"
    path.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    refused = sum(c["expected"] is None for c in cases), sum(c["expected"] is None for c in snippets)
    print(f"{len(cases)} cases ({refused[0]} refused), {len(snippets)} snippets ({refused[1]} refused)")


if __name__ == "__main__":
    main()
