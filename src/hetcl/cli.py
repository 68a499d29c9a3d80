"""The command line: a map from verb to function, and the only place where arguments are parsed. No logic.

Exit status: 0 done; 1 the work failed; 2 unusable arguments or input; 130 or 143 stopped by a signal after saving.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from hetcl import arguments
from hetcl.errors import InputError, Stopped, WorkFailed, others_ended, out_of_memory
from hetcl.machine import check_libraries, memory
from hetcl.paths import shelter
from hetcl.printable import filled, printable

FOLDER = ("out", "resume", "allow_partial")


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Arguments by name."""
    return {name: getattr(args, name) for name in names}


def demo(args: argparse.Namespace, _: list[str]) -> None:
    from hetcl.pretraining.demo import demo

    demo(args.out)


def pretrain(args: argparse.Namespace, overrides: list[str]) -> None:
    from hetcl.pretraining.run import pretrain

    pretrain(**_given(args, "data", "recipe", "init", *FOLDER), overrides=overrides)


def recipes(args: argparse.Namespace, _: list[str]) -> None:
    from hetcl.settings import recipe_names, recipe_text

    if args.name:
        print(recipe_text(args.name), end="")
        return
    width = max(len(name) for verb in ("pretrain", "finetune") for name in recipe_names(verb))
    for verb in ("pretrain", "finetune"):
        print(f"hetcl {verb} --recipe")
        for name in recipe_names(verb):
            print(f"  {name:{width}}  {recipe_text(name).splitlines()[0].lstrip('# ')}")
    print("\nhetcl recipes NAME shows one.")


def doctor(args: argparse.Namespace, overrides: list[str]) -> None:
    from hetcl.settings import recipe_names

    before = ["", *overrides]
    runs = [w for w, b in zip(overrides, before, strict=False) if w[:1] != "-" and (b[:1] != "-" or "=" in b)]
    if runs:
        if args.data or args.recipe or args.init or len(runs) < len(overrides):
            raise InputError(
                "give either runs, or --data, --recipe, --init and settings: those are two questions"
            )
        from hetcl.reporting.console import doctor as judged

        try:
            judged(runs)
        except InputError as error:
            from hetcl.images.sources import what_else

            none = "is no run and no result" in str(error) or "is a file" in str(error)
            hints = [hint for run in runs if none and (hint := what_else(run))]
            raise InputError(*(hints or error.args)) from None
        return
    if (args.data or "").startswith(arguments.DATASETS) or args.recipe in recipe_names("finetune"):
        from hetcl.downstream.doctor import doctor
    else:
        from hetcl.pretraining.doctor import doctor

    doctor(**_given(args, "data", "recipe", "init"), overrides=overrides)


def contrast(args: argparse.Namespace, overrides: list[str]) -> None:
    from hetcl.analysis.contrast.run import contrast

    contrast(args.models, **_given(args, "data", *FOLDER), overrides=overrides)


def probe(args: argparse.Namespace, overrides: list[str]) -> None:
    from hetcl.analysis.probe.run import probe

    probe(args.models, **_given(args, "data", *FOLDER), overrides=overrides)


def embed(args: argparse.Namespace, overrides: list[str]) -> None:
    from hetcl.analysis.embed import embed

    embed(args.model, **_given(args, "data", "overwrite", *FOLDER), overrides=overrides)


def finetune(args: argparse.Namespace, overrides: list[str]) -> None:
    from hetcl.downstream.finetune import finetune

    finetune(**_given(args, "data", "recipe", "init", *FOLDER), overrides=overrides)


def evaluate(args: argparse.Namespace, overrides: list[str]) -> None:
    from hetcl.downstream.evaluate import evaluate

    evaluate(args.run, data=args.data, out=args.out, overwrite=args.overwrite, overrides=overrides)


def predict(args: argparse.Namespace, overrides: list[str]) -> None:
    from hetcl.downstream.predictions import predict

    predict(args.run, args.images, **_given(args, "out", "resume", "overwrite"), overrides=overrides)


def report(args: argparse.Namespace, _: list[str]) -> None:
    from hetcl.reporting.page import report

    print(report(args.runs, out=args.out, examples=args.examples))


def reproduce(args: argparse.Namespace, _: list[str]) -> None:
    from hetcl.reproduce.cells import COMPUTE
    from hetcl.reproduce.run import ROOTS, reproduce

    given = {name: value for name in (*ROOTS, *COMPUTE) if (value := getattr(args, name)) is not None}
    pairs = [word.partition("=") for word in args.weights]
    if wrong := [
        word for word, (row, _, model) in zip(args.weights, pairs, strict=True) if not (row and model)
    ]:
        raise InputError(f"--weights {wrong[0]} is not of the form ROW=MODEL")
    reproduce(
        args.which, out=args.out, scale="mini" if args.mini else "quick" if args.quick else "full",
        data={k: v for k, v in given.items() if k in ROOTS}, weights={row: model for row, _, model in pairs},
        seeds=args.seeds, compute={k: v for k, v in given.items() if k in COMPUTE}, dry_run=args.dry_run,
    )  # fmt: skip


def export(args: argparse.Namespace, _: list[str]) -> None:
    if args.format == "onnx-predictor":
        from hetcl.downstream.predictor_graph import export_predictor

        if args.allow_partial:
            raise InputError("--allow-partial is of backbones; an onnx-predictor is a whole run")
        for path in export_predictor(
            args.model, out=args.out, size=args.image_size, overwrite=args.overwrite
        ):
            print(path)
        return
    if args.image_size:
        raise InputError(f"--image-size is of --format onnx-predictor, not of {args.format}")
    from hetcl.weights.exporters import export

    for path in export(args.model, **_given(args, "format", "out", "overwrite", "allow_partial")):
        print(path)


def completion(args: argparse.Namespace, _: list[str]) -> None:
    from hetcl.completion import options_of, script
    from hetcl.settings import recipe_names

    names = {verb: recipe_names(verb) for verb in ("pretrain", "finetune")}
    every = [name for some in names.values() for name in some]
    parsers = arguments.verbs_of(build_parser())
    found = {verb: (VERBS[verb][1], options_of(p, names.get(verb, every))) for verb, p in parsers.items()}
    print(script(args.shell, found), end="")


VERBS = {
    "demo": (demo, "the whole story on the built-in scenes, a few minutes on two cores"),
    "pretrain": (pretrain, "pre-train a backbone on images without labels: RUN/backbone.safetensors"),
    "contrast": (
        contrast,
        "how well features tell images apart, against overlap and dimensions: contrast.json",
    ),
    "probe": (
        probe,
        "what frozen features know of labels (what) and of places (where): probe.json, where.json",
    ),
    "embed": (embed, "features of images in a file, with their names: neighbours, duplicates, clusters"),
    "export": (export, "weights for torchvision, timm, detectron2 and others, each proven equal"),
    "finetune": (
        finetune,
        "a backbone and a data set to a detector or segmenter, evaluated: RUN/summary.json",
    ),
    "evaluate": (evaluate, "a fine-tuned run on a data set: AP or mIoU, results.json, predictions.png"),
    "predict": (predict, "a fine-tuned run on your own images: drawn, and as JSON and CSV"),
    "reproduce": (
        reproduce,
        "the paper's tables and figures beside its numbers, at full size or in miniature",
    ),
    "report": (report, "runs and results on one page that opens from disk: did it learn, and what now"),
    "recipes": (recipes, "list the recipes, or show one"),
    "completion": (completion, "a script that completes verbs, settings and values: bash, zsh or fish"),
    "doctor": (
        doctor,
        "this machine, this data, this recipe or a run: what would go wrong, how long it takes, what now",
    ),
}


def build_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The parser of everything; with ``verb`` the settings of other verbs are left out, for speed."""
    return arguments.build_parser(VERBS, verb)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name that the console cannot show stops nothing
            stream.reconfigure(errors="backslashreplace")
    try:
        return _status(words, debug)
    finally:
        try:
            sys.stdout.flush()  # here, where a reader or terminal that has gone away is no failure
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _status(words: list[str], debug: bool) -> int:
    """Run a command and say how it failed, if it did; its exit status."""
    try:
        return _run(words)
    except (InputError, WorkFailed, Stopped) as e:
        if debug and not isinstance(e, Stopped):
            raise
        _complain(str(e) or type(e).__name__, alone=any(getattr(x, "alone", False) for x in (e, e.__cause__)))
        return 128 + e.signum if isinstance(e, Stopped) else 2 if isinstance(e, InputError) else 1
    except KeyboardInterrupt:
        if debug:
            raise
        _complain("interrupted before the run could save anything new")
        return 130
    except BrokenPipeError:  # `| head`
        return 0
    except Exception as e:
        if debug:
            raise
        if others_ended(e):
            from hetcl.ranks import rank_name

            _complain(  # (ranks 0 and 1, one of which lives)
                "another process of this run ended, and this one cannot go on alone; its own line says why (if there "
                "is none, it was killed, most often because memory ran out). What was saved is kept; --resume goes "
                "on from it",
                alone=rank_name() == "1",
            )
        else:
            _complain(f"{_unforeseen(e)}; what was saved before is intact", alone=True)
        return 1


def _run(words: list[str]) -> int:
    verb = next((w for w in words if not w.startswith("-")), None)
    if verb is not None and verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else f"; there are {', '.join(VERBS)}"
        raise InputError(f"no verb {verb!r}{hint}; see `hetcl --help`")
    args, rest = build_parser(verb or "-").parse_known_args(words)
    if verb is None:
        if rest:
            raise InputError(f"unexpected argument {rest[0]!r}; see `hetcl --help`")
        build_parser("-").print_help()
        return 0
    if rest and verb not in arguments.SETTINGS:
        raise InputError(f"unexpected argument {rest[0]!r}; see `hetcl {verb} --help`")
    with _listening():
        shelter()
        if verb not in ("recipes", "completion"):
            check_libraries()
        args.function(args, [*(getattr(args, "settings", None) or []), *rest])
    return 0


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    """Show what the rooms say through ``logging``: a line each, once, and once for all ranks."""
    import logging

    from hetcl.ranks import first_process

    shown: set[str] = set()

    class Console(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = ("! " if record.levelno >= logging.WARNING else "") + printable(record.getMessage())
            if line not in shown and first_process():
                shown.add(line)
                with contextlib.suppress(OSError):  # a console that has gone away is no reason to stop
                    print(filled(line, sys.stderr), file=sys.stderr, flush=True)

    rooms, console = logging.getLogger("hetcl"), Console()
    level = rooms.level
    rooms.setLevel(logging.INFO)
    rooms.addHandler(console)
    try:
        yield
    finally:
        rooms.removeHandler(console)
        rooms.setLevel(level)


def _complain(text: str, *, alone: bool = False) -> None:
    """Say what went wrong, a line each: once for all ranks, or by the rank that it befell alone."""
    from hetcl.ranks import first_process, rank_name

    if alone or first_process():
        who = "hetcl" if first_process() else f"hetcl, rank {rank_name()}"
        with contextlib.suppress(OSError):  # a terminal that was closed
            print("\n".join(f"{who}: {line}" for line in text.splitlines()), file=sys.stderr)


def _unforeseen(e: Exception) -> str:
    """A failure that nobody saw coming, in one line."""
    text = printable((str(e).strip().splitlines() or [""])[0][:300])
    if isinstance(e, OSError) and e.errno not in (None, errno.ENOMEM):
        why = "the disk is full" if e.errno in (errno.ENOSPC, errno.EDQUOT) else e.strerror
        return printable(f"{e.filename}: {why}" if e.filename else why)
    if short := out_of_memory(e):
        room = "" if "CUDA" in text else f", {memory()}"
        return f"{short}{room}: lower batch, size, queue or workers, or raise accumulate"
    if found := re.match(r"(\S+) does not have a deterministic implementation", text):
        return f"{found[1]} cannot repeat its bits on this device: set deterministic to false"
    return f"{type(e).__name__}: {text}; --debug shows where"


if __name__ == "__main__":
    sys.exit(main())
