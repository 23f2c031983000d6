# Every target makes what it needs first; nothing is used from outside but Python 3.10 or newer.
#
#   make demo     all steps on photographs that come with it, on the CPU, into demo-out/
#   make test     the tests
#   make test-all also the slow ones: full products and systems of which make test tries a part; anomalib trains anew
#   make check    lint, formatting and types
#   make wheel    build the wheel and try it in an environment without torch
#   make bench    speed against anomalib's own ONNX, also in OpenVINO and in NNCF's INT8, into bench-out/ (anomalib and
#                 NNCF get an environment of their own)
#   make parity   every family by source and backbone: errors, sizes and speed, into bench-out/parity/
#   make memory   peak memory and time of the largest exports, into bench-out/memory/
#   make precision what float16 and INT8 cost on a trained model of every family, into bench-out/precision/
#   make engines  every family on every engine and precision of a CPU, into bench-out/engines/
#   make profile  the time of convolutions and of all other nodes, by family, engine and precision, into bench-out/profile/
#   make packs    8 and 32 products as bundles and as a pack: memory, change of product, speed, into bench-out/packs/
#   make batch-bench  flowedge batch on 20,000 images: a loop, processes and Ray, and a job that is killed twice, into bench-out/batch/
#   make cluster  only the environment for Ray, Dask and Spark, .venv-cluster, for the slow tests of flowedge batch
#   make aarch64  doctor, verify and run on an ARM device under QEMU, with wheels for ARM; needs apt and qemu-user-static
#   make area     the speed of a region of interest, and the memory of large frames, into bench-out/area/
#   make fuzz     damaged checkpoints, bundles and pictures: N cases (2,000) from FIRST (0) with SEED (0), into fuzz-out/
#   make soak     a station at full speed for ten minutes (SECONDS=600) while all around it breaks, into soak-out/
#   make drift    false alarms of the watch for drift, and its delay on real tiles, into bench-out/drift.md
#   make station-cost  what a station costs beside the bare engine and beside anomalib, into bench-out/station/
#   make folder-bench  from a folder of JPEG files to verdicts beside anomalib's inferencer, into bench-out/station/
#   make serve-bench  a server under load beside the bare engine and beside anomalib in FastAPI, into bench-out/serve/
#   make screenshots  pictures of all HTML pages for the documentation, from the demo; needs Debian's chromium
#   make schema   the JSON Schema of what a station's sinks send, into docs/station.schema.json
#   make docs     the site, into site/; a warning is an error
#   make venv     only the environment, .venv

PYTHON ?= python3
BIN := .venv/bin
VENV := .venv/.complete
PEER := .venv-peer/.complete
RIVALS := .venv-peer/.rivals
TRITON := .venv-triton/.complete
DOCS := .venv-docs/.complete
CLUSTER := .venv-cluster/.complete

# Hundreds of tests start a process, and each would compile the package anew where Python may not keep what it compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo screenshots test test-all check wheel bench parity memory precision engines prune-table profile packs batch-bench cluster aarch64 area fuzz gpu soak station-cost folder-bench serve-bench schema drift docs venv peer clean

demo: $(VENV)
	$(BIN)/flowedge demo --out demo-out --force

# With anomalib in an environment of its own, whose answers some tests compare with; they are kept in .pytest_cache. Two
# processes: most tests wait on one core. A process that has no tests left takes some of the other's.
PYTEST := $(BIN)/pytest --numprocesses 2 --dist worksteal

screenshots: demo
	PYTHONPATH=tests $(BIN)/python tests/browser/screenshots.py demo-out

test: $(VENV) $(PEER)
	$(PYTEST) --durations=15

test-all: $(VENV) $(PEER) $(TRITON)
	rm -rf .pytest_cache/flowedge
	$(PYTEST) -m 'not bench' --durations=60

# Without its cache, which remembers which modules there were when a file was last checked.
check: $(VENV)
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright

wheel: $(VENV)
	$(BIN)/python tests/contract/check_wheel.py

bench: $(VENV) $(RIVALS)
	PYTHONPATH=tests $(BIN)/python tests/bench/bench_cflow.py --peer .venv-peer/bin/python --out bench-out

parity: $(VENV) $(PEER)
	PYTHONPATH=tests $(BIN)/python tests/bench/table_parity.py --peer .venv-peer/bin/python --out bench-out/parity

memory: $(VENV)
	PYTHONPATH=tests $(BIN)/python tests/bench/export_memory.py --out bench-out/memory

precision: $(VENV)
	PYTHONPATH=tests $(BIN)/python tests/bench/table_precision.py --out bench-out/precision

prune-table: $(VENV)
	PYTHONPATH=tests $(BIN)/python tests/bench/table_pruning.py --out bench-out/pruning

engines: $(VENV) $(RIVALS)
	PYTHONPATH=tests $(BIN)/python tests/bench/table_engines.py --peer .venv-peer/bin/python --out bench-out/engines

# BEFORE=FOLDER names the results of an earlier commit, whose graphs then run in turns with the new ones.
profile: $(VENV)
	PYTHONPATH=tests $(BIN)/python tests/bench/table_profile.py --out bench-out/profile $(if $(BEFORE),--before $(BEFORE))

packs: $(VENV)
	PYTHONPATH=tests $(BIN)/python tests/bench/table_packs.py --out bench-out/packs

# IMAGES=2000 takes a tenth of the time.
IMAGES ?= 20000
batch-bench: $(CLUSTER)
	PYTHONPATH=tests .venv-cluster/bin/python tests/bench/table_batch.py --images $(IMAGES) --out bench-out/batch

# DEVICE=cpu tries the campaign on a machine without a GPU, and MODELS=cflow,uflow runs some models of the five. KIT names
# a kit of gpu.kit, for a machine without a network, whose python3 has PyTorch and the other packages that gpu.kit names.
DEVICE ?= cuda
CAMPAIGN = -m gpu.run --device $(DEVICE) --out gpu-out $(if $(MODELS),--models $(MODELS))
gpu:
	@if [ -n "$(KIT)" ]; then PYTHONPATH=tests python3 -m gpu.kit unpack "$(KIT)" .gpu-site; fi
	@[ -e .gpu-site/env.sh ] || [ -x $(BIN)/python ] || $(MAKE) $(VENV)
	@if [ -e .gpu-site/env.sh ]; then . .gpu-site/env.sh; python3 $(CAMPAIGN); \
	else PYTHONPATH=tests $(BIN)/python $(CAMPAIGN); fi

# CPUS=cortex-a72,cortex-a57 names other processors, VERSIONS=1.24.4/2.4.6 other versions of ONNX Runtime and NumPy, and
# BUNDLE=FOLDER another bundle. What it downloads and makes is in build/aarch64.
aarch64: $(VENV)
	PYTHONPATH=tests $(BIN)/python -m aarch64.run $(if $(CPUS),--cpus $(CPUS)) \
		$(if $(VERSIONS),--versions $(VERSIONS)) $(if $(BUNDLE),--bundle $(BUNDLE))

area: $(VENV)
	PYTHONPATH=tests $(BIN)/python tests/bench/table_area.py --out bench-out/area

N ?= 2000
FIRST ?= 0
SEED ?= 0
MINUTES ?= inf
fuzz: $(VENV)
	PYTHONPATH=tests $(BIN)/python -m fuzz.run $(N) --first $(FIRST) --seed $(SEED) --minutes $(MINUTES) --out fuzz-out

schema: $(VENV)
	$(BIN)/python -m flowedge.runtime.station.sinks.payload > docs/station.schema.json

SECONDS ?= 600
soak: $(VENV)
	PYTHONPATH=tests $(BIN)/python -m soak.run --seconds $(SECONDS) --out soak-out

station-cost: $(VENV) $(PEER)
	PYTHONPATH=tests $(BIN)/python tests/bench/station_cost.py --peer .venv-peer/bin/python --out bench-out/station

folder-bench: $(VENV) $(RIVALS)
	PYTHONPATH=tests $(BIN)/python tests/bench/table_folder.py --peer .venv-peer/bin/python --out bench-out/station

serve-bench: $(VENV) $(RIVALS)
	PYTHONPATH=tests $(BIN)/python tests/bench/table_serve.py --peer .venv-peer/bin/python --out bench-out/serve

drift: $(VENV)
	mkdir -p bench-out
	PYTHONPATH=tests $(BIN)/python tests/bench/table_drift.py > bench-out/drift.md
	cat bench-out/drift.md

# The tools have an environment of their own, so that no test depends on them.
docs: $(DOCS)
	.venv-docs/bin/zensical build --strict --clean

venv: $(VENV)

peer: $(PEER)

cluster: $(CLUSTER)

# pip learned --group in 25.1. pyright runs on Node.js, which its extra brings along.
$(VENV): pyproject.toml
	$(call new_environment,.venv)
	$(BIN)/python -m pip install --quiet --editable '.[demo,genicam]' --group test --group check 'pyright[nodejs]'
	touch $@

$(PEER):
	$(call new_environment,.venv-peer)
	.venv-peer/bin/python -m pip install --quiet 'anomalib==2.7.*' onnx onnxscript onnxruntime openvino
	touch $@

# The benches compare with what an engineer would make of anomalib: NNCF's INT8, and a server of FastAPI.
$(RIVALS): $(PEER)
	.venv-peer/bin/python -m pip install --quiet nncf fastapi uvicorn httptools uvloop python-multipart
	touch $@

# Spark needs Java 17 besides.
$(CLUSTER): pyproject.toml
	$(call new_environment,.venv-cluster)
	.venv-cluster/bin/python -m pip install --quiet --editable '.[calibrate,batch,ray]' 'dask[dataframe,distributed]' pyspark
	touch $@

# A real Triton without a GPU, with its Python backend alone. Its Python models need NumPy 1.
$(TRITON): pyproject.toml
	$(call new_environment,.venv-triton)
	.venv-triton/bin/python -m pip install --quiet nvidia-pytriton 'numpy<2' --editable '.[ort]'
	touch $@

$(DOCS): pyproject.toml
	$(call new_environment,.venv-docs)
	.venv-docs/bin/python -m pip install --quiet --group docs
	touch $@

define new_environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	{ echo 'FlowEdge needs Python 3.10 or newer: make PYTHON=/path/to/python3.12' >&2; exit 1; }
test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
endef

clean:
	rm -rf .venv .venv-peer .venv-triton .venv-cluster .venv-docs site .pytest_cache build dist demo-out bench-out fuzz-out soak-out gpu-out gpu-kit .gpu-site *.egg-info
