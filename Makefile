# Every target creates the environment first; once it exists that takes milliseconds.
SHELL := /bin/sh
.DEFAULT_GOAL := help
BIN := .venv/bin
PACKAGES := streams features models serving deploy
SOURCES := $(PACKAGES) benchmarks tests
export PYTHONUNBUFFERED := 1
WORKERS ?= 2

.PHONY: help install demo up down status doctor test check format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## .venv from requirements.lock (all other targets do this first)
	@./deploy/install.sh

demo: install ## the whole loop on real servers, with a page; DURATION=90 stops after 90 s
	@exec $(BIN)/tidemill demo $(if $(DURATION),--duration $(DURATION))

up: install ## start the stack and keep it running until Ctrl-C
	@exec $(BIN)/tidemill up

down: install ## stop the stack that `make up` or `make demo` started here
	@exec $(BIN)/tidemill down

status: install ## each process, where it listens and whether it answers
	@exec $(BIN)/tidemill status

doctor: install ## what this machine can run, and how to get what is missing
	@exec $(BIN)/tidemill doctor

test: install ## all tests; those without their server are skipped with the reason; TESTS=path selects, WORKERS=n side by side
	@exec $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(TESTS)

check: install ## ruff, ruff format --check, mypy --strict
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(addprefix -p ,$(PACKAGES)) -p benchmarks

format: install ## format the code
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: install ## one benchmark; NAME=events, ARGS=--quick
	@exec $(BIN)/python -m benchmarks $(NAME) $(ARGS)

clean: install ## delete this stack's data (.tidemill); environment and caches stay
	@$(BIN)/tidemill down --quiet; rm -rf .tidemill
