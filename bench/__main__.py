"""`python -m bench [QUESTION ...] [--quick] [--update] [--out FILE]`: answer the questions and write a page."""

import argparse
import datetime
import re
import sys
from pathlib import Path

import torch

from bench import attack, cam, contrast, peers, picture_step, processes, step, toy_frame
from bench.browser import NoBrowser
from kdlib.train import machine

QUESTIONS = {"step": step, "contrast": contrast, "peers": peers, "processes": processes, "attack": attack, "cam": cam,
             "toy_frame": toy_frame, "picture_step": picture_step}


def table(header, rows) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def updated(page: str, parts: list[str]) -> str:
    """A page with some of its parts in the place of those of the same title; the others stay as they were."""
    new = {part.splitlines()[0]: part for part in parts}
    head, *old = re.split(r"\n+(?=## )", page.rstrip("\n"))
    kept = [new.pop(part.splitlines()[0], part + "\n") for part in old]
    return "\n\n".join([head, *kept, *new.values()])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Time kdlib beside what does the same.")
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"some of {', '.join(QUESTIONS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and single rounds: shows that it runs, measures nothing")
    parser.add_argument("--update", action="store_true", help="keep what FILE says of the other questions, and its head")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("RESULTS.md"), metavar="FILE")
    options = parser.parse_args()
    unknown = set(options.questions) - QUESTIONS.keys()
    if unknown:
        parser.error(f"no question {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
    if options.update and (options.quick or not options.out.is_file()):
        parser.error("--update takes a page that is there, and no --quick: its head would not be true of these numbers")
    torch.set_num_threads(1)
    parts = []
    for name in options.questions or QUESTIONS:
        question = QUESTIONS[name]
        print(question.TITLE, flush=True)
        try:
            facts = getattr(question, "facts", dict)()
        except ImportError as error:
            print(f"bench: {name}: {error}; pip install kdlib[bench]", file=sys.stderr)
            return 1
        except NoBrowser as error:
            print(f"bench: {name}: {error}", file=sys.stderr)
            return 1
        rows = []
        for row in question.rows(options.quick):
            print("  " + "  ".join(row), flush=True)
            rows.append(row)
        measured = f" Measured on {datetime.date.today()}: {machine('cpu', 'auto')[2]}." if options.update else ""
        parts.append(f"## {question.TITLE}\n\n{question.SAYS.format(**facts)}{measured}\n\n{table(question.HEADER, rows)}\n")
    head = (f"# How fast it is\n\nWritten by `python -m bench{' --quick' * options.quick}` on {datetime.date.today()}: "
            f"{machine('cpu', 'float32')[2]}, PyTorch {torch.__version__.split('+')[0]}. What is compared "
            "was timed in turn and ratios are taken round by round: their median, with quartiles in brackets. A CPU's seconds say little "
            "elsewhere, so they are left out, save for the toy example's frames, whose target is a time.")
    if options.quick:
        head += " **Tiny sizes and single rounds: these numbers mean nothing.**"
    options.out.write_text(updated(options.out.read_text(), parts) if options.update else "\n\n".join([head, *parts]))
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
