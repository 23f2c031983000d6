"""Template of the demo's report."""

from __future__ import annotations

from typing import Final

PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>FlowEdge demo</title>
<style>
:root { --ink: #1d2430; --soft: #5c6675; --line: #dfe3e8; --paper: #ffffff; --panel: #f5f7f9;
  --good: #4a7fb5; --bad: #d9822b; --fail: #c22f2f; --pass: #2c7a4b; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 32px 24px 64px; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 28px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 40px 0 8px; padding-top: 12px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 20px 0 8px; }
p, li { max-width: 76ch; }
.soft { color: var(--soft); }
table { border-collapse: collapse; margin: 8px 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 20px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: 13px; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.name { white-space: nowrap; }
.figures { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }
.figures div { background: var(--panel); border-radius: 6px; padding: 10px 16px; min-width: 120px; }
.figures b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.figures span { color: var(--soft); font-size: 13px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 14px; }
figure { margin: 0; }
figure div { display: grid; grid-template-columns: repeat(3, 1fr); gap: 3px; }
figure img { width: 100%; display: block; border-radius: 2px; }
figcaption { font-size: 13px; color: var(--soft); padding-top: 3px; }
.ok { color: var(--pass); } .wrong { color: var(--fail); font-weight: 600; }
svg { max-width: 100%; height: auto; }
.good { fill: var(--good); } .bad { fill: var(--bad); }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin: 0 4px 0 12px; }
details { margin: 8px 0; } summary { cursor: pointer; }
</style>
</head>
<body>
{% macro pictures(ones) %}
<div class="gallery">
{% for one in ones %}
<figure><div>
<img alt="photograph" src="{{ one.photo|jpeg }}">
<img alt="painted defect" src="{{ one.truth|png }}">
<img alt="anomaly map" src="{{ one.overlay|jpeg }}">
</div><figcaption>{{ one.label }}/{{ one.name }}, score {{ one.score|number }}:
<span class="{{ 'wrong' if one.is_wrong else 'ok' }}">
{{ one.verdict.replace('_', ' ') }}{{ ', wrong' if one.is_wrong }}</span>
</figcaption></figure>
{% endfor %}
</div>
{% endmacro %}
<h1>FlowEdge demo</h1>
<p class="soft">A small CFLOW, trained on photographs of brick, exported to ONNX, verified, calibrated and run on this
machine's CPU. {{ machine }}.</p>

{% set found = calibrated.evaluation %}
<div class="figures">
<div><b>{{ found.image_auroc|number }}</b><span>image AUROC</span></div>
<div><b>{{ found.pixel_auroc|number }}</b><span>pixel AUROC</span></div>
<div><b>{{ found.aupro|number }}</b><span>AUPRO to 0.3</span></div>
<div><b>{{ inspected|length - wrong|length }} of {{ inspected|length }}</b><span>verdicts right</span></div>
<div><b>{{ '%.0f s' % seconds }}</b><span>for all steps</span></div>
</div>
<p class="soft">fp32 graph after calibration, on {{ found.good_images }} good and {{ found.anomalous_images }} defective
images that neither training nor calibration saw.</p>

<h2>The steps</h2>
<table>
<tr><th>step</th><th>outcome</th><th class="n">seconds</th></tr>
{% for step in result.steps %}
<tr><td class="name">{{ step.name }}</td><td>{{ step.found }}</td><td class="n">{{ '%.1f' % step.seconds }}</td></tr>
{% endfor %}
</table>

<h2>What the detector sees</h2>
<p>Photograph, painted defect, anomaly map. The first {{ kinds.values()|map('length')|max }} images of each kind,
not chosen. All maps share one scale of colours; a white line surrounds what is above the pixel threshold.</p>
{% for label, ones in kinds.items() %}
<h3>{{ label }}</h3>
{{ pictures(ones) }}
{% endfor %}
<details><summary>All wrong verdicts ({{ wrong|length }})</summary>
{{ pictures(wrong) }}
</details>

<h2>Image scores</h2>
<svg viewBox="-34 -18 {{ histogram.width + 44 }} {{ histogram.height + 44 }}"
 width="{{ histogram.width + 44 }}" role="img" aria-label="Histogram of the image scores" font-size="12" fill="#5c6675">
<line x1="0" y1="{{ histogram.height }}" x2="{{ histogram.width }}" y2="{{ histogram.height }}" stroke="#9aa3ae"/>
{% for bar in histogram.bars %}
<rect class="{{ bar.kind }}" x="{{ bar.x }}" y="{{ bar.y }}" width="{{ bar.width }}" height="{{ bar.height }}"/>
{% endfor %}
<line x1="{{ histogram.threshold_x }}" y1="-4" x2="{{ histogram.threshold_x }}" y2="{{ histogram.height }}"
 stroke="#c22f2f" stroke-dasharray="4 3"/>
<text x="{{ histogram.threshold_x }}" y="-7" text-anchor="middle" fill="#c22f2f">threshold</text>
<text x="-6" y="10" text-anchor="end">{{ histogram.largest_count }}</text>
<text x="-6" y="{{ histogram.height }}" text-anchor="end">0</text>
<text x="0" y="{{ histogram.height + 18 }}">{{ histogram.low|number }}</text>
<text x="{{ histogram.width }}" y="{{ histogram.height + 18 }}" text-anchor="end">{{ histogram.high|number }}</text>
<text x="{{ histogram.width / 2 }}" y="{{ histogram.height + 18 }}" text-anchor="middle">image score
(larger: more anomalous)</text>
</svg>
<p class="soft"><span class="key" style="background: var(--good)"></span>good
<span class="key" style="background: var(--bad)"></span>defective test images, fp32 after calibration.</p>

<h2>Before and after calibration</h2>
<p>Before, each image is normalised by its own maximum (<i>per image</i>): what the checkpoint's source computes for
one image alone, and a score has no fixed scale. Calibration replaces the maxima by constants fitted on good
images (<i>fixed reference</i>) and fits the thresholds. That makes a score mean the same on every image; whether AUROC
gains by it depends on the images.</p>
<table>
<tr><th>graph</th><th>score</th><th class="n">image AUROC</th><th class="n">pixel AUROC</th><th class="n">AUPRO</th>
<th class="n">best F1</th><th class="n">false alarms</th><th class="n">detected</th></tr>
{% for one in result.measured %}
{% set rates = one.normalisation == 'fixed_reference' %}
<tr><td>{{ one.precision }}</td><td>{{ one.normalisation.replace('_', ' ') }}</td>
<td class="n">{{ one.evaluation.image_auroc|number }}</td><td class="n">{{ one.evaluation.pixel_auroc|number }}</td>
<td class="n">{{ one.evaluation.aupro|number }}</td><td class="n">{{ one.evaluation.image_f1|number }}</td>
<td class="n">{{ (one.evaluation.false_alarm_rate if rates else none)|number }}</td>
<td class="n">{{ (one.evaluation.detection_rate if rates else none)|number }}</td></tr>
{% endfor %}
</table>
<p class="soft">False alarms and detected: shares of the good and of the defective test images above the fitted
threshold.</p>
<table>
<tr><th>kind</th><th class="n">images</th><th class="n">image AUROC</th><th class="n">detected</th></tr>
{% for one in found.classes %}
<tr><td>{{ one.label }}</td><td class="n">{{ one.images }}</td><td class="n">{{ one.image_auroc|number }}</td>
<td class="n">{{ one.detection_rate|number }}</td></tr>
{% endfor %}
</table>
<h3>Thresholds</h3>
<table>
<tr><th>graph</th><th>of</th><th class="n">value</th><th>method</th><th class="n">good images</th></tr>
{% for graph in manifest.graphs %}
{% for name, limit in (('image', graph.thresholds.image), ('pixel', graph.thresholds.pixel)) if limit is not none %}
<tr><td>{{ graph.precision }}</td><td>{{ name }}</td><td class="n">{{ limit.value|number(4) }}</td>
<td>{{ limit.method }}{{ ' %g' % limit.parameter if limit.parameter is not none }}</td>
<td class="n">{{ limit.images }}</td></tr>
{% endfor %}
{% endfor %}
</table>

<h2>Is the graph the network?</h2>
<p>The self-test of the bundle, and test photographs through the checkpoint in FrEIA's and timm's own
modules (the reference network). Worst absolute difference, relative to the largest magnitude.</p>
{% for one in result.verified %}
<details{{ ' open' if loop.first }}><summary>{{ one.precision }}: {{ one.checks|length }} checks,
{{ one.checks|selectattr('passed')|list|length }} passed</summary>
<table>
<tr><th>check</th><th class="n">worst</th><th class="n">limit</th><th></th></tr>
{% for check in one.checks %}
<tr><td>{{ check.name }}</td><td class="n">{{ '%.1e' % check.value }}</td><td class="n">{{ '%.0e' % check.limit }}</td>
<td class="{{ 'ok' if check.passed else 'wrong' }}">{{ 'passed' if check.passed else 'failed' }}</td></tr>
{% endfor %}
</table></details>
{% endfor %}

<h2>Training</h2>
<table>
<tr><th>layer</th><th class="n">channels</th><th class="n">feature columns</th><th class="n">steps</th>
<th class="n">first epoch</th><th class="n">last epoch</th></tr>
{% for level in result.training %}
<tr><td>{{ level.layer }}</td><td class="n">{{ level.channels }}</td><td class="n">{{ level.columns }}</td>
<td class="n">{{ level.steps }}</td>
<td class="n">{{ level.first_nll|number }}</td><td class="n">{{ level.last_nll|number }}</td></tr>
{% endfor %}
</table>
<p class="soft">Negative log-likelihood per channel in nats, mean over the epoch.
Backbone {{ manifest.backbone }} with ImageNet weights,
input {{ manifest.image_size[0] }}x{{ manifest.image_size[1] }}.</p>

<h2>What was assumed</h2>
{% if manifest.assumed %}
<table>
<tr><th>name</th><th>value</th><th>by</th><th>why</th></tr>
{% for one in manifest.assumed %}
<tr><td>{{ one.name }}</td><td>{{ one.value }}</td><td>{{ 'you' if one.given else 'default' }}</td>
<td>{{ one.why }}</td></tr>
{% endfor %}
</table>
{% else %}
<p>Nothing: the checkpoint holds every value that the export needed.</p>
{% endif %}

<h2>How far to trust this</h2>
<ul>{% for limit in limits %}<li>{{ limit }}</li>{% endfor %}</ul>
<p class="soft">Photographs: {{ result.photos }}. Checkpoint: {{ result.checkpoint }}. Bundle: {{ result.bundle }}.</p>
</body>
</html>
"""
