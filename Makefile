# Every target makes the environment first; a second time that costs milliseconds.
SHELL := /bin/sh
.DEFAULT_GOAL := help
BIN := .venv/bin
PACKAGES := streams features models serving deploy
SOURCES := $(PACKAGES) benchmarks tests
export PYTHONUNBUFFERED := 1

.PHONY: help install demo up down status doctor test check format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## .venv from requirements.lock (all other targets do this first)
	@./deploy/install.sh

demo: install ## the whole loop on real parts, with a page to look at; DURATION=90 ends by itself
	@exec $(BIN)/tidemill demo $(if $(DURATION),--duration $(DURATION))

up: install ## start the stack and keep it running until Ctrl-C
	@exec $(BIN)/tidemill up

down: install ## stop the stack that `make up` or `make demo` started here
	@exec $(BIN)/tidemill down

status: install ## what runs, where it listens, whether it answers
	@exec $(BIN)/tidemill status

doctor: install ## what this machine can run, and how to get what it lacks
	@exec $(BIN)/tidemill doctor

test: install ## every test; what the machine cannot have is skipped with its reason. TESTS=path narrows
	@exec $(BIN)/python -m pytest $(TESTS)

check: install ## ruff, ruff format --check, mypy --strict
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(addprefix -p ,$(PACKAGES)) -p benchmarks

format: install ## put the code in form
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: install ## the benchmarks; NAME=events and ARGS=--quick narrow
	@exec $(BIN)/python -m benchmarks $(NAME) $(ARGS)

clean: install ## forget this stack's data (.tidemill); environment and caches stay
	@$(BIN)/tidemill down --quiet; rm -rf .tidemill
