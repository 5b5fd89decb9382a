# Every target is one call of scripts/dev.py, which sets itself up; without make, type that line instead.
PYTHON ?= python3
ARGS ?=

.PHONY: demo demo-natural test test-all lint setup clean
demo demo-natural test test-all lint setup:
	$(PYTHON) scripts/dev.py $@ $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
