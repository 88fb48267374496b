"""Chat templates as models bring them."""

from __future__ import annotations

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BODY = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if "
    "add_generation_prompt %}<|assistant|>{% endif %}"
)
ALTERNATES = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
SYSTEM_IN_FIRST = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set "
    "system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for "
    "message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif "
    "%}{% endfor %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
    "supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else "
    "message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
DATED = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}\n"
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content'] "
    "| trim %}\n"
    "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = '' %}\n{%- endif %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}{{- 'Today Date: ' + date_string + "
    "'\\n\\n' }}{{- system_message }}"
    "{{- '<|eot_id|>' }}\n{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + "
    "message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}{{- "
    "'<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
TODAY = "{% set today = strftime_now('%Y-%m-%d') %}Knowledge: 2024. Today: {{ today }}.\n" + CHATML
GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ "
    "eos_token }}{% endgeneration %}"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}\n{% endif %}{% endfor %}"
    "{%- if add_generation_prompt -%}<|assistant|>\n{%- endif -%}"
)
GENERATION_SCOPE = (
    "{% for m in messages %}{%- generation -%}{% set inner = m.role %}[{{ inner }}]{{ m.content "
    "}}{%- endgeneration -%}"
    "{{ inner is defined }}{% endfor %}"
)
TOOLS = (
    "{% if tools is not none %}TOOLS {{ tools | tojson }}{% endif %}{% if documents is not none "
    "%}DOCS{% endif %}"
    "{% if tools %}T{% endif %}{{ tools is defined }}{{ documents is defined }}{{ custom_flag is defined }}"
    + BODY
)
NAMESPACED = (
    "{%- set ns = namespace(system='', first=true, pairs=[]) -%}{%- for m in messages -%}{%- if "
    "m.role == 'system' -%}"
    "{%- if ns.first -%}{%- set ns.system = ns.system + m.content -%}{%- set ns.first = false -%}"
    "{%- else -%}{%- set ns.system = ns.system + '\n\n' + m.content -%}{%- endif -%}{%- endif -%}{%- "
    "endfor -%}"
    "{{ bos_token }}{{ ns.system }}{%- for m in messages -%}{%- if m.role == 'user' -%}{{ '<｜User｜>' "
    "+ m.content }}"
    "{%- elif m.role == 'assistant' -%}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + "
    "'<｜end▁of▁sentence｜>' }}{%- endif -%}"
    "{%- endfor -%}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
MACROS = (
    "{% macro turn(role, text) %}«{{ role | upper }}» {{ text }}\n{% endmacro %}"
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ turn(m.role, m.content) }}"
    "{% if loop.index > 6 %}{% break %}{% endif %}{% endfor %}«ASSISTANT» "
)
LAYOUT = (
    "{% for m in messages %}\n    {% if m.role == 'user' %}\n        USER: {{ m.content }}\n    {% else %}\n"
    "        {{ m.role | title }}: {{ m.content }}\n    {% endif %}\n{% endfor %}\nASSISTANT:"
)
JSON = (
    "{{ messages | tojson }}\n{{ messages | tojson(indent=2) }}"
    "{% for m in messages %}{{ {'role': m.role, 'text': m.content} | tojson(sort_keys=true) }}{% endfor %}"
)
DEFINED = (
    "{% for name in ['x'] %}{{ bos_token is defined }}{{ eos_token is defined }}{{ pad_token is "
    "defined }}{{ unk_token is defined }}"
    "{{ sep_token is defined }}{{ cls_token is defined }}{{ mask_token is defined }}{{ image_token "
    "is defined }}{% endfor %}"
    "{{ bos_token }}{{ image_token }}" + BODY
)
STRICT_KEYS = (
    "{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls %}TOOL{% endif %}{% if "
    "m['name'] %}{{ m.name }}{% endif %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text "
    "}}{% endfor %}{% endif %}"
    "{{ m.get('reasoning_content', '') }}{{ eos_token }}{% endfor %}{{ messages | length }}{{ "
    "messages[-1].role }}"
)
PREFILL = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content }}{% if not (loop.last and m.role == "
    "'assistant') %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt and messages[-1].role != 'assistant' %}<|assistant|>{% endif %}"
)
# Families as people serve them. `QWEN` writes a system text of its own where the conversation has none.
QWEN = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA3 = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for m in loop_messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
