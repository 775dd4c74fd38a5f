# Each target first sets up .venv (course/bootstrap.py, needs only Python 3.11 or newer), then runs `course …` in it.
PYTHON ?= python3
SETUP := $(PYTHON) course/bootstrap.py

.DEFAULT_GOAL := help
.PHONY: help site test lab homework author run check bench compare

help:  ## this list
	@sed -n 's/^\([a-z]*\):  *## /  make \1\t/p' $(MAKEFILE_LIST)

site:  ## build the site and serve it (PORT=8000; SERVE=0 only builds)
	@$(SETUP) site -- site $(if $(PORT),--port $(PORT)) $(if $(filter 0,$(SERVE)),--no-serve)

test:  ## run every check: notebooks, tests, site (ARGS='-k ode' goes to pytest)
	@$(SETUP) test -- test $(if $(ARGS),-- $(ARGS))

lab:  ## open JupyterLab on your own copies of the chapters, kept up to date
	@$(SETUP) lab -- lab $(CHAPTER)

homework:  ## get, check, release, collect, grade … (ARGS='get 12'; ARGS=--help lists all)
	@$(SETUP) homework -- homework $(ARGS)

author:  ## open JupyterLab on the truth
	@$(SETUP) author -- author $(CHAPTER)

run:  ## execute the chapters afresh and report what changed (CHAPTER=12 for one)
	@$(SETUP) author -- run $(CHAPTER)

check:  ## compare texts and notebooks without executing
	@$(SETUP) author -- check $(CHAPTER)

bench:  ## measure against the peers (ONLY='ode-nfe ode-time' for some)
	@$(SETUP) test -- bench $(ONLY)

compare:  ## train the families side by side, for their page (ONLY='vae ddpm' for some; SECONDS=60)
	@$(SETUP) author -- compare $(if $(ONLY),--only $(ONLY)) $(if $(SECONDS),--seconds $(SECONDS))
