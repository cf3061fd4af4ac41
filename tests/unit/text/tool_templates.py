"""Chat templates with tools, written with the habits that the real ones of several families have."""

from __future__ import annotations

_ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

CHATML_TOOLS = (
    "{% if tools or messages[0]['role'] == 'system' %}{{ '<|im_start|>system\\n' }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}"
    "{% if tools %}{{ '\\n# Functions\\n<tools>' }}{% for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}"
    "{{ '\\n</tools>\\nCall them in <tool_call></tool_call>.' }}{% endif %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' or (m.role == 'system' and not loop.first)"
    " or (m.role == 'assistant' and not m.tool_calls) %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant' }}"
    "{% if m.content %}{{ '\\n' + m.content }}{% endif %}{% for call in m.tool_calls %}"
    '{{ \'\\n<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}"
    "{% elif m.role == 'tool' %}{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}"
    "{{ '<|im_start|>user' }}{% endif %}{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{% endif %}{% endfor %}" + _ASKS
)
"""Schemas and arguments as JSON, results joined into one message (Qwen 2.5)."""

TRIMS_AND_INDENTS = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|im_start|>system\\n\\n' + system + '<|im_end|>' }}"
    "{% if tools %}{% set first = messages[0].content | trim %}{% set messages = messages[1:] %}"
    "{{ '<|im_start|>user\\n\\nThe functions:\\n\\n' }}{% for t in tools %}{{ t | tojson(indent=4) + '\\n\\n' }}"
    "{% endfor %}"
    "{{ first + '<|im_end|>' }}{% endif %}{% for m in messages %}{% if 'tool_calls' in m %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    "{% set f = m.tool_calls[0].function %}"
    '{{ \'<|im_start|>assistant\\n\\n{"name": "\' + f.name }}'
    "{{ '\", \"parameters\": ' + f.arguments | tojson + '}<|im_end|>' }}"
    "{% elif m.role == 'tool' %}{{ '<|im_start|>ipython\\n\\n' + m.content | tojson + '<|im_end|>' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\\n\\n' + m.content | trim + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n\\n' }}{% endif %}"
)
"""Tools in the first user message, results as JSON strings, texts trimmed, a call's own text left out (Llama 3)."""

SHORT_IDS = (
    "{{ bos_token }}{% set users = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('only user and assistant') }}"
    "{% elif m.role == 'user' %}{% if tools and m == users[-1] %}{{ '[TOOLS][' }}{% for tool in tools %}"
    "{% for key, value in tool.function.items() %}{% if value is string %}{{ '\"' + key + '\": \"' + value + '\"' }}"
    "{% else %}{{ '\"' + key + '\": ' + value | tojson }}{% endif %}{% endfor %}{% endfor %}{{ '][/TOOLS]' }}"
    "{% endif %}"
    "{{ '[INST]' + m.content + '[/INST]' }}{% elif m.tool_calls %}{% for call in m.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('ids need 9 characters') }}{% endif %}"
    "{{ '[CALLS]' + call.function | tojson + call.id }}{% endfor %}{{ '</s>' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + '</s>' }}"
    "{% else %}{% if m.tool_call_id | length != 9 %}{{ raise_exception('ids need 9 characters') }}{% endif %}"
    "{{ '[RESULT]' + m.content + m.tool_call_id + '[/RESULT]' }}{% endif %}{% endfor %}"
)
"""No system role, ids of one length only (Mistral)."""

CALLS_WITHOUT_TEXT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}"
    "{% for call in m.tool_calls %}{{ '<|im_start|>call ' + call.function.name + '\\n' + call.function.arguments }}"
    "{% endfor %}{{ '<|im_end|>' }}{% elif m.role == 'tool' %}{{ '<|im_start|>output ' + m.content + '<|im_end|>' }}"
    "{% elif m.content %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    + _ASKS
)
"""Calls only where the content is none, arguments only as text (DeepSeek)."""

XML_ARGUMENTS = (
    "{% for tool in tools or [] %}{% set f = tool.function %}{{ '<function=' + f.name + '>' }}"
    "{% for name, field in f.parameters.properties | items %}"
    "{{ '\\n<' ~ name ~ '>' ~ {'string': 'text', 'object': 'map'}[field.type] ~ ': ' ~ (field.description | trim) }}"
    "{% if name in f.parameters.required %}{{ ' (required)' }}{% endif %}{% endfor %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% for call in m.tool_calls or [] %}"
    "{{ '<tool_call><function=' + call.function.name + '>' }}"
    "{% for key, value in call.function.arguments | dictsort %}"
    "{{ '<parameter=' ~ key ~ '>' ~ (value if value is string else value | tojson) ~ '</parameter>' }}{% endfor %}"
    "{{ '</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}" + _ASKS
)
"""Types looked up, names sorted and asked for, arguments one by one (Qwen 3 Coder, Gemma 4)."""

THINKING_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}"
    "{% endfor %}{{ '<|im_end|>\\n' }}"
    "{% endif %}{% set ns = namespace(last=0) %}{% for m in messages %}"
    "{% if m.role == 'user' and not m.content.startswith('<tool_response>') %}{% set ns.last = loop.index0 %}"
    "{% endif %}"
    "{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
    "{% set content = m.content %}{% set thought = m.reasoning_content or '' %}"
    "{% if not thought and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if thought and loop.index0 > ns.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}"
    "{% endif %}{{ content }}"
    "{% for call in m.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
"""Reasoning kept behind the last question only, and read out of a reply's text (Qwen 3)."""
