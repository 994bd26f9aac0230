"""The report's page: one self-contained HTML file, styles and all, filled in by ``lumbar.output.report``.

It holds no script. A picture is enlarged by a check box that its label switches: that works in a notebook's output, in
a mail, and from a file. Each picture's data stand once; the details beside the grades show parts of the same data.
"""

from lumbar.chains.contract import LEVEL_COLOURS

_COLOURS = "\n".join(
    f".at-{level} {{ --level: rgb({red}, {green}, {blue}); }}" for level, (red, green, blue) in LEVEL_COLOURS.items()
)

_STYLE = """
:root { --ink: #1c2430; --soft: #566373; --line: #dfe5ec; --back: #f5f7fa; --card: #fff;
        --mild: #8fb8a4; --moderate: #e8b04a; --severe: #cf4b4b; --accent: #2c5f8a; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
       font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 26px 24px 48px; }
h1 { font-size: 25px; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 34px 0 12px; }
h3 { font-size: 15px; margin: 0; }
a { color: var(--accent); }
.soft { color: var(--soft); }
.mono { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, monospace; font-size: 12px; }
header { display: flex; align-items: center; justify-content: space-between; gap: 16px; flex-wrap: wrap; }
.badge { background: #fff3d6; color: #7a5600; border: 1px solid #ecd9a4; border-radius: 999px; padding: 5px 14px;
         font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 12px; margin: 20px 0 12px; }
.card, .study, .panel { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 12px 14px; color: inherit; text-decoration: none; }
.card b { display: block; font-size: 22px; font-weight: 650; font-variant-numeric: tabular-nums; }
a.card { border-color: #b9cbdd; } a.card span { color: var(--accent); text-decoration: underline; }
.panel { padding: 14px 16px; }
.two { display: grid; grid-template-columns: 3fr 2fr; gap: 12px; align-items: start; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 14px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.bar { display: grid; grid-template-columns: 90px 1fr 152px; gap: 10px; align-items: center; margin: 5px 0; }
.bar i { display: block; height: 11px; min-width: 2px; background: var(--accent); border-radius: 3px; }
.bar span:last-child { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.study { margin: 0 0 22px; scroll-margin-top: 8px; }
.study > div { padding: 12px 16px; }
.study .head { display: flex; gap: 4px 12px; align-items: baseline; border-bottom: 1px solid var(--line);
               padding: 11px 16px; flex-wrap: wrap; }
.pill { border-radius: 999px; padding: 2px 10px; font-size: 12px; font-weight: 600; background: #e0efe7;
        color: #22603f; }
.pill.prior { background: #fbe3e1; color: #8d2a24; }

/* pictures: the frame is the label of a check box; checked, it fills the window */
.store { position: absolute; width: 0; height: 0; overflow: hidden; }
.row { display: grid; gap: 14px 12px; align-items: start; }
.sagittals { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.axials { grid-template-columns: repeat(5, minmax(0, 1fr)); }
figure { margin: 0; min-width: 0; }
figure input { position: absolute; opacity: 0; width: 1px; height: 1px; }
.frame { display: block; cursor: zoom-in; }
.shot { position: relative; display: block; background: #000; border-radius: 6px; overflow: hidden;
        aspect-ratio: var(--ratio); }
.shot svg { position: absolute; inset: 0; width: 100%; height: 100%; display: block; }
.shot b { position: absolute; font: 600 13px/1 system-ui, "DejaVu Sans", sans-serif; color: var(--level, #fff);
          transform: translate(13px, -50%); text-shadow: 0 0 3px #000, 0 0 3px #000, 0 1px 2px #000, 1px 0 2px #000;
          white-space: nowrap; }
.shot b.to-left { transform: translate(calc(-100% - 13px), -50%); }
.shot b small { font-size: 11px; font-weight: 500; }
.shot em { position: absolute; top: 50%; font: 600 12px/1 system-ui, sans-serif; color: #cfd8e3; left: 6px;
           text-shadow: 0 0 3px #000, 0 0 3px #000; font-style: normal; }
.shot em.end { left: auto; right: 6px; }
.shot strong { position: absolute; left: 8px; top: 8px; font: 650 14px/1 system-ui, sans-serif; color: var(--level);
               text-shadow: 0 0 3px #000, 0 0 3px #000; }
figcaption { font-size: 12px; color: var(--soft); margin-top: 5px; line-height: 1.35; }
.frame .close { display: none; }
figure input:focus-visible + .frame .shot { outline: 3px solid var(--accent); outline-offset: 2px; }
figure input:checked + .frame { position: fixed; inset: 0; z-index: 10; background: rgb(6, 9, 14);
  display: flex; flex-direction: column; align-items: center; justify-content: center; gap: 8px; cursor: zoom-out; }
figure input:checked + .frame .shot { width: min(96vw, calc(90vh * var(--ratio))); border-radius: 0; }
figure input:checked + .frame .shot b { font-size: 18px; }
figure input:checked + .frame .close { display: block; color: #cfd8e3; font-size: 13px; }
.extra .frame { display: none; }
.extra { height: 0; }
.cross { stroke: var(--level); stroke-width: 2px; vector-effect: non-scaling-stroke; fill: none; }
.halo { stroke: #000; stroke-width: 4.5px; stroke-opacity: .75; vector-effect: non-scaling-stroke; fill: none; }
.other-slice { stroke-dasharray: 3 2.5; }
.truth { stroke: #fff; stroke-width: 1.6px; vector-effect: non-scaling-stroke; fill: none; }

table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 12px; }
th, td { padding: 5px 8px; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td, tbody tr:last-child th { border-bottom: 0; }
.grid, .levels { table-layout: fixed; margin-top: 4px; } .grid th:first-child { width: 262px; }
.levels th:first-child { width: 62px; } .levels td:first-child { font-weight: 650; font-size: 15px; }
.levels th:last-child { width: 31%; }
.levels tbody th { color: var(--ink); font-size: 15px; vertical-align: top; }
.grade { display: flex; gap: 10px; align-items: flex-start; }
.detail { flex: 0 0 116px; cursor: zoom-in; background: #000; border-radius: 5px; overflow: hidden; display: block; }
.detail svg { display: block; width: 116px; height: 116px; }
.none { flex: 0 0 116px; height: 116px; border: 1px dashed #b8c2cd; border-radius: 5px; color: var(--soft);
        font-size: 11.5px; display: grid; place-items: center; text-align: center; padding: 6px; }
.marks { flex: 1 1 0; min-width: 0; }
.marks > div + div { margin-top: 9px; }
.side { font-size: 12px; color: var(--ink); margin-bottom: 2px; }
.split { display: flex; height: 10px; border-radius: 3px; overflow: hidden; background: var(--line);
         margin-bottom: 2px; }
.split i { display: block; height: 100%; }
.m0 { background: var(--mild); } .m1 { background: var(--moderate); } .m2 { background: var(--severe); }
.num { font-size: 12px; color: var(--soft); white-space: nowrap; } .num b { color: var(--ink); }
.true { display: inline-block; font-size: 11.5px; margin-top: 3px; border-left: 4px solid; padding-left: 5px; }
.t0 { border-color: var(--mild); } .t1 { border-color: var(--moderate); } .t2 { border-color: var(--severe); }
.key { display: flex; gap: 6px 18px; font-size: 12.5px; color: var(--soft); margin: 0 0 8px; flex-wrap: wrap; }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; }
.key svg { width: 14px; height: 14px; vertical-align: -2px; margin-right: 4px; background: #333; border-radius: 2px; }
ul.problems { margin: 0; padding-left: 18px; } ul.problems li { overflow-wrap: anywhere; font-size: 12.5px; }
.right { text-align: right; }
footer { margin-top: 34px; color: var(--soft); font-size: 12.5px; }
@media (max-width: 1000px) {
  .two { grid-template-columns: 1fr; }
  .grade { flex-direction: column; } .marks { width: 100%; flex: none; }
  .detail, .none { flex: none; width: 116px; }
  .levels th:last-child { width: auto; } .grid th:first-child { width: 180px; }
  main { padding: 18px 14px 40px; }
}
@media (max-width: 620px) {
  .sagittals { grid-template-columns: 1fr; } .axials { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
@media print { .frame, .detail { cursor: auto; } .study { break-inside: avoid-page; } }
"""

_MACROS = """
{% macro points(crosses, circles, arm) %}
  {% for c in crosses %}
  <g class="at-{{ c.level }}"><title>{{ c.text }}</title>
  {% for kind in ("halo", "cross") %}<path class="{{ kind }}{% if not c.is_on_slice %} other-slice{% endif %}"
    d="M{{ c.x - arm }} {{ c.y }}H{{ c.x + arm }}M{{ c.x }} {{ c.y - arm }}V{{ c.y + arm }}"/>{% endfor %}</g>
  {% endfor %}
  {% for c in circles %}
  <g><title>{{ c.text }}</title>
  {% for kind in ("halo", "truth") %}<circle class="{{ kind }}{% if not c.is_on_slice %} other-slice{% endif %}"
    cx="{{ c.x }}" cy="{{ c.y }}" r="{{ arm + 3 }}"/>{% endfor %}</g>
  {% endfor %}
{% endmacro %}
{% macro figure(shot, extra) %}
<figure class="{{ 'extra' if extra }}"><input type="checkbox" id="zoom-{{ shot.name }}"
  aria-label="enlarge {{ shot.title }}"{% if extra %} tabindex="-1"{% endif %}>
<label class="frame" for="zoom-{{ shot.name }}"><span class="shot{% if shot.heading %} at-{{ shot.labels[0].level if
  shot.labels }}{% endif %}" style="--ratio: {{ (shot.width / shot.height) | round(4) }}">
  <svg viewBox="0 0 {{ shot.width }} {{ shot.height }}" role="img" aria-label="{{ shot.title }}">
  <use href="#{{ shot.name }}"/>{{ points(shot.crosses, shot.circles, 7) }}</svg>
  {% if shot.heading %}<strong>{{ shot.heading }}</strong>{% endif %}
  {% for l in shot.labels %}<b class="at-{{ l.level }}{% if l.is_to_left %} to-left{% endif %}"
    style="left: {{ l.left }}%; top: {{ l.top }}%">{{ l.text }}{% if l.other_slice is not none %}
    <small>slice {{ l.other_slice }}</small>{% endif %}</b>{% endfor %}
  <em>{{ shot.edges[0] }}</em><em class="end">{{ shot.edges[1] }}</em></span>
  <span class="close">{{ shot.title }} · click to close</span></label>
{% if not extra %}<figcaption>{{ shot.title }}</figcaption>{% endif %}</figure>
{% endmacro %}
{% macro bar(cell, colours) %}
<div class="split">{% for p in cell.percent %}<i class="{{ colours[loop.index0] }}" style="width:{{ p }}%"></i>{% endfor
  %}</div><span class="num">{% for p in cell.percent %}{{ "" if loop.first else " · " }}\
{% if loop.last %}<b>{{ p }}</b>{% else %}{{ p }}{% endif %}{% endfor %}</span>
  {% if cell.truth %}<br><span class="true t{{ cell.truth_index }}">truth: {{ cell.truth }}</span>{% endif %}
{% endmacro %}
"""

_STUDY = """
<article class="study" id="study-{{ study.study_id }}">
  <div class="head"><h3>Study {{ study.study_id }}</h3><span class="pill {{ study.status }}">{{ study.status }}</span>
  <span class="soft">{{ study.seconds }} s{{ study.localised }}</span></div>
  {% if study.images %}
  <svg class="store" aria-hidden="true"><defs>{% for image in study.images %}
  <image id="{{ image.name }}" width="{{ image.width }}" height="{{ image.height }}" href="{{ image.data }}"/>
  {% endfor %}</defs></svg>
  <div class="row sagittals">{% for shot in study.figures %}{{ figure(shot, false) }}{% endfor %}</div>
  {% if study.axials %}
  <div class="row axials">{% for shot in study.axials %}{{ figure(shot, false) }}{% endfor %}</div>{% endif %}
  {% for shot in study.extras %}{{ figure(shot, true) }}{% endfor %}
  {% endif %}
  {% if study.pictures %}
  <div class="row axials">{% for picture in study.pictures %}
    <figure><img style="max-width:100%" alt="{{ picture.title }}" src="{{ picture.data }}">
    <figcaption>{{ picture.title }}</figcaption></figure>{% endfor %}</div>
  {% endif %}
  <div>
  {% if study.levels %}
  <table class="levels"><thead><tr><th></th><th>Spinal canal stenosis<br>sagittal T2</th>
    <th>Left neural foraminal narrowing<br>sagittal T1</th><th>Right neural foraminal narrowing<br>sagittal T1</th>
    <th>Subarticular stenosis, left and right<br>axial T2</th></tr></thead>
  <tbody>{% for row in study.levels %}<tr><th>{{ row.title }}</th>
    {% for cell in row.cells %}<td><div class="grade">
      {% if cell.detail %}<label class="detail" for="zoom-{{ cell.detail.name }}"
        title="{{ cell.detail.title }}; click for the whole slice"><svg viewBox="{{ cell.detail.box }}" role="img"
        aria-label="{{ cell.detail.title }}, {{ row.title }}"><use href="#{{ cell.detail.name }}"/>{{
        points(cell.detail.crosses, cell.detail.circles, 6) }}</svg></label>
      {% else %}<div class="none">no point found: the grade comes from other images</div>{% endif %}
      <div class="marks">{% for grade in cell.grades %}<div>
        {% if grade.side and cell.grades | length > 1 %}<div class="side">{{ grade.side }}</div>{% endif %}
        {{ bar(grade, colours) }}</div>{% endfor %}
        {% if cell.detail %}<div class="num">slice {{ cell.detail.slice }}</div>{% endif %}</div>
    </div></td>{% endfor %}</tr>{% endfor %}</tbody></table>
  {% else %}
  <table class="grid"><thead><tr><th></th>{% for column in columns %}<th>{{ column }}</th>{% endfor %}</tr></thead>
  <tbody>{% for row in study.rows %}<tr><td>{{ row.title }}</td>
    {% for cell in row.cells %}<td>{{ bar(cell, colours) }}</td>{% endfor %}</tr>
  {% endfor %}</tbody></table>
  {% endif %}
  </div>
  {% if study.problems %}<div><ul class="problems">
    {% for problem in study.problems %}<li>{{ problem }}</li>{% endfor %}</ul></div>{% endif %}
</article>
"""

_KEY = """
<div class="key">{% for name in value_titles %}<span><i class="{{ colours[loop.index0] }}"></i>{{ name }}\
{{ "; numbers are per cent" if loop.last else "" }}</span>{% endfor %}
{% if is_graded %}<span><svg viewBox="0 0 14 14"><path d="M2 7H12M7 2V12" stroke="#fff" stroke-width="2"/></svg>answer;
dashed: the point lies on another slice</span>
{% if has_truth %}<span><svg viewBox="0 0 14 14"><circle cx="7" cy="7" r="5" stroke="#fff" fill="none"
stroke-width="1.6"/></svg>truth; dashed: marked on another slice</span>{% endif %}
<span>click a picture to enlarge it</span>{% endif %}</div>
{% if is_graded %}<p class="soft" style="margin: 0 0 12px; font-size: 12.5px">
Numbers are per cent of normal / mild · moderate ·
<b>severe</b>, weighted as the competition weighs cases: moderate counts twice, severe four times. They are therefore
higher for severe than the share of such patients. The picture beside a grade shows the slice of its point; the networks
also look at neighbouring slices and, for every grade, at all three series. R, L, A and P say which side of the patient
lies beyond the edge.</p>{% endif %}
"""

TEMPLATE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} run report</title>
<style>"""
    + _STYLE
    + _COLOURS
    + """
</style>
</head>
<body>"""
    + _MACROS
    + """<main>
<header>
  <div><h1>{{ title }} run report</h1>
  <div class="soft">{{ n_studies }} {{ "study" if n_studies == 1 else "studies" }}, {{ answer }}</div></div>
  <div class="badge">Research use only</div>
</header>

{% set problem_place = "#study-%s" % troubled[0].study_id if n_troubled == 1 else "#problems" %}
<section class="cards">
  <div class="card"><b>{{ n_predicted }}</b><span class="soft">predicted</span></div>
  {% if n_prior and troubled %}<a class="card" href="{{ problem_place }}"><b>{{ n_prior }}</b>
  <span>left at the prior</span></a>
  {% else %}<div class="card"><b>{{ n_prior }}</b><span class="soft">left at the prior</span></div>{% endif %}
  {% if troubled %}<a class="card" href="{{ problem_place }}"><b>{{ n_troubled }}</b>
  <span>with problems noted</span></a>
  {% else %}<div class="card"><b>0</b><span class="soft">with problems noted</span></div>{% endif %}
  <div class="card"><b>{{ seconds_a_study }}</b><span class="soft">seconds a study (median)</span></div>
  <div class="card"><b>{{ devices | length }} × {{ device_kind }}</b><span class="soft">at work</span></div>
</section>

{% if n_troubled > 1 %}
<h2 id="problems">Studies with problems</h2>
<div class="panel"><ul class="problems">{% for study in troubled %}
<li><a href="#study-{{ study.study_id }}">{{ study.study_id }}</a>{% if study.status == "prior" %}
<span class="pill prior">prior</span>{% endif %}: {{ study.first }}{% if study.n > 1 %}
<span class="soft">and {{ study.n - 1 }} more</span>{% endif %}</li>{% endfor %}
{% if n_troubled > troubled | length %}<li class="soft">and {{ n_troubled - troubled | length }} more studies, in the
table of all studies</li>{% endif %}</ul></div>
{% endif %}

{% if problems %}
<h2>Tables</h2>
<div class="panel"><ul class="problems">{% for problem in problems %}<li>{{ problem }}</li>{% endfor %}</ul></div>
{% endif %}

{% if shown %}
<h2>{{ "Studies" if shown | length == n_studies else "The first %d studies" % (shown | length) }}</h2>"""
    + _KEY
    + """{% for study in shown %}"""
    + _STUDY
    + """{% endfor %}
{% endif %}

{% if table %}
<h2>All studies</h2>
<div class="panel"><table>
<thead><tr><th>study</th><th>status</th><th class="right">seconds</th>
<th class="right">{{ highest }}</th><th>finding</th>
<th>problems</th></tr></thead>
<tbody>{% for study in table %}<tr{% if study.study_id not in shown_ids %} id="study-{{ study.study_id }}"{% endif %}>
<td>{% if study.study_id in shown_ids %}<a href="#study-{{ study.study_id }}">{{ study.study_id }}</a>{% else
%}{{ study.study_id }}{% endif %}</td>
<td>{% if study.status == "prior" %}<span class="pill prior">prior</span>{% else %}{{ study.status }}{% endif %}</td>
<td class="right">{{ study.seconds }}</td><td class="right">{{ study.worst }} %</td><td>{{ study.worst_title }}</td>
<td>{{ study.problems | join("; ") }}
{% if study.n_more %} <span class="soft">and {{ study.n_more }} more</span>{% endif %}
</td></tr>
{% endfor %}</tbody></table></div>
{% endif %}

<h2>This run</h2>
<div class="two">
  <div class="panel"><h3>Time by stage</h3>
  {% for stage in stages %}
    <div class="bar"><span>{{ stage.name }}</span><span><i style="width:{{ stage.percent }}%"></i></span>
    <span>{{ stage.total }} s{% if stage.each %}
    <span class="soft">({{ stage.each }} each)</span>{% endif %}</span></div>
  {% endfor %}
  <p class="soft" style="margin:8px 0 0">Summed over studies; reading runs beside the networks.
  Limit {{ limit }}.</p></div>
  <div class="panel"><h3 style="margin-bottom:8px">Bundle and versions</h3>
  <dl>
    <dt>weights</dt><dd>{{ dataset }} ({{ recipe }})</dd>
    <dt>manifest</dt><dd class="mono">{{ manifest_hash[:24] }}…</dd>
    <dt>trained on</dt><dd>{{ cohort }}</dd>
    <dt>devices</dt><dd>{{ devices | join(", ") }}</dd>
    <dt>versions</dt><dd class="mono">{{ versions }}</dd>
    {% if rehearsed %}<dt>rehearsed</dt><dd>{{ rehearsed }}</dd>{% endif %}
  </dl></div>
</div>

<footer>Research use only: not a medical device, not for diagnosis or treatment. Probabilities are a model's estimates.
Written by lumbar {{ version }}.</footer>
</main>
</body>
</html>
"""
)
