"""The template of the report, one HTML file with its styles, which ``lumbar.output.report`` fills in."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Lumbar spine run report</title>
<style>
:root { --ink: #1c2430; --soft: #5d6b7c; --line: #dfe5ec; --back: #f5f7fa; --card: #fff;
        --mild: #8fb8a4; --moderate: #e8b04a; --severe: #cf4b4b; --accent: #2c5f8a; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
       font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 26px 24px 48px; }
h1 { font-size: 25px; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 34px 0 12px; }
h3 { font-size: 15px; margin: 0; }
.soft { color: var(--soft); }
.mono { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, monospace; font-size: 12px; }
header { display: flex; align-items: center; justify-content: space-between; gap: 16px; flex-wrap: wrap; }
.badge { background: #fff3d6; color: #7a5600; border: 1px solid #ecd9a4; border-radius: 999px; padding: 5px 14px;
         font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0 12px; }
.card, .study, .panel { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 12px 14px; }
.card b { display: block; font-size: 22px; font-weight: 650; font-variant-numeric: tabular-nums; }
.panel { padding: 14px 16px; }
.two { display: grid; grid-template-columns: 3fr 2fr; gap: 12px; align-items: start; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 14px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.bar { display: grid; grid-template-columns: 90px 1fr 152px; gap: 10px; align-items: center; margin: 5px 0; }
.bar i { display: block; height: 11px; min-width: 2px; background: var(--accent); border-radius: 3px; }
.bar span:last-child { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.study { margin: 0 0 18px; overflow: hidden; }
.study > div { padding: 14px 16px; }
.study .head { display: flex; gap: 12px; align-items: baseline; border-bottom: 1px solid var(--line);
               padding: 11px 16px; }
.pill { border-radius: 999px; padding: 2px 10px; font-size: 12px; font-weight: 600; background: #e0efe7;
        color: #22603f; }
.pill.prior { background: #fbe3e1; color: #8d2a24; }
.look { display: flex; gap: 14px; flex-wrap: wrap; align-items: flex-start; }
.axials { display: flex; flex-wrap: wrap; gap: 10px; flex: 1 1 400px; }
figure { margin: 0; } figure img { display: block; border-radius: 6px; background: #000; max-width: 100%; }
figcaption { font-size: 11.5px; color: var(--soft); margin-top: 4px; max-width: 188px; }
.wide figcaption { max-width: 420px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 12px; }
th, td { padding: 5px 8px; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
.grid { table-layout: fixed; margin-top: 4px; } .grid th:first-child { width: 262px; }
.grid td { padding: 5px 8px; }
.split { display: flex; height: 9px; border-radius: 3px; overflow: hidden; background: var(--line);
         margin-bottom: 2px; }
.split i { display: block; height: 100%; }
.m0 { background: var(--mild); } .m1 { background: var(--moderate); } .m2 { background: var(--severe); }
.num { font-size: 11.5px; color: var(--soft); } .num b { color: var(--ink); }
.key { display: flex; gap: 16px; font-size: 12px; color: var(--soft); margin: 0 0 6px; }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; }
ul.problems { margin: 0; padding-left: 18px; } ul.problems li { overflow-wrap: anywhere; font-size: 12.5px; }
.right { text-align: right; }
footer { margin-top: 34px; color: var(--soft); font-size: 12.5px; }
@media (max-width: 760px) { .two { grid-template-columns: 1fr; } }
</style>
</head>
<body>
<main>
<header>
  <div><h1>Lumbar spine run report</h1>
  <div class="soft">{{ n_studies }} {{ "study" if n_studies == 1 else "studies" }}, 25 graded findings each</div></div>
  <div class="badge">Research use only</div>
</header>

<section class="cards">
  <div class="card"><b>{{ n_predicted }}</b><span class="soft">predicted</span></div>
  <div class="card"><b>{{ n_prior }}</b><span class="soft">left at the prior</span></div>
  <div class="card"><b>{{ n_troubled }}</b><span class="soft">with problems noted</span></div>
  <div class="card"><b>{{ seconds_a_study }}</b><span class="soft">seconds a study (median)</span></div>
  <div class="card"><b>{{ devices | length }} × {{ device_kind }}</b><span class="soft">at work</span></div>
</section>

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

{% if problems %}
<h2>Tables</h2>
<div class="panel"><ul class="problems">{% for problem in problems %}<li>{{ problem }}</li>{% endfor %}</ul></div>
{% endif %}

{% if shown %}
<h2>{{ "Studies" if shown | length == n_studies else "The first %d studies" % (shown | length) }}</h2>
<div class="key"><span><i class="m0"></i>normal / mild</span><span><i class="m1"></i>moderate</span>
<span><i class="m2"></i>severe; numbers are per cent</span></div>
{% for study in shown %}
<article class="study">
  <div class="head"><h3>Study {{ study.study_id }}</h3><span class="pill {{ study.status }}">{{ study.status }}</span>
  <span class="soft">{{ study.seconds }} s · {{ study.found }}</span></div>
  {% if study.pictures %}
  <div class="look">
    {% for picture in study.pictures if picture.is_sagittal %}
    <figure class="wide"><img alt="{{ picture.title }}" src="data:image/png;base64,{{ picture.data }}">
    <figcaption>{{ picture.title }}. Level and confidence.</figcaption></figure>
    {% endfor %}
    <div class="axials">
    {% for picture in study.pictures if not picture.is_sagittal %}
    <figure><img alt="{{ picture.title }}" src="data:image/png;base64,{{ picture.data }}">
    <figcaption>{{ picture.title }}</figcaption></figure>
    {% endfor %}
    </div>
  </div>
  {% endif %}
  <div><table class="grid"><thead><tr><th></th>{% for level in levels %}<th>{{ level }}</th>{% endfor %}</tr></thead>
  <tbody>{% for row in study.rows %}<tr><td>{{ row.title }}</td>
    {% for cell in row.cells %}<td><div class="split">
      {% for p in cell %}<i class="m{{ loop.index0 }}" style="width:{{ p }}%"></i>{% endfor %}</div>
      <span class="num">{{ cell[0] }} · {{ cell[1] }} · <b>{{ cell[2] }}</b></span></td>{% endfor %}</tr>
  {% endfor %}</tbody></table></div>
  {% if study.problems %}<div><ul class="problems">
    {% for problem in study.problems %}<li>{{ problem }}</li>{% endfor %}</ul></div>{% endif %}
</article>
{% endfor %}
{% endif %}

{% if table %}
<h2>All studies</h2>
<div class="panel"><table>
<thead><tr><th>study</th><th>status</th><th class="right">seconds</th>
<th class="right">severe, highest</th><th>finding</th>
<th>problems</th></tr></thead>
<tbody>{% for study in table %}<tr><td>{{ study.study_id }}</td>
<td>{% if study.status == "prior" %}<span class="pill prior">prior</span>{% else %}{{ study.status }}{% endif %}</td>
<td class="right">{{ study.seconds }}</td><td class="right">{{ study.worst }} %</td><td>{{ study.worst_title }}</td>
<td>{{ study.problems | join("; ") }}
{% if study.n_more %} <span class="soft">and {{ study.n_more }} more</span>{% endif %}
</td></tr>
{% endfor %}</tbody></table></div>
{% endif %}

<footer>Research use only: not a medical device, not for diagnosis or treatment. Probabilities are a model's estimates.
Written by lumbar {{ version }}.</footer>
</main>
</body>
</html>
"""
