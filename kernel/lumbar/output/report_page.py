"""The templates of the report's pages of studies: one self-contained HTML file, styles and all.

They hold no script. A picture is enlarged by a check box that its label switches: that works in a notebook's output, in
a mail, and from a file. Each picture's data stand once; the details beside the grades show parts of the same data.
"""

from lumbar.output.report_style import STYLE

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
  {% for c in shot.circles if c.label %}<b class="true-level{% if c.is_to_left %} to-left{% endif %}"
    style="left: {{ c.left }}%; top: {{ c.top }}%">{{ c.label }}</b>{% endfor %}
  <em>{{ shot.edges[0] }}</em><em class="end">{{ shot.edges[1] }}</em></span>
  <span class="close">{{ shot.title }} · click to close</span></label>
{% if not extra %}<figcaption>{{ shot.title }}</figcaption>{% endif %}</figure>
{% endmacro %}
{% macro bar(cell, colours) %}
<div class="split{% if cell.is_prior %} at-prior{% endif %}">{% for p in cell.percent %}\
<i class="{{ colours[loop.index0] }}" style="width:{{ p }}%"></i>{% endfor %}</div>\
<span class="num">{% for p in cell.percent %}{{ "" if loop.first else " · " }}\
{% if loop.last %}<b>{{ p }}</b>{% else %}{{ p }}{% endif %}{% endfor %}</span>
  {% if cell.is_prior %}<br><span class="prior-mark">the prior</span>{% endif %}
  {% if cell.truth %}<br><span class="true t{{ cell.truth_index }}">truth: {{ cell.truth }}</span>{% endif %}
{% endmacro %}
"""

_STUDY = """
<article class="study" id="study-{{ study.anchor }}">
  <div class="head"><h3>Study {{ study.study_id }}</h3><span class="pill {{ study.status }}">{{ study.status }}</span>
  {% if study.n_prior and study.n_prior < study.n_rows %}<span class="pill some">{{ study.n_prior }} of {{ study.n_rows
  }} at the prior</span>{% endif %}
  <span class="soft">{{ study.seconds }} s{{ study.localised }}</span></div>
  {% if study.notes %}<div class="notes">{% for note in study.notes %}<p{% if note.is_alarm %} class="alarm"{% endif
  %}>{{ note.text }}</p>{% endfor %}</div>{% endif %}
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
      {% else %}<div class="none">{{ cell.without }}</div>{% endif %}
      <div class="marks">{% for grade in cell.grades %}<div>
        {% if grade.side and cell.grades | length > 1 %}<div class="side">{{ grade.side }}</div>{% endif %}
        {{ bar(grade, colours) }}</div>{% endfor %}
        {% if cell.detail %}<div class="num">slice {{ cell.detail.slice }}{% if cell.away %}
          <br><span class="away">{{ cell.away }}</span>{% endif %}</div>{% endif %}</div>
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
stroke-width="1.6"/></svg>truth, its level in white; dashed: marked on another slice</span>{% endif %}
<span>click a picture to enlarge it</span>{% endif %}</div>
{% if is_graded %}<p class="soft" style="margin: 0 0 12px; font-size: 12.5px">
Numbers are per cent of normal / mild · moderate ·
<b>severe</b>. They are weighted as the competition weighs cases (moderate counts twice, severe four times), and are
therefore higher for severe than the share of such patients. Numbers marked <span class="prior-mark">the prior</span>
say nothing about this patient: no network graded them. The picture beside a grade shows the slice of its
point; the networks also look at neighbouring slices and, for every grade, at all three series. R, L, A and P say which
side of the patient lies beyond the edge.</p>{% endif %}
"""

HEAD = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{% if study %}Study {{ study.study_id }}, {% endif %}{{ title }} run report</title>
<style>"""
    + STYLE
    + """
</style>
</head>
<body>"""
)

CARDS = """<main>
<header>
  <div><h1>{{ title }} run report</h1>
  <div class="soft">{{ n_studies }} {{ "study" if n_studies == 1 else "studies" }}, {{ answer }}</div></div>
  <div class="badge">Research use only</div>
</header>

{% set problem_place = "#study-%s" % troubled[0].anchor if n_troubled == 1 else "#problems" %}
<section class="cards">
  <div class="card"><b>{{ n_predicted }}</b><span class="soft">predicted</span></div>
  {% if n_prior and troubled %}<a class="card" href="{{ problem_place }}"><b>{{ n_prior }}</b>
  <span>{{ "study" if n_prior == 1 else "studies" }} left at the prior</span></a>
  {% else %}<div class="card"><b>{{ n_prior }}</b><span class="soft">studies left at the prior</span></div>{% endif %}
  <div class="card"><b>{{ n_prior_rows }}</b><span class="soft">of {{ n_rows }} {{ what }} are the prior</span></div>
  {% if troubled %}<a class="card" href="{{ problem_place }}"><b>{{ n_troubled }}</b>
  <span>with problems noted</span></a>
  {% else %}<div class="card"><b>0</b><span class="soft">with problems noted</span></div>{% endif %}
  <div class="card"><b>{{ seconds_a_study }}</b><span class="soft">seconds a study (median)</span></div>
  <div class="card"><b>{{ devices | length }} × {{ device_kind }}</b><span class="soft">at work</span></div>
</section>
"""

TABLES = """{% if problems %}
<h2>Tables</h2>
<div class="panel"><ul class="problems">{% for problem in problems %}<li>{{ problem }}</li>{% endfor %}</ul></div>
{% endif %}
"""

RUN = """<h2>This run</h2>
<div class="two">
  <div class="panel"><h3>Time by stage</h3>
  {% for stage in stages %}
    <div class="bar"><span>{{ stage.name }}</span><span><i style="width:{{ stage.percent }}%"></i></span>
    <span>{{ stage.total }} s{% if stage.each %}
    <span class="soft">({{ stage.each }} each)</span>{% endif %}</span></div>
  {% endfor %}
  <p class="soft" style="margin:8px 0 0">Summed over studies; reading runs beside the networks.
  Limit {{ limit }}.{% if left_out %} Members {{ left_out }}.{% endif %}</p></div>
  <div class="panel"><h3 style="margin-bottom:8px">Bundle and versions</h3>
  <dl>
    <dt>weights</dt><dd>{{ dataset }} ({{ recipe }})</dd>
    <dt>manifest</dt><dd class="mono">{{ manifest_hash[:24] }}…</dd>
    <dt>trained on</dt><dd>{{ cohort }}</dd>
    <dt>devices</dt><dd>{{ devices | unique | join(", ") }}</dd>
    <dt>versions</dt><dd class="mono">{{ versions }}</dd>
    {% if calibration %}<dt>grades</dt><dd>{{ calibration }}</dd>{% endif %}
    {% if rehearsed %}<dt>rehearsed</dt><dd>{{ rehearsed }}</dd>{% endif %}
  </dl></div>
</div>

"""

FOOTER = """<footer>Research use only: not a medical device, not for diagnosis or treatment.
Probabilities are a model's estimates. Written by lumbar {{ version }}.</footer>
</main>
</body>
</html>
"""

STUDY_PAGE = (
    HEAD
    + _MACROS
    + """<main>
<nav><a href="{{ index }}#study-{{ study.anchor }}">← All studies</a>
{% if before %}<a href="{{ before }}">‹ previous</a>{% endif %}
{% if after %}<a href="{{ after }}">next ›</a>{% endif %}
<span class="soft">{{ number }} of {{ n_studies }}</span><span class="badge">Research use only</span></nav>
"""
    + _KEY
    + _STUDY
    + FOOTER
)

TEMPLATE = (
    HEAD
    + _MACROS
    + CARDS
    + """
{% if n_troubled > 1 %}
<h2 id="problems">Studies with problems</h2>
<div class="panel"><ul class="problems">{% for study in troubled %}
<li><a href="#study-{{ study.anchor }}">{{ study.study_id }}</a>{% if study.status == "prior" %}
 <span class="pill prior">prior</span>{% endif %}: {{ study.first }}{% if study.n > 1 %}
 <span class="soft">and {{ study.n - 1 }} more</span>{% endif %}</li>{% endfor %}
{% if n_troubled > troubled | length %}<li class="soft">and {{ n_troubled - troubled | length }} more studies, in the
table of all studies</li>{% endif %}</ul></div>
{% endif %}

"""
    + TABLES
    + """
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
<tbody>{% for study in table %}<tr{% if study.study_id not in shown_ids %} id="study-{{ study.anchor }}"{% endif %}>
<td>{% if study.study_id in shown_ids %}<a href="#study-{{ study.anchor }}">{{ study.study_id }}</a>{% else
%}{{ study.study_id }}{% endif %}</td>
<td>{% if study.status == "prior" %}<span class="pill prior">prior</span>{% else %}{{ study.status }}{% endif %}</td>
<td class="right">{{ study.seconds }}</td><td class="right">{{ study.worst }} %</td><td>{{ study.worst_title }}</td>
<td>{{ study.problems | join("; ") }}
{% if study.n_more %} <span class="soft">and {{ study.n_more }} more</span>{% endif %}
</td></tr>
{% endfor %}</tbody></table></div>
{% endif %}

"""
    + RUN
    + FOOTER
)
