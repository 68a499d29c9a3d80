"""The command line: a map from verb to function, and the only place where arguments are parsed. No logic.

Exit status: 0 done; 1 the work failed; 2 unusable arguments or input; 130 or 143 stopped by a signal after saving.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from hetcl import __version__
from hetcl.errors import InputError, Stopped, WorkFailed, out_of_memory

MODEL_HELP = (
    "RUN, RUN/checkpoints/FILE, a FILE of weights (.safetensors, .pth), moco:FILE, "
    "torchvision:ARCH[:FILE|random|WEIGHTS_NAME] or timm:ARCH[:FILE|random|TAG]"
)
PARTIAL_HELP = (
    "keys that may be missing, unknown or of another shape, as a pattern ('fc.*'); may be given several times. "
    "What is missing stays random, and what else does not fit is refused"
)
DATA_HELP = "a folder of pictures, tar shards ('x-{0000..0004}.tar' or their folder), or scenes:N"


def demo(args: argparse.Namespace, _: list[str]) -> None:
    from hetcl.pretrain.demo import demo

    demo(args.out)


def pretrain(args: argparse.Namespace, overrides: list[str]) -> None:
    from hetcl.pretrain.run import pretrain

    pretrain(
        data=args.data,
        out=args.out,
        recipe=args.recipe,
        resume=args.resume,
        init=args.init,
        allow_partial=args.allow_partial,
        overrides=overrides,
    )


def recipes(args: argparse.Namespace, _: list[str]) -> None:
    from hetcl.settings import recipe_names, recipe_text

    if args.name:
        print(recipe_text(args.name), end="")
        return
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        print(f"{name:{width}}  {recipe_text(name).splitlines()[0].lstrip('# ')}")
    print("\nhetcl recipes NAME shows one; hetcl pretrain --recipe NAME runs it.")


def doctor(args: argparse.Namespace, overrides: list[str]) -> None:
    from hetcl.pretrain.doctor import doctor

    doctor(data=args.data, recipe=args.recipe, overrides=overrides)


def contrast(args: argparse.Namespace, overrides: list[str]) -> None:
    from hetcl.analysis.contrastive_test import contrast

    contrast(
        args.models,
        data=args.data,
        out=args.out,
        resume=args.resume,
        allow_partial=args.allow_partial,
        overrides=overrides,
    )


def probe(args: argparse.Namespace, overrides: list[str]) -> None:
    from hetcl.analysis.probe import probe

    probe(
        args.model,
        data=args.data,
        out=args.out,
        resume=args.resume,
        allow_partial=args.allow_partial,
        overrides=overrides,
    )


def export(args: argparse.Namespace, _: list[str]) -> None:
    from hetcl.weights.exporters import export

    for path in export(
        args.model,
        format=args.format,
        out=args.out,
        overwrite=args.overwrite,
        allow_partial=args.allow_partial,
    ):
        print(path)


VERBS = {
    "demo": (demo, "the whole story on the built-in scenes, a few minutes on two cores"),
    "pretrain": (pretrain, "pre-train a backbone on pictures without labels: RUN/backbone.safetensors"),
    "contrast": (
        contrast,
        "how well features tell pictures apart, against overlap and dimensions: contrast.json",
    ),
    "probe": (probe, "what frozen features know of the labels, by kNN and a linear probe: probe.json"),
    "export": (export, "weights for torchvision, timm, detectron2 and others, each proven equal"),
    "recipes": (recipes, "list the recipes, or show one"),
    "doctor": (doctor, "this machine, this data, this recipe: what would go wrong, how long it would take"),
}


class _Parser(argparse.ArgumentParser):
    """Faults as ``InputError``: one line, exit status 2."""

    def error(self, message: str) -> Any:
        missing = re.fullmatch(r"the following arguments are required: (.+)", message)
        valueless = re.fullmatch(r"argument (\S+): expected one argument", message)
        if missing:
            message = f"{missing[1]} is missing"
        elif valueless:
            message = f"{valueless[1]} needs a value"
        raise InputError(f"{message}; see `{self.prog} --help`")


def build_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The parser of everything; with ``verb`` the settings of other verbs are left out, for speed."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="hetcl",
        formatter_class=formatter,
        description="Pre-train vision backbones that know where things are, from pictures without labels.",
        epilog="start with:  hetcl demo   or   hetcl pretrain --data photos/ --out run --recipe small\n\n"
        "hetcl VERB --help says more. Nothing is sent anywhere, and nothing downloaded that you did not name.",
    )
    parser.add_argument("--version", action="version", version=f"hetcl {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=_Parser)
    made = {}
    for name, (function, text) in VERBS.items():
        made[name] = verbs.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            formatter_class=formatter,
            allow_abbrev=False,
        )
        made[name].set_defaults(function=function)
        made[name].add_argument("--debug", action="store_true", help="show the traceback of a failure")

    made["demo"].add_argument("--out", default="demo", help="folder to write (default: demo)")

    p = made["pretrain"]
    p.usage = "hetcl pretrain --data DATA --out RUN [--recipe NAME|FILE] [--resume] [--init MODEL] [--SETTING VALUE]"
    made["doctor"].usage = "hetcl doctor [--data DATA] [--recipe NAME|FILE] [--SETTING VALUE]"
    p.epilog = (
        "examples:\n"
        "  hetcl pretrain --data photos/ --out run --recipe small\n"
        "  hetcl pretrain --data 'shards-{0000..0146}.tar' --out run            the paper's run, recipe hcl-r50\n"
        "  hetcl pretrain --data photos/ --out run --resume                     go on after a stop\n"
        "  torchrun --nproc-per-node 8 $(which hetcl) pretrain --data ... --out run"
    )
    p.add_argument("--data", help=f"{DATA_HELP}; a resumed run knows it")
    p.add_argument("--out", metavar="RUN", required=True, help="run folder to write")
    p.add_argument("--recipe", help="name (`hetcl recipes` lists them) or YAML file (default: hcl-r50)")
    p.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in --out, whatever ended the run",
    )
    p.add_argument(
        "--init",
        metavar="MODEL",
        help=f"start from these weights: {MODEL_HELP}; before an HCL stage 2 they take the place of stage 1",
    )
    _add_partial(p)
    _add_analysis(made["contrast"], made["probe"])
    _add_export(made["export"])
    made["recipes"].add_argument("name", nargs="?", help="recipe to show")
    made["doctor"].add_argument("--data", help=DATA_HELP)
    made["doctor"].add_argument("--recipe", help="recipe to judge (default: hcl-r50)")
    for name, add in _SETTINGS.items():
        if verb in (None, name):
            add(made[name])
    return parser


def _add_analysis(contrast: argparse.ArgumentParser, probe: argparse.ArgumentParser) -> None:
    contrast.usage = "hetcl contrast MODEL [MODEL ...] --data DATA --out DIR [--resume] [--SETTING VALUE]"
    contrast.epilog = (
        "examples:\n"
        "  hetcl contrast run --data photos/ --out contrast\n"
        "  hetcl contrast hcl/ moco/ torchvision:resnet50:random --data 'val-{0000..0004}.tar' --out contrast\n"
        "  hetcl contrast hcl/ moco/ --data ... --out contrast --resume --dims 32,64 --splits 0,0.5,1   no second pass"
    )
    contrast.add_argument("models", nargs="+", metavar="MODEL", help=MODEL_HELP)
    probe.usage = "hetcl probe MODEL --data DATA --out DIR [--resume] [--SETTING VALUE]"
    probe.epilog = "example:\n  hetcl probe run --data 'train-{0000..0004}.tar' --out probe"
    probe.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    for p in (contrast, probe):
        p.add_argument("--data", required=True, help=DATA_HELP + ("; with labels" if p is probe else ""))
        p.add_argument("--out", metavar="DIR", required=True, help="folder to write")
        p.add_argument(
            "--resume", action="store_true", help="use what is in --out already, whatever ended it"
        )
        _add_partial(p)


def _add_partial(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow-partial", metavar="PATTERN", action="append", default=[], help=PARTIAL_HELP)


def _add_export(export: argparse.ArgumentParser) -> None:
    from hetcl.weights.cards import PURPOSES

    export.usage = "hetcl export MODEL --format FORMAT --out FILE [--overwrite]"
    width = max(map(len, PURPOSES))
    formats = "\n".join(f"  {name:{width}}  {text}" for name, text in PURPOSES.items())
    export.epilog = (
        f"formats:\n{formats}\n\n"
        "The file is loaded back and its features compared at every stage; a difference leaves nothing behind.\n"
        "FILE.md beside it says what it is and how to load it.\n\n"
        "example:\n  hetcl export run --format torchvision --out backbone.pth"
    )
    export.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    export.add_argument("--format", required=True, metavar="FORMAT", help="|".join(PURPOSES))
    export.add_argument("--out", required=True, metavar="FILE", help="file to write")
    export.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    export.add_argument(
        "--allow-partial",
        metavar="PATTERN",
        action="append",
        default=[],
        help="keys of MODEL that are too many, as a pattern ('rpn.*'); may be given several times. "
        "Nothing may be missing",
    )


def _pretrain_settings(parser: argparse.ArgumentParser) -> None:
    from hetcl.settings import Settings

    _add_settings(parser, Settings, "override the recipe; defaults shown are those of hcl-r50")


def _contrast_settings(parser: argparse.ArgumentParser) -> None:
    from hetcl.settings import ContrastSettings

    _add_settings(parser, ContrastSettings, "what is tested")


def _probe_settings(parser: argparse.ArgumentParser) -> None:
    from hetcl.settings import ProbeSettings

    _add_settings(parser, ProbeSettings, "what is probed")


_SETTINGS = {
    "pretrain": _pretrain_settings,
    "doctor": _pretrain_settings,
    "contrast": _contrast_settings,
    "probe": _probe_settings,
}
"""The verbs that take settings."""


def _add_settings(parser: argparse.ArgumentParser, settings: Any, text: str) -> None:
    """Every setting as an option, so that ``--help`` shows it; values are checked where settings are resolved."""
    from hetcl.settings import ComputeSettings, documented, keys_of

    run = compute = parser.add_argument_group("settings", text)
    of_compute = keys_of(ComputeSettings) if issubclass(settings, ComputeSettings) else ()
    if of_compute:
        compute = parser.add_argument_group("computing", "where and how")

    def add(cls: type, default: Any, prefix: str, group: Any, hidden: bool = False) -> None:
        for name, kind, text in documented(cls):
            key, value = f"{prefix}{name}", getattr(default, name)
            if dataclasses.is_dataclass(kind):
                assert isinstance(kind, type)
                second = name == "stage2"
                if name == "stage1":
                    text = "--stage2.* likewise; it starts as method hcl, lr 0.05, views.flip_p 0."
                inner = group if hidden or second else parser.add_argument_group(f"settings --{key}.*", text)
                add(kind, value, f"{key}.", inner, hidden or second)
                continue
            help_ = argparse.SUPPRESS if hidden else f"{text} (default: {_shown(value)})".replace("%", "%%")
            inner = compute if name in of_compute else group
            inner.add_argument(f"--{key}", dest="settings", action=_Collect, metavar=_takes(kind), help=help_)

    add(settings, settings(), "", run)


def _takes(kind: Any) -> str:
    """What a setting of this type takes, as short as help likes it."""
    one = {int: "N", float: "X", bool: "true|false", str: "NAME"}
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return "|".join(inner)
    if get_origin(kind) is not tuple:
        return one[kind]
    return ",".join(f"{one[t]},..." if inner[-1] is ... else one[t] for t in inner if t is not ...)


def _shown(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower()


class _Collect(argparse.Action):
    """Append ``--name=value`` to the list of overrides."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.settings = [*(getattr(namespace, "settings", None) or []), f"{option_string}={values}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name that the console cannot show stops nothing
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()  # here, where a reader that has gone away (`| head`) is no failure
    except (InputError, WorkFailed, Stopped) as e:
        if debug and not isinstance(e, Stopped):
            raise
        _complain(str(e) or type(e).__name__)
        return 128 + e.signum if isinstance(e, Stopped) else 2 if isinstance(e, InputError) else 1
    except KeyboardInterrupt:
        if debug:
            raise
        _complain("interrupted before the run could save anything new")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:
        if debug:
            raise
        _complain(f"{_unforeseen(e)}; what was saved before is intact")
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
    if rest and verb not in _SETTINGS:
        raise InputError(f"unexpected argument {rest[0]!r}; see `hetcl {verb} --help`")
    with _listening():
        args.function(args, [*(getattr(args, "settings", None) or []), *rest])
    return 0


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    """Show what the rooms say through ``logging``: a line each, once, and once for all ranks."""
    import logging

    from hetcl.runs.folder import first_process

    said: set[str] = set()

    class Console(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = ("! " if record.levelno >= logging.WARNING else "") + record.getMessage()
            if line not in said and first_process():
                said.add(line)
                with contextlib.suppress(OSError):  # a console that has gone away is no reason to stop
                    print(line, file=sys.stderr, flush=True)

    rooms, console = logging.getLogger("hetcl"), Console()
    rooms.setLevel(logging.INFO)
    rooms.addHandler(console)
    try:
        yield
    finally:
        rooms.removeHandler(console)


def _complain(text: str) -> None:
    """Say what went wrong, a line each, once for all ranks."""
    from hetcl.runs.folder import first_process

    if first_process():
        print("\n".join(f"hetcl: {line}" for line in text.splitlines()), file=sys.stderr)


def _unforeseen(e: Exception) -> str:
    """A failure that nobody saw coming, in one line."""
    text = (str(e).strip().splitlines() or [""])[0][:300]
    if isinstance(e, OSError) and e.errno:
        why = "the disk is full" if e.errno in (errno.ENOSPC, errno.EDQUOT) else e.strerror
        return f"{e.filename}: {why}" if e.filename else str(why)
    if memory := out_of_memory(e):
        return f"{memory}: lower batch, size or queue, or raise accumulate"
    return f"{type(e).__name__}: {text}; --debug shows where"


if __name__ == "__main__":
    sys.exit(main())
