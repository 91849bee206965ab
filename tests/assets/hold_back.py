#!/usr/bin/env python3
"""Holds a process or its processors back, in one way at a time. Prints `READY`, and begins when it is given a line."""
import argparse
import ctypes
import os
import sys
import time

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
SYS_PROCESS_MADVISE, MADV_PAGEOUT = 440, 21
PAGE = 4096
# What one call is given.
PIECE = 16 << 20

libc = ctypes.CDLL(None, use_errno=True)


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def spin(cpus):
    """Takes these processors, as important as can be, until standard input ends."""
    for cpu in cpus:
        if os.fork() == 0:
            os.sched_setaffinity(0, {cpu})
            os.setpriority(os.PRIO_PROCESS, 0, -20)
            libc.prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
            while True:
                pass
    sys.stdin.read()


def stop_thread(thread, times, seconds):
    """Stops one thread of a process, by the way of debuggers."""
    held = 0.0
    for _ in range(times):
        checked(libc.ptrace(PTRACE_SEIZE, thread, 0, 0))
        checked(libc.ptrace(PTRACE_INTERRUPT, thread, 0, 0))
        os.waitpid(thread, 0x40000000)  # __WALL
        begun = time.monotonic()
        time.sleep(seconds)
        held += time.monotonic() - begun
        checked(libc.ptrace(PTRACE_DETACH, thread, 0, 0))
        time.sleep(0.1)
    print(held, flush=True)


def page_out(process, path, share):
    """Takes the pages of a file that a process has mapped out of memory, or the first of them."""

    class Piece(ctypes.Structure):
        _fields_ = [("base", ctypes.c_size_t), ("length", ctypes.c_size_t)]

    descriptor = os.pidfd_open(process)
    with open(f"/proc/{process}/maps") as maps:
        ranges = [line.split()[0].split("-") for line in maps if line.rstrip().endswith(path)]
    for begin, end in ranges:
        begin, end = int(begin, 16), int(end, 16)
        end = begin + int((end - begin) * share) // PAGE * PAGE
        for base in range(begin, end, PIECE):
            piece = Piece(base, min(PIECE, end - base))
            arguments = (SYS_PROCESS_MADVISE, descriptor, ctypes.byref(piece), 1, MADV_PAGEOUT, 0)
            checked(libc.syscall(*arguments))
    print("done", flush=True)


parser = argparse.ArgumentParser(description=__doc__)
ways = parser.add_subparsers(dest="way", required=True)
way = ways.add_parser("spin", help=spin.__doc__)
way.add_argument("cpus", type=int, nargs="+")
way = ways.add_parser("stop-thread", help=stop_thread.__doc__)
way.add_argument("thread", type=int)
way.add_argument("times", type=int)
way.add_argument("seconds", type=float)
way = ways.add_parser("page-out", help=page_out.__doc__)
way.add_argument("process", type=int)
way.add_argument("path")
way.add_argument("share", type=float, nargs="?", default=1.0)
options = vars(parser.parse_args())
print("READY", flush=True)
sys.stdin.readline()
{"spin": spin, "stop-thread": stop_thread, "page-out": page_out}[options.pop("way")](**options)
