"""Chat templates in the forms of families whose published ones are not in the shared data: short,
written for these tests, with the same turns, ends and quirks.
"""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Turns of user and model alternate; a system text goes into the first of the user's.
GEMMA3 = """{{ bos_token }}
{%- set ns = namespace(first='') -%}
{%- if messages[0].role == 'system' -%}
    {%- set ns.first = messages[0].content + '\n\n' -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for m in messages -%}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate') }}
    {%- endif -%}
    {%- set role = 'model' if m.role == 'assistant' else m.role -%}
    {{ '<start_of_turn>' + role + '\n' + (ns.first if loop.first else '') }}
    {{- m.content | trim }}{{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""
# The system text goes into a last turn of the user's alone, so training loses it;
# add_generation_prompt is not heeded.
MISTRAL = """{%- if messages[0].role == 'system' %}
    {%- set system, messages = messages[0].content, messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- if tools and loop.last %}{{ '[AVAILABLE_TOOLS]' }}{{ tools|tojson }}{% endif %}
        {{- '[INST]' }}{{ system + '\n\n' if loop.last and system is defined else '' }}
        {{- m.content + '[/INST]' }}
    {%- elif m.tool_calls %}
        {{- '[TOOL_CALLS]' }}{{ m.tool_calls|map(attribute='function')|list|tojson }}{{ eos_token }}
    {%- elif m.role == 'tool' %}
        {{- '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- m.content + eos_token }}
    {%- endif %}
{%- endfor %}"""
# A system text of its own with the date, where there is none.
GRANITE = """{%- if messages[0].role != 'system' %}
    {{- '<|start_of_role|>system<|end_of_role|>Today is ' + strftime_now('%B %d, %Y') + '.' }}
    {{- '<|end_of_text|>\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""
# Only the last answer is ended.
OLMO2 = """{{ bos_token }}{% for m in messages %}
{% if m.role == 'assistant' %}
{{ '<|assistant|>\n' + m.content + (eos_token if loop.last else '\n') }}
{%- else %}
{{ '<|' + m.role + '|>\n' + m.content + '\n' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""
# The next role ends an answer; the last has no end.
GLM4 = """[gMASK]<sop>
{%- for m in messages %}
    {{- '<|' + ('observation' if m.role == 'tool' else m.role) + '|>\n' + m.content }}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
