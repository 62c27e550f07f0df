# SPDX-License-Identifier: MPL-2.0
"""Stands in for the program `starsr`: a job of text parts, which are restored by sleeping.

Its plan has `segments`, their number; `seconds`, how long one takes; `broken`, those that fail; and
`held`, one that waits for the file `go`, or none. The folder `log` holds that file, and the notes
of what began and what is done.
"""

import fcntl
import json
import os
import sys
import threading
import time
from pathlib import Path


def fail(reason: str) -> None:
    print(f"starsr: {reason}", file=sys.stderr)
    sys.exit(1)


def end_with_parent() -> None:
    # Nothing comes but the end.
    os.read(0, 1)
    os._exit(130)


def work(job: Path, plan: dict, options: dict) -> None:
    segment = int(options["segment"])
    part = job / "parts" / f"{segment:06}.part"
    with (job / "claims" / f"{segment:06}-1").open("w") as claim:
        # A claim ends with its owner.
        fcntl.flock(claim, fcntl.LOCK_EX)
        if part.exists():
            return
        with (Path(plan["log"]) / "began").open("a") as log:
            log.write(f"{segment} {os.getppid()}\n")
        time.sleep(plan["seconds"])
        while segment == plan["held"] and not (Path(plan["log"]) / "go").exists():
            time.sleep(0.01)
        if segment in plan["broken"]:
            fail(f"segment {segment}: it is broken")
        unfinished = part.with_name(f".unfinished-{os.getpid()}")
        source = Path(options["input"]).read_text() if "input" in options else ""
        unfinished.write_text(f"{source}part {segment}\n")
        os.replace(unfinished, part)
        with (Path(plan["log"]) / "done").open("a") as log:
            log.write(f"{segment}\n")
    print(json.dumps({"event": "segment", "segment": segment, "frames": 10, "seconds": 0.1}))


def main() -> None:
    # `--name=value` and `--name value`, as the program takes them.
    words = [half for word in sys.argv[2:] for half in word.split("=", 1)]
    options = dict(zip(words, [*words[1:], ""], strict=True))
    options = {name.removeprefix("--"): value for name, value in options.items()}
    if "attached" in options:
        threading.Thread(target=end_with_parent, daemon=True).start()
    job = Path(options["job"])
    if not (job / "plan.json").exists():
        fail(f"{job}: has no plan")
    plan = json.loads((job / "plan.json").read_text())
    parts = [job / "parts" / f"{segment:06}.part" for segment in range(plan["segments"])]
    match sys.argv[1]:
        case "work":
            work(job, plan, options)
        case "status":
            texts = [part.read_text() if part.exists() else None for part in parts]
            done = [n for n, text in enumerate(texts) if text]
            damaged = [n for n, text in enumerate(texts) if text == ""]
            print(json.dumps({"segments": len(parts), "done": done, "damaged": damaged}))
        case "join":
            Path(sys.argv[-1]).write_text("".join(part.read_text() for part in parts))


main()
