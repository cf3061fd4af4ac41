"""Chat templates with the habits that real ones have."""

from __future__ import annotations

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nI am a default that babbles.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

TRIMMING = """{{ bos_token }}
{%- for m in messages %}
    {%- generation %}
    {{- '<|im_start|>' + m['role'] + '\\n\\n' + (m['content'] | trim) + '<|im_end|>' }}
    {%- endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n\\n' }}
{%- endif %}
"""

NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + m['content'] | trim"
    " + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)

SYSTEM_IN_LAST_USER = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>user\\n' }}"
    "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>' }}{% elif m['role'] == 'assistant' %}{{ m['content'] + '</s>' }}{% endif %}"
    "{% endfor %}"
)

THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
    "{% set content = m['content'].split('</think>')[-1].lstrip('\\n') %}"
    "{% if m['reasoning_content'] and loop.index0 > ns.last %}"
    "{{ '<think>\\n' + m['reasoning_content'] + '\\n</think>\\n\\n' + content }}{% else %}{{ content }}{% endif %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if not enable_thinking | default(true) %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)

OPENS_THINKING = CHATML.replace("{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant\\n<think>\\n' }}")

DATED = CHATML.replace("I am a default", "x").replace(
    "{% for m in messages %}", "{{ 'Today: ' + strftime_now('%d %b %Y') + '\\n' }}{% for m in messages %}", 1
)

DROPS_ASSISTANT = CHATML.replace(
    "{{ '<|im_start|>' + m['role']",
    "{% if m['role'] == 'assistant' %}{% continue %}{% endif %}{{ '<|im_start|>' + m['role']",
)

TOOLS = CHATML + "{% if tools %}{{ '<tool_call>' }}{% endif %}"

SHOUTS = CHATML.replace("+ m['content'] +", "+ m['content'] | upper +")

LOOKS_INTO = CHATML.replace(
    "+ m['content'] +", "+ ('SAW A TOOL' if m['content'].startswith('<tool>') else '') + m['content'] +"
)

CUTS_THINKING_OF_ALL = CHATML.replace("+ m['content'] +", "+ m['content'].split('</think>')[-1] +")
