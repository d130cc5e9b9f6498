#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/tokenizer/templates.golden.json: what Jinja 3.1.6, set up by `transformers`
5.23 as for chat templates, makes of tests/data/tokenizer/templates/*.jinja with conversations and
of the snippets below.

    python tests/engine/tokenizer/make_template_golden.py

{"cases": [{"template" or "file", "variables", "output" (null: rendering fails)}]}
"""

import datetime
import json
import pathlib

from transformers.utils.chat_template_utils import _compile_jinja_template

DATA = pathlib.Path(__file__).resolve().parents[2] / "data" / "tokenizer"
NOW = 1_750_000_000  # Sunday, 15 June 2025, 15:06:40 UTC

TOOLS = [
    {"type": "function", "function": {
        "name": "tide", "description": "When is high water at a harbour? \"Local\" time, caf\u00e9.",
        "parameters": {"type": "object", "properties": {
            "harbour": {"type": "string", "description": "its name"},
            "days": {"type": "integer", "minimum": 1, "default": None}},
            "required": ["harbour"]}, "return": "text"}},
    {"type": "function", "function": {"name": "noop", "description": "", "parameters": {}}},
]
HELLO = [{"role": "user", "content": "  Hello <there> & \"you\"  "}]
SYSTEM = [{"role": "system", "content": " Be kind.\n"}] + HELLO
TURNS = SYSTEM + [{"role": "assistant", "content": "Hi!\n"}, {"role": "user", "content": "What's 2+2?"}]
THOUGHT = TURNS + [{"role": "assistant", "content": "<think>\nadd them\n</think>\n\n4"},
                   {"role": "user", "content": "Sure?"},
                   {"role": "assistant", "reasoning_content": "yes", "content": "Yes."}]
CALLS = HELLO + [
    {"role": "assistant", "content": "", "tool_calls": [{"id": "abcdefghi", "type": "function",
        "function": {"name": "tide", "arguments": {"harbour": "K\u00f6ln", "days": 2, "x": [1.5, True, None]}}}]},
    {"role": "tool", "name": "tide", "content": "12:30"},
    {"role": "assistant", "content": "At half past twelve."},
    {"role": "user", "content": "Thanks"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"},
                                      {"type": "text", "text": "nice?"}]}]
WRONG = [{"role": "assistant", "content": "I go first"}, {"role": "user", "content": "no"}]
CONVERSATIONS = [HELLO, SYSTEM, TURNS, THOUGHT, CALLS, PARTS, WRONG]

VARIABLES = {"a": 1, "b": 2.5, "s": "Hello World", "u": "\u00c9t\u00e9 \U0001F680 stra\u00dfe", "t": True,
             "n": None, "l": [3, 1, 2], "w": ["pear", "Apple", "fig", "apple"], "e": "", "el": [],
             "d": {"x": 1, "y": [1, "two", None], "z": {"k": "v"}}, "m": CALLS,
             "text": "line one\nline two\n\nline four  ", "big": 123456789012, "f": 1e16, "g": 1e-5,
             "rows": [{"k": "b", "v": 2}, {"k": "a", "v": 3}, {"k": "c"}]}

EXPRESSIONS = """
a ;; a + b ;; 7 // 2 ;; -7 // 2 ;; -7 % 3 ;; 7 % -3 ;; 7 / 2 ;; 2 ** 10 ;; 2 ** -1 ;; -2 ** 2 ;;
1 + 2 * 3 - 4 / 2 ;; (1 + 2) * 3 ;; 'a' ~ 1 ~ none ~ true ~ 2.0 ;; 'x' * 3 ;; [1] * 2 + [2] ;;
'a' 'b' ;; "it's" ;; 'say "x"' ;; '\\n\\t\\\\|\\u00e9\\x41' ;; 1 < 2 < 3 ;; 1 < 3 < 2 ;;
1 == 1.0 ;; 'a' == 'a' ;; '1' == 1 ;; true == 1 ;; none == false ;; [1, 2] == [1, 2.0] ;;
{'a': 1} == {'a': 1} ;; 'a' < 'b' ;; [1, 2] < [1, 3] ;; not a ;; not not a ;; a and b ;;
e or 'other' ;; n or e or 0 ;; a if t else b ;; a if n ;; (a if n) is defined ;; 'ell' in s ;;
'x' in d ;; 'x' not in d ;; 3 in l ;; 9 not in l ;; not 'x' in d ;; 'a' in 'b' or 'c' in 'c' ;;
s[0] ;; s[-1] ;; s[1:4] ;; s[::-1] ;; s[:-3] ;; s[20:] ;; u[4] ;; u[:5] ;; l[1] ;; l[-1] ;; l[5] ;;
l[1:] ;; l[::2] ;; l[::-1] ;; l[5:1:-2] ;; (1, 2, 3)[1:] ;; d.x ;; d['x'] ;; d.z.k ;; d.nothing ;;
d.y[1] ;; d.y.1 ;; n.x ;; d['nothing'] is defined ;; d.get('x') ;; d.get('q') ;; d.get('q', 5) ;;
l ;; w ;; d ;; (1, 'two') ;; (1,) ;; () ;; [] ;; {} ;;
[none, true, 1.0, 'it\\'s', "q\\"", "b'\\""] ;; {'a': {'b': [1]}} ;; '\\n' ~ ['\\n'] ;; 1.0 ;;
100.0 ;; 1e3 ;; f ;; g ;; 0.1 + 0.2 ;; big * 1000 ;; 1/3 ;; 123456.789 ;; 5e-324 ;; 2.5e20 ;;
true ;; none ;; undefined_name ;; nothing is undefined ;; s|upper ;; s|lower ;; u|upper ;;
u|lower ;; s|length ;; u|length ;; l|length ;; d|length ;; e|length ;; undefined_name|length ;;
'  x '|trim ;; 'xxaxx'|trim('x') ;; text|trim ;; s|title ;; 'hello-big world (x'|title ;;
'hELLO'|capitalize ;; s|replace('l', 'L') ;; s|replace('l', 'L', 1) ;; s|replace('', '-') ;;
l|join(', ') ;; l|join ;; w|join('|') ;; rows|join(',', attribute='k') ;; s|join('-') ;; l|first ;;
l|last ;; el|first ;; s|first ;; s|last ;; s|list ;; d|list ;; l|sort ;; l|sort(reverse=true) ;;
w|sort ;; w|sort(case_sensitive=true) ;; w|unique|list ;; w|unique(true)|list ;;
rows|sort(attribute='k') ;; d|dictsort ;; l|min ;; l|max ;; w|max ;; l|sum ;;
rows[:2]|sum(attribute='v') ;; rows[:2]|sum('v', 10) ;; l|reverse|list ;; s|reverse ;;
l|map('string')|list ;; w|map('upper')|join ;; rows|map(attribute='k')|list ;;
rows|map(attribute='v', default=0)|list ;; w|map('replace', 'p', 'P')|list ;;
l|select('odd')|list ;; l|reject('odd')|list ;; l|select('gt', 1)|list ;;
l|select('in', [1, 2])|list ;; el|select|list ;; [0, 1, '']|select|list ;;
none|selectattr('v')|list ;; undefined_name|map('upper')|list ;; rows|selectattr('v')|list ;;
rows|selectattr('v', 'defined')|list ;;
rows|rejectattr('v', 'defined')|list ;; rows|selectattr('k', 'equalto', 'a')|list ;;
m|selectattr('role', '==', 'user')|list|length ;;
m|selectattr('tool_calls', 'defined')|map(attribute='tool_calls.0.function.name')|list ;;
n|default('x') ;; undefined_name|default('x') ;; undefined_name|d('x') ;; e|default('x', true) ;;
e|default('x', boolean=True) ;; undefined_name|default ;; '42'|int ;; '4.7'|int ;; 'x'|int ;;
'x'|int(7) ;; 3.9|int ;; -3.9|int ;; '2.5'|float ;; 'x'|float ;; 1|float ;; 2.567|round(2) ;;
2.5|round ;; 3.5|round ;; 2.1|round(0, 'ceil') ;; 2.9|round(method='floor') ;; -3|abs ;;
1|string ;; none|string ;; text|indent ;; text|indent(2, true) ;;
text|indent(width=3, first=False, blank=True) ;; text|indent('> ') ;; d|items|list ;; s|safe ;;
5|abs ;; d|tojson ;; d|tojson(indent=2) ;; d|tojson(indent=0) ;; []|tojson(indent=2) ;; u|tojson ;;
u|tojson(ensure_ascii=true) ;; '\\"\\\\\\n\\t\\x08\\x0c\\x1f/<>&\\''|tojson ;; 1.0|tojson ;;
f|tojson ;; none|tojson ;; {'b': 1, 'a': 2}|tojson(sort_keys=true) ;;
l|tojson(separators=(',', ':')) ;; (1, 2)|tojson ;; big|tojson ;; a is defined ;; q is defined ;;
q is not defined ;; n is none ;; a is none ;; a is not none ;; s is string ;; l is string ;;
d is mapping ;; l is mapping ;; l is iterable ;; d is iterable ;; a is iterable ;; l is sequence ;;
s is sequence ;; a is number ;; t is number ;; a is integer ;; t is integer ;; b is float ;;
t is boolean ;; a is boolean ;; t is true ;; t is false ;; a is odd ;; a is even ;;
9 is divisibleby 3 ;; 9 is divisibleby(2) ;; a is eq 1 ;; a is equalto(2) ;; a is ne 2 ;;
a is gt 0 ;; a is lt 0 ;; 2 is in [1, 2] ;; 2 is not in l ;; 'abc' is lower ;; 'ABC' is upper ;;
range is callable ;; s is sameas s ;; not a is defined ;; a is defined and q is not defined ;;
s.upper() ;; s.lower() ;; s.split() ;; s.split(' ') ;; 'a,b,c'.split(',', 1) ;;
'a,b,c'.rsplit(',', 1) ;; '  a  b '.split() ;; 'a  b c'.split(none, 1) ;; text.splitlines() ;;
text.splitlines(true) ;; ''.split() ;; ''.split(',') ;; s.startswith('He') ;; s.endswith('x') ;;
s.startswith(('x', 'H')) ;; 'xxaxx'.strip('x') ;; ' a '.strip() ;; ' a '.lstrip() ;;
' a '.rstrip() ;; s.replace('l', '') ;; s.replace('l', 'L', 2) ;; s.find('o') ;; s.rfind('o') ;;
u.find('s') ;; s.count('l') ;; ', '.join(w) ;; 'abc'.title() ;; 'abc'.capitalize() ;;
'12'.isdigit() ;; '1a'.isdigit() ;; 'abc'.removeprefix('a') ;; 'abc'.removesuffix('c') ;;
d.items()|list ;; d.keys()|list ;; d.values()|list ;; range(3)|list ;; range(2, 5)|list ;;
range(5, 0, -2)|list ;; range(0)|list ;; dict(a=1, b='x') ;; dict({'a': 1}, b=2) ;;
[1, 2, 1].count(1) ;; [3, 4].index(4) ;; strftime_now('%d %b %Y') ;;
strftime_now('%Y-%m-%d %H:%M:%S %A %B %j %y %p %I %a %%') ;; strftime_now('%-d.%-m.') ;;
1 if 0 else 2 if 0 else 3 ;; [1, 2, 3,] ;; {'a': 1,} ;; 1, ;; 1, 2 ;; - a ;; + a ;; - - a ;;
-a|abs ;; -1|abs ;; (-1)|abs ;; not true or true ;; 1 ~ 2 + 3 ;; 'a' ~ 'b' * 2 ;; 2 * 3 ~ 4 ;;
1 + 1 ~ 1 + 1
"""

STATEMENTS = [
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}:{{ x }} {% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }}{{ loop.cycle('o', 'e') }};{% endfor %}",
    "{% for x in el %}x{% else %}none{% endfor %}", "{% for x in undefined_name %}x{% else %}none{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% else %}no{% endfor %}",
    "{% for x in l if x > 9 %}{{ x }}{% else %}no{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}",
    "{% for c in u %}[{{ c }}]{% endfor %}", "{% for (x, y) in [(1, 2), [3, 4]] %}{{ x }}-{{ y }} {% endfor %}",
    "{% for x in l %}{% for y in w %}{{ loop.depth }}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for x in [1,2,3,4,5] %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% set x = 0 %}{% for i in l %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}",
    "{% for i in l %}{{ q is defined }}{% set q = i %}{% endfor %}{{ q is defined }}",
    "{% set ns = namespace(x=0, y='a') %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}{{ ns.z is defined }}",
    "{% set ns = namespace({'k': 1}, j=2) %}{{ ns.k }}{{ ns.j }}",
    "{% if t %}{% set q = 1 %}{% endif %}{{ q }}", "{% set x, y = 1, 'b' %}{{ x }}{{ y }}", "{% set x = 1, 2 %}{{ x }}",
    "{% set x %}a{{ a }}b{% endset %}[{{ x }}]{{ x is string }}", "{% set x | upper | trim %} abc {% endset %}[{{ x }}]",
    "{% if e %}1{% elif l %}2{% else %}3{% endif %}{% if n %}1{% endif %}{% if el %}1{% else %}2{% endif %}",
    "{% macro m(x, y=2, z='k') %}({{ x }}{{ y }}{{ z }}{{ s }}){% endmacro %}{{ m(1) }}{{ m(1, z=3) }}{{ m(x=5, y=6) }}{{ m() }}",
    "{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "{% macro m(v) %}{% for x in v %}{{ x }},{% endfor %}{% endmacro %}{% for i in [1] %}{{ m(l) | upper }}{{ m(l) ~ '!' }}{% endfor %}",
    "{% set g = 1 %}{% macro m() %}{{ g }}{% set g = 5 %}{{ g }}{% endmacro %}{{ m() }}{{ g }}",
    "{% with x = 1, y = a %}{{ x }}{{ y }}{% endwith %}{{ x is defined }}", "{% filter upper %}abc{{ s }}{% endfilter %}",
    "{% filter replace('a', 'b') | upper %}banana{% endfilter %}", "{% raw %}{{ x }} {% if %}{% endraw %}!", "{%- raw -%}  {{ y }}  {%- endraw -%}  z",
    "a {# comment #} b", "a\n{# comment #}\nb", "a\n  {# c #}  \nb", "{#- c -#}  x", "a  {#- c #}  b", "{# multi\nline #}x",
    "{% if t %}\n  x\n{% endif %}\ny", "  {% if t %}\n    x\n  {% endif %}\n  y\n", "a\n   {%- if t -%}   \n b {%- endif -%}\n c",
    "a\n  {%+ if t %}x{% endif +%}\n b", "  {{ a }}  \n  {{- a -}}  \n  {{ a }}\n", "{{ a }}\n", "{{ a }}\n\n", "x\n", "\n", "", "\r\nx\r\ny\rz\r\n",
    "{% for x in l %}\n    {{ x }}\n{% endfor %}\n", "{% for x in l -%}\n    {{ x }}\n{%- endfor %}", "\t{% set x = 1 %}\t{{ x }}", "x {% set y = 1 %}\nz",
    "{% if t %}a{% endif %}   {% if t %}b{% endif %}", "{% set x = 1 %}\n   {% set y = 2 %}\n{{ x + y }}", "{{ {'a': {'b': 1}}.a.b }}", "{{ {'a': 1}['a'] }}}", "{{ '}}' }}{{ '%}' }}",
    "{{ 'a' if false }}|{{ ('a' if false) ~ 'b' }}", "{% generation %}x{{ a }}{% endgeneration %}y", "{{ loop is defined }}",
    "{{ undefined_name.x }}", "{{ undefined_name + 1 }}", "{{ undefined_name() }}", "{{ a() }}", "{{ 1 + 'a' }}", "{{ 'a' + 1 }}", "{{ [1] + 'a' }}", "{{ 1 / 0 }}", "{{ 1 % 0 }}", "{{ a < s }}",
    "{{ raise_exception('no') }}", "{{ s|nofilter }}", "{{ s is notest }}", "{{ s.nomethod() }}", "{% nostatement %}", "{% for x in a %}{% endfor %}", "{% for x, y in [[1]] %}{% endfor %}",
    "{% set d.x = 1 %}", "{{ 'a", "{{ a", "{% if a %}", "{% endif %}", "{{ a b }}", "{{ (1 }}", "{{ 1 ] }}", "{{ }}", "{% if %}{% endif %}", "{% for in l %}{% endfor %}", "{# x", "{{ a | }}", "{{ a is }}", "{{ a. }}", "{{ @ }}", "{% set %}", "{{ m(1 }}",
    "{% macro m(x) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(x) %}{% endmacro %}{{ m(y=2) }}", "{{ l|join(1, 2, 3, 4) }}", "{{ range(1, 2, 0) }}", "{{ n|length }}", "{{ n.upper() }}", "{% for x in n %}{% endfor %}", "{{ 'a' in n }}", "{{ l.append(4) }}", "{{ d.update({}) }}", "{{ d.pop('x') }}",
    "{{ s.__class__ }}", "{{ s._x }}", "{{ undefined_name|tojson }}", "{{ range|tojson }}", "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}",
]


def strftime_now(format):
    return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(format)


def render(template, variables):
    try:
        return _compile_jinja_template(template).render(strftime_now=strftime_now, **variables)
    except Exception:  # whatever it is, we are to fail too
        return None


def main():
    cases = []
    for path in sorted((DATA / "templates").glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        for messages in CONVERSATIONS:
            for tools in (None, TOOLS):
                for extra in ({}, {"enable_thinking": False, "date_string": "1 May 2020"}):
                    variables = {"messages": messages, "tools": tools, "bos_token": "<s>", "eos_token": "</s>",
                                 "add_generation_prompt": not extra, **extra}
                    cases.append({"file": path.name, "variables": variables,
                                  "output": render(template, variables)})
    # One set of variables serves all snippets.
    snippets = []
    for template in STATEMENTS + ["[{{ " + e.strip() + " }}]" for e in EXPRESSIONS.split(";;")]:
        snippets.append({"template": template, "output": render(template, VARIABLES)})
    document = {"now": NOW, "cases": cases, "variables": VARIABLES, "snippets": snippets}
    (DATA / "templates.golden.json").write_text(
        json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
