#!/usr/bin/env python3
"""Maps files into memory, as a program or as data, and stays until its standard input ends. Prints `READY`."""
import argparse
import ctypes
import mmap
import sys

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--library", action="append", default=[], help="to load, with what it needs")
parser.add_argument("--executable", action="append", default=[], help="to map for execution, whatever is in it")
parser.add_argument("--data", action="append", default=[], help="to map for reading")
options = parser.parse_args()


def mapped(path, protection):
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=protection)


kept = [ctypes.CDLL(path, ctypes.RTLD_GLOBAL) for path in options.library]
kept += [mapped(path, mmap.PROT_READ | mmap.PROT_EXEC) for path in options.executable]
kept += [mapped(path, mmap.PROT_READ) for path in options.data]
print("READY", flush=True)
sys.stdin.read()
