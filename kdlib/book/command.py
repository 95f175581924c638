"""The command `kdlib`."""

import argparse
import errno
import os
import re
import signal
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

from kdlib.book import ROOT, BookError
from kdlib.book.chapters import PROFILES, aligned, duration, near, published, source, sources
from kdlib.cluster import ClusterError, reach
from kdlib.data import DataError
from kdlib.store import StoreError

ONLY = ("pair", "seed", "method")


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled as an interrupt: what is being made is cleared away."""


def _terminate(*_) -> None:
    raise Terminated


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return options.call(options) or 0
    except (BookError, ClusterError, DataError, StoreError) as error:
        print(f"kdlib: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "kdlib").split(".")[0] == "kdlib":
            raise
        print(f"kdlib: {error.name} is not installed; the book's commands need a clone of the repository and, in it, "
              "pip install -e '.[book]'", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `kdlib chapters | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(_of_disk(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        name, code = ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
        print(f"kdlib: {name}; what had finished is in the store, the same command goes on from there", file=sys.stderr)
        return code


def _chapters(options) -> None:
    rows = [("chapter", "section", "needs", *PROFILES, "published")]
    for slug, chapter in sources().items():
        minutes = [_minutes(chapter.facts["minutes"].get(p), _pairs_of(chapter, p)) for p in PROFILES]
        rows.append((slug, chapter.facts["section"], chapter.facts["needs"], *minutes, published(slug)))
    print(*aligned(rows), sep="\n")
    print("\nTimes are about those of 2 CPU cores (gpu and paper: one GPU), installation aside; the first run only. Where "
          "a chapter has several pairs, --only pair=NAME runs one, in its share of the time; chapters share what they train.")


def _pairs_of(chapter, profile: str) -> int:
    """How many teacher-student pairs a chapter has in a profile; 1 where they are no parameter."""
    if profile not in chapter.facts["profiles"] or "pairs" not in chapter.parameters:
        return 1
    return chapter.values(profile, {})["pairs"].count("->")


def _data(options) -> None:
    from kdlib.data import data_sets

    known = data_sets()
    if options.name is not None:
        near("data set", options.name, known)
    for name in known if options.name is None else [options.name]:
        state, found = known[name].state()
        if options.name is not None and state != "complete":
            raise BookError(found)
        print(f"{name}: {known[name].what}\n    {state}: {found.removeprefix(f'{name}: ')}")


def _store(options) -> None:
    from kdlib.book import stock
    from kdlib.store import Store

    if options.all and not options.prune or options.yes and not options.prune and options.drop is None:
        raise BookError("--all and --yes say what --prune is to do; add --prune")
    if options.of and options.save is None:
        raise BookError("--of says what --save is to write; add --save FILE")
    store = Store()
    if options.prune:
        lines = stock.prune(store, young=options.all, yes=options.yes)
    elif options.drop is not None:
        lines = stock.drop(store, options.drop, yes=options.yes)
    elif options.save is not None:
        lines = stock.save(store, Path(options.save), options.of)
    elif options.load is not None:
        lines = stock.load(store, Path(options.load))
    else:
        lines = stock.report(store)
    for line in lines:
        print(line)


def _run(options) -> int:
    from kdlib.book import results
    from kdlib.book.execute import side_by_side

    if options.all == bool(options.slugs):
        raise BookError("run takes chapter names or --all, one of the two; kdlib chapters lists them")
    given, only = _absolute(_pairs("-p", options.parameter)), _pairs("--only", options.only)
    for name in only:
        near("part (--only)", name, ONLY)
    if options.jobs is not None and options.jobs < 1:
        raise BookError(f"--jobs is at least 1, not {options.jobs}")
    if options.jobs is not None and options.scheduler is not None:
        raise BookError("--jobs counts processes of this machine; leave it out with --scheduler")
    named = any(option is not None for option in (options.device, options.profile, options.scheduler))
    if options.as_published and (given or only or named or options.afresh):
        raise BookError("--as-published takes every parameter from the published chapter and trains nothing; leave out -p, --device, "
                        "--profile, --only, --scheduler and --afresh")
    orders = []
    for chapter in sources().values() if options.all else map(source, dict.fromkeys(options.slugs)):
        profile, was = "cpu" if options.profile is None else options.profile, None
        if options.as_published:
            was = results.read(ROOT / "book" / "results" / f"{chapter.slug}.json").provenance
            values, profile = chapter.as_published(was["parameters"]), was["profile"]
        else:
            on = {"device": options.device} if options.device is not None and not (options.all and "device" not in chapter.parameters) else {}
            values = chapter.values(profile, given | on)
        orders.append((chapter, values, profile, was))
    if options.scheduler is not None:
        reach(options.scheduler)
    out = Path(options.out or ROOT / "_build" / ("as-published" if options.as_published else orders[0][2])).resolve()
    tasks = [partial(_execute, chapter, values, out, profile=profile, jobs=options.jobs, only=only, as_published=was, afresh=options.afresh,
                     scheduler=options.scheduler) for chapter, values, profile, was in orders]
    return max(side_by_side(tasks, out, min(2, options.jobs or os.cpu_count() or 1)) if len(tasks) > 1 else [task() for task in tasks])


def _execute(chapter, values: dict, out: Path, *, profile: str, as_published: dict | None, **more) -> int:
    from kdlib.book.execute import execute

    minutes = chapter.facts["minutes"].get(profile)
    time = "from published measurements" if as_published else "not timed yet" if minutes is None else f"{_minutes(minutes)} the first time"
    print(f"{chapter.slug}: {profile} profile, {time}", flush=True)
    try:
        print(f"{chapter.slug}: " + execute(chapter, values, out, profile=profile, as_published=as_published,
                                            say=lambda line: print(f"{chapter.slug}: {line}", flush=True), **more), flush=True)
    except BrokenPipeError:
        raise
    except (BookError, OSError) as error:  # the other chapters go on
        print(f"kdlib: {error}" if isinstance(error, BookError) else _of_disk(error), file=sys.stderr, flush=True)
        return 1
    return 0


def _of_disk(error: OSError) -> str:
    advice = "make room, or name another folder" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "name another folder"
    return f"kdlib: {error.filename2 or error.filename or 'a file'}: {error.strerror or error}; {advice}"


def _book(options) -> None:
    from kdlib.book.render import LINKS, render

    source = Path(options.source) if options.source else None
    if source and source.is_dir() and not any((source / f"{slug}.ipynb").exists() for slug in sources()):
        raise BookError(f"no executed chapter in {source}; run chapters into it first: kdlib run SLUG --out {source}")
    out = render(source, Path(options.out))
    outside = len((out / LINKS).read_text().splitlines())
    print(f"the book is in {os.path.relpath(out)}{os.sep}index.html; its links to {outside} addresses outside stand in {LINKS} there")


def _publish(options) -> None:
    from kdlib.book.publish import publish

    chapters, published = [source(slug) for slug in options.slugs], 0
    try:
        for chapter in chapters:
            print(publish(chapter, Path(options.source)))
            published += 1
    finally:  # README tells of those that are published, though another was refused
        if published:
            _headline(options)


def _headline(options) -> None:
    from kdlib.book.headline import update

    print(update())


def _weights(options) -> None:
    from kdlib.book.weights import choose
    from kdlib.train import TrainingError

    for name, value in ("--seeds", options.seeds), ("--jobs", options.jobs):
        if value is not None and value < 1:
            raise BookError(f"{name} is at least 1, not {value}")
    chapter, given = source("unseen-domains"), _pairs("-p", options.parameter)
    if own := sorted({"alpha", "beta", "beta_crd", "seeds", "first_seeds"} & given.keys()):
        raise BookError(f"-p {own[0]} has no meaning here: weights chooses alpha, beta and beta_crd itself, and --seeds says how many students try each")
    try:
        choose(chapter.values(options.profile, given), seeds=options.seeds, jobs=options.jobs, say=lambda line: print(line, flush=True))
    except (TrainingError, ValueError) as error:  # no such device, a loss that is not finite
        raise BookError(f"weights: {error}") from error


def _toy(options) -> None:
    from kdlib.book.toy import write

    print(f"the toy example is in {write(Path(options.out))}; open it in a browser, or embed it with #embed")


def _pairs(option: str, texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise BookError(f"{option} takes NAME=VALUE, not {text!r}")
        if name in pairs:
            raise BookError(f"{option} {name} was given twice")
        pairs[name] = value
    return pairs


def _absolute(given: dict[str, str]) -> dict[str, str]:
    """Parameters whose paths hold in any folder: a chapter is not executed in the caller's."""
    def path(text: str) -> str:
        return os.path.abspath(os.path.expanduser(text))

    if given.get("folder"):
        given = given | {"folder": path(given["folder"])}
    if "@" in given.get("pairs", ""):
        given = given | {"pairs": re.sub(r"@\s*(.+?)(?=\s*->|\s*\*?\s*(?:,|$))", lambda file: "@" + path(file[1]), given["pairs"])}
    return given


def _minutes(minutes: float | None, pairs: int = 1) -> str:
    if minutes is None:
        return "-"
    if pairs > 1:
        return f"{_minutes(minutes)} ({pairs} pairs)"
    return duration(minutes)


class _Version(argparse.Action):
    def __call__(self, parser, *_):
        print("kdlib", version("kdlib"))
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"kdlib: {message}; {self.prog} --help tells more\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="kdlib", description="Execute, render and publish the chapters of the book.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, call, text: str):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(call=call)
        return sub

    command("chapters", _chapters, "list the chapters, what they need, how long they take where that was measured, and whether the published one is stale")
    data = command("data", _data, "say which data sets are found where, whether they are complete, and how to get what is missing")
    data.add_argument("name", nargs="?", metavar="NAME", help="this one; exit status 1 unless it is complete")
    store = command("store", _store, "list what the store holds (KDLIB_CACHE, by default ~/.cache/kdlib), its size, and which chapter asks for it")
    does = store.add_mutually_exclusive_group()
    does.add_argument("--prune", action="store_true",
                      help="show what to remove: runs and measurements older than a day that no chapter asks for, under any profile as it "
                           "stands or as it was published, and what was left unfinished or damaged; never what a process is computing")
    does.add_argument("--drop", metavar="WEIGHTS",
                      help="show what to remove: runs and measurements that rest on a network with these weights, where two copies of it "
                           "were found")
    does.add_argument("--save", metavar="FILE",
                      help="write the store's measurements to an archive (.npz), beside what it holds already; a chapter reads archives in "
                           "book/results/kept/")
    does.add_argument("--load", metavar="FILE", help="put an archive's measurements into the store; those that are there stay")
    store.add_argument("--of", nargs="+", default=[], metavar="SLUG",
                       help="with --save: only what these chapters ask for, under any profile as it stands or as it was published; those in "
                            "archives under book/results/ too")
    store.add_argument("--all", action="store_true", help="with --prune: also what is younger than a day")
    store.add_argument("--yes", action="store_true", help="with --prune or --drop: remove it")
    run = command("run", _run, "execute chapters: DIR/SLUG.ipynb and DIR/results/SLUG.json")
    run.add_argument("slugs", nargs="*", metavar="SLUG")
    run.add_argument("--all", action="store_true", help="every chapter")
    run.add_argument("--profile", metavar="NAME", help=f"one of {', '.join(PROFILES)} (default: cpu)")
    run.add_argument("-p", dest="parameter", action="append", default=[], metavar="NAME=VALUE", help="set a chapter's parameter")
    run.add_argument("--only", action="append", default=[], metavar="NAME=VALUE",
                     help="compute only this pair, seed or method into the store; parts add up")
    run.add_argument("--as-published", action="store_true",
                     help="with the published chapter's parameters, from the measurements published beside it")
    run.add_argument("--afresh", action="store_true", help="take no measurements from archives under book/results/, only from the store")
    run.add_argument("--out", metavar="DIR", help="default: _build/PROFILE")
    run.add_argument("--jobs", type=int, metavar="N", help="processes side by side (default: one per core)")
    run.add_argument("--scheduler", metavar="ADDRESS", help="hand the runs to the workers of this Dask scheduler (kdlib[cluster])")
    run.add_argument("--device", metavar="D", help="auto, cpu or cuda")
    book = command("book", _book, "render executed chapters to HTML; warnings are fatal")
    book.add_argument("--from", dest="source", metavar="DIR", help="folder of executed chapters (default: the published ones)")
    book.add_argument("--out", default=str(ROOT / "_build" / "html"), metavar="DIR", help="default: _build/html")
    publish = command("publish", _publish, "make executed chapters the published ones, with results and measurements; README.md says what they found")
    publish.add_argument("slugs", nargs="+", metavar="SLUG")
    publish.add_argument("--from", dest="source", required=True, metavar="DIR", help="folder of executed chapters")
    weights = command("weights", _weights, "choose the loss weights of the image chapters' pairs on held-out training pictures, once: book/weights.json")
    weights.add_argument("--profile", default="cpu", metavar="NAME", help="whose pictures, pairs and schedules (default: cpu)")
    weights.add_argument("-p", dest="parameter", action="append", default=[], metavar="NAME=VALUE", help="set a parameter, such as pairs")
    weights.add_argument("--seeds", type=int, default=2, metavar="N", help="students of each candidate (default: 2)")
    weights.add_argument("--jobs", type=int, metavar="N", help="processes side by side (default: one per core)")
    toy = command("toy", _toy, "write the toy example, where the decision boundary can be moved, as one self-contained HTML file")
    toy.add_argument("--out", required=True, metavar="FILE", help="for example toy.html; an earlier one is replaced")
    command("headline", _headline, "bring what was found in README.md up to date (publish does so too)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
