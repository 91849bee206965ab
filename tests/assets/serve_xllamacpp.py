#!/usr/bin/env python3
"""Serves a model as llama-server does, inside Python: the whole server is in one extension module.

The arguments are the module and those of llama-server that the tests use.
"""
import argparse
import pathlib
import signal
import sys

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("module", type=pathlib.Path)
parser.add_argument("--model", required=True)
parser.add_argument("--host", required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("-np", type=int, default=1)
parser.add_argument("-c", type=int, default=4096)
parser.add_argument("-t", type=int, default=1)
parser.add_argument("--metrics", action="store_true")
options = parser.parse_args()
sys.path.insert(0, str(options.module.parent.parent))

import xllamacpp

parameters = xllamacpp.CommonParams()
parameters.model.path = options.model
if hasattr(parameters, "hostnames"):
    parameters.hostnames = [options.host]
else:
    parameters.hostname = options.host
parameters.port = options.port
parameters.n_parallel = options.np
parameters.n_ctx = options.c
parameters.cpuparams.n_threads = options.t
parameters.endpoint_metrics = options.metrics
server = xllamacpp.Server(parameters)
signal.pause()
