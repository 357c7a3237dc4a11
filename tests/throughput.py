#!/usr/bin/env python3
"""How fast a large driver.log is counted: kvgate, and the reference scripts' way in Python.

    cargo build --release && tests/throughput.py [--mb 1000] [--kvgate target/release/kvgate]

Makes a run directory in a temporary folder whose driver.log is the real one of tests/fixtures/reference, repeated up
to the size asked for, and lets both count tasks and steps before, inside and after the active window. Both have to
print the same counts. Prints megabytes per second and peak memory of each, and of `cat`, which only reads. The file
has just been written, so it is read from memory as far as that holds it.

Python's way is the one of the scripts: grep for the lines, keep its whole output, search each line for its time with
a regular expression, and turn that into Unix seconds by the process's zone.
"""

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests/fixtures/reference/real-driver-run"
TABLE = "kv_cache_timeseries.csv"
THRESHOLD = 5.0
TIME = r"(\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2})"
TASK = ("FINISHED SIMULATION", re.compile(TIME))
STEP = ("type=step_complete", re.compile(r"\[PROFILE\] " + TIME + r".*type=step_complete"))


def count(run):
    """The scripts' way: prints what `kvgate reference breakdown` prints of the counts."""
    with open(run / TABLE, newline="") as table:
        rows = [row for row in csv.reader(table) if "kv_cache_usage_perc" in row[3]]
    hot = [int(row[1]) for row in rows if float(row[4]) * 100 > THRESHOLD]
    start, end = min(hot), max(hot)
    for name, (text, pattern) in (("tasks", TASK), ("steps", STEP)):
        found = subprocess.run(["grep", "-E", text, run / "driver.log"], capture_output=True, text=True, errors="ignore")
        matches = filter(None, (pattern.search(line) for line in found.stdout.splitlines()))
        times = [int(datetime.strptime(m.group(1), "%Y-%m-%d %H:%M:%S").timestamp()) for m in matches]
        before, after = sum(t < start for t in times), sum(t > end for t in times)
        print(f"{name}: before/in/after = {before}/{len(times) - before - after}/{after}")


def measure(command):
    """Wall seconds, peak memory in MB, and what it printed."""
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ, TZ="UTC"))
    out = child.stdout.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - began
    if status != 0:
        sys.exit(f"{command[0]} failed")
    return seconds, usage.ru_maxrss / 1024, out


def make(run, size):
    text = (SOURCE / "driver.log").read_bytes()
    with open(run / "driver.log", "wb") as log:
        for _ in range(-(-size // len(text))):
            log.write(text)
    shutil.copy(SOURCE / TABLE, run)
    return os.path.getsize(run / "driver.log")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=1000, help="size of the log, in MB of a million bytes")
    parser.add_argument("--kvgate", default=ROOT / "target/release/kvgate", help="the program")
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.count:
        return count(args.count)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        size = make(run, args.mb * 1_000_000)
        breakdown = [args.kvgate, "reference", "breakdown", "--threshold", str(THRESHOLD), "--name", "X", "--run-dir", run]
        rows = [
            ("cat", measure(["sh", "-c", f"cat '{run}/driver.log' > /dev/null"])),
            ("kvgate", measure(breakdown)),
            ("python3", measure([sys.executable, __file__, "--count", run])),
        ]
    print(f"driver.log of {size / 1e6:.0f} MB\n\n| reader | s | MB/s | peak MB |\n| :-- | --: | --: | --: |")
    for name, (seconds, peak, _) in rows:
        print(f"| {name} | {seconds:.2f} | {size / 1e6 / seconds:.0f} | {peak:.0f} |")
    counts = [out.splitlines()[-2:] for _, (_, _, out) in rows[1:]]
    if counts[0] != counts[1]:
        sys.exit(f"not the same counts: {counts}")
    print("\n" + "\n".join(counts[0]))
    if rows[1][1][1] >= 100:
        sys.exit("kvgate took 100 MB or more")


if __name__ == "__main__":
    main()
