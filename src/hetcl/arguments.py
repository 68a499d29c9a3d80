"""The arguments of every verb, and the words of ``--help``. Loads nothing heavy: help comes at once."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from typing import Any

from hetcl import __version__
from hetcl.errors import InputError

Verbs = Mapping[str, tuple[Callable[[argparse.Namespace, list[str]], None], str]]
MODEL_HELP = (
    "RUN, RUN/checkpoints/FILE, a FILE of weights (.safetensors, .pth), moco:FILE, "
    "torchvision:ARCH[:FILE|random|WEIGHTS_NAME] or timm:ARCH[:FILE|random|TAG]"
)
PARTIAL_HELP = (
    "keys that may be missing, unknown or of another shape, as a pattern ('fc.*'); may be given several times. "
    "What is missing stays random, and what else does not fit is refused"
)
DATASET_HELP = (
    "coco:ROOT (any set in COCO's format), lvis:ROOT, voc:ROOT, cityscapes:ROOT, each in its published layout, "
    "or scenes:N"
)
DATASETS = ("coco:", "lvis:", "voc:", "cityscapes:")
"""What a DATASET begins with that is no DATA."""
DATA_HELP = "a folder of images, tar shards ('x-{0000..0004}.tar' or their folder), or scenes:N"


class _Parser(argparse.ArgumentParser):
    """Faults as ``InputError``: one line, exit status 2."""

    new: tuple[str, ...] = ()
    """Options that a new run needs besides the required ones; a resumed run knows them."""
    _words: tuple[str, ...] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = tuple(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> Any:
        missing = re.fullmatch(r"the following arguments are required: (.+)", message)
        valueless = re.fullmatch(r"argument (\S+): expected one argument", message)
        if missing:
            given = {word.split("=", 1)[0] for word in self._words}
            new = () if "--resume" in given else self.new
            names = [*(name for name in new if name not in given), *missing[1].split(", ")]
            are = "are" if len(names) > 1 else "is"
            message = f"{', '.join(names[:-1])}{' and ' * (len(names) > 1)}{names[-1]} {are} missing"
        elif valueless:
            message = f"{valueless[1]} needs a value"
        raise InputError(f"{message}; see `{self.prog} --help`")


def build_parser(verbs: Verbs, verb: str | None = None) -> argparse.ArgumentParser:
    """The parser of everything.

    Args:
        verbs: name -> (function, what it does in a line).
        verb: the settings of other verbs are left out, for speed.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="hetcl",
        formatter_class=formatter,
        description="Pre-train vision backbones that know where things are, from images without labels.",
        epilog="start with:  hetcl demo   or   hetcl pretrain --data photos/ --out run --recipe small\n\n"
        "hetcl VERB --help says more. Nothing is sent anywhere, and nothing downloaded that you did not name.",
    )
    parser.add_argument("--version", action="version", version=f"hetcl {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=_Parser)
    made: dict[str, _Parser] = {}
    for name, (function, text) in verbs.items():
        made[name] = subparsers.add_parser(
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
    made[
        "doctor"
    ].usage = "hetcl doctor [RUN ...] [--data DATA|DATASET] [--recipe NAME|FILE] [--SETTING VALUE]"
    made["doctor"].epilog = (
        "examples:\n"
        "  hetcl doctor --data photos/ --recipe small\n"
        "  hetcl doctor --data coco:my-set --recipe tiny-mask-rcnn-fpn      what fine-tuning would do with a data set\n"
        "  hetcl doctor run                                                 what became of a run, and what now"
    )
    p.epilog = (
        "examples:\n"
        "  hetcl pretrain --data photos/ --out run --recipe small\n"
        "  hetcl pretrain --data 'shards-{0000..0146}.tar' --out run            the paper's run, recipe hcl-r50\n"
        "  hetcl pretrain --data photos/ --out run --resume                     go on after a stop\n"
        "  torchrun --nproc-per-node 8 $(which hetcl) pretrain --data ... --out run"
    )
    _add_run(p, DATA_HELP, "hcl-r50", new=("--data",))
    p.add_argument(
        "--init",
        metavar="MODEL",
        help=f"start from these weights: {MODEL_HELP}; before an HCL stage 2 they take the place of stage 1",
    )
    _add_partial(p)
    _add_analysis(made["contrast"], made["probe"])
    _add_embed(made["embed"])
    _add_export(made["export"])
    _add_downstream(made["finetune"], made["evaluate"])
    _add_predict(made["predict"])
    _add_report(made["report"])
    _add_reproduce(made["reproduce"])
    made["completion"].add_argument("shell", choices=("bash", "zsh", "fish"), help="bash|zsh|fish")
    made["completion"].epilog = (
        "examples:\n"
        "  hetcl completion bash >> ~/.bash_completion\n"
        "  hetcl completion zsh > ~/.zfunc/_hetcl                        a folder of your fpath\n"
        "  hetcl completion fish > ~/.config/fish/completions/hetcl.fish"
    )
    made["recipes"].add_argument("name", nargs="?", help="recipe to show")
    made["doctor"].add_argument("--init", metavar="MODEL", help="what pretrain or finetune would start from")
    made["doctor"].add_argument("--data", help=f"{DATA_HELP}; or a data set to fine-tune on: {DATASET_HELP}")
    made["doctor"].add_argument(
        "--recipe",
        help="recipe to judge (default: hcl-r50; for a data set to fine-tune on coco-mask-rcnn-r50-fpn-1x)",
    )
    for name, (settings, text) in SETTINGS.items():
        if verb in (None, name):
            import hetcl.settings
            from hetcl.settings.options import add_settings

            add_settings(made[name], getattr(hetcl.settings, settings), text)
    return parser


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each verb, by name."""
    (sub,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(sub.choices)


def _add_run(p: _Parser, data: str, recipe: str, *, new: tuple[str, ...]) -> None:
    """What every training run is told; ``new`` as :attr:`_Parser.new`."""
    p.new = new
    p.add_argument(
        "--data", metavar="DATA" if data is DATA_HELP else "DATASET", help=f"{data}; a resumed run knows it"
    )
    p.add_argument("--out", metavar="RUN", required=True, help="run folder to write")
    p.add_argument("--recipe", help=f"name (`hetcl recipes` lists them) or YAML file (default: {recipe})")
    p.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in --out, whatever ended the run",
    )


def _add_analysis(contrast: argparse.ArgumentParser, probe: argparse.ArgumentParser) -> None:
    contrast.usage = "hetcl contrast MODEL [MODEL ...] --data DATA --out DIR [--resume] [--SETTING VALUE]"
    contrast.epilog = (
        "examples:\n"
        "  hetcl contrast run --data photos/ --out contrast\n"
        "  hetcl contrast hcl/ moco/ --data 'val-{0000..0004}.tar' --out contrast\n"
        "  hetcl contrast hcl/ moco/ --data ... --out contrast --resume --dims 32,64 --splits 0,0.5,1   no second pass"
    )
    contrast.add_argument("models", nargs="+", metavar="MODEL", help=MODEL_HELP)
    probe.usage = "hetcl probe MODEL [MODEL ...] --data DATA --out DIR [--resume] [--SETTING VALUE]"
    probe.epilog = (
        "examples:\n"
        "  hetcl probe run --data 'train-{0000..0004}.tar' --out probe            what: labels, by kNN and linear\n"
        "  hetcl probe hcl/ moco/ --data coco:my-set --out where                  where: boxes, cells, two crops\n"
        "  hetcl probe run --data scenes:2000 --ask where --out where             the same on built-in images"
    )
    probe.add_argument("models", nargs="+", metavar="MODEL", help=MODEL_HELP)
    for p in (contrast, probe):
        p.add_argument(
            "--data",
            required=True,
            help=DATA_HELP + ("; with labels, or coco:ROOT, voc:ROOT ..." if p is probe else ""),
        )
        p.add_argument("--out", metavar="DIR", required=True, help="folder to write")
        p.add_argument(
            "--resume", action="store_true", help="use what is in --out already, whatever ended it"
        )
        _add_partial(p)


def _add_embed(embed: argparse.ArgumentParser) -> None:
    embed.usage = "hetcl embed MODEL --data DATA --out FILE.npy [--resume] [--overwrite] [--SETTING VALUE]"
    embed.epilog = (
        "examples:\n"
        "  hetcl embed run --data photos/ --out photos.npy\n"
        "  hetcl embed run --data 'shards-{0000..0004}.tar' --out shards.npy --features embedding\n\n"
        "Row i of FILE.npy (float32) is the image in line i of FILE.csv, after its header; FILE.json says what it is."
    )
    embed.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    embed.add_argument("--data", required=True, help=DATA_HELP)
    embed.add_argument(
        "--out", metavar="FILE.npy", required=True, help="file to write; names go to FILE.csv beside it"
    )
    embed.add_argument(
        "--resume", action="store_true", help="go on with what a stopped command has computed for --out"
    )
    embed.add_argument("--overwrite", action="store_true", help="replace features that are there")
    _add_partial(embed)


def _add_downstream(finetune: _Parser, evaluate: _Parser) -> None:
    finetune.usage = (
        "hetcl finetune --init MODEL --data DATASET --out RUN [--recipe NAME|FILE] [--resume] ..."
    )
    finetune.epilog = (
        "examples:\n"
        "  hetcl finetune --init run --data coco:coco --out detector\n"
        "  hetcl finetune --init run --data coco:my-set --out detector --recipe small-mask-rcnn-fpn\n"
        "  hetcl finetune --init moco:moco.pth --data voc:VOCdevkit --out voc --recipe voc-faster-rcnn-r50-c4-24k\n"
        "  hetcl finetune --out detector --resume                     go on after a stop"
    )
    finetune.add_argument(
        "--init", metavar="MODEL", help=f"the backbone: {MODEL_HELP}; a resumed run knows it"
    )
    _add_run(finetune, DATASET_HELP, "coco-mask-rcnn-r50-fpn-1x", new=("--init", "--data"))
    _add_partial(finetune)
    evaluate.usage = "hetcl evaluate RUN --data DATASET --out DIR [--overwrite] [--SETTING VALUE]"
    evaluate.epilog = (
        "examples:\n"
        "  hetcl evaluate detector --data coco:my-set --out evaluation\n"
        "  hetcl evaluate detector --data coco:my-set --out evaluation --score_threshold 0.5 --examples 20"
    )
    evaluate.add_argument("run", metavar="RUN", help="a run of `hetcl finetune`")
    evaluate.add_argument("--data", metavar="DATASET", required=True, help=DATASET_HELP)
    evaluate.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    evaluate.add_argument("--overwrite", action="store_true", help="replace an evaluation that is there")


def _add_predict(predict: argparse.ArgumentParser) -> None:
    predict.usage = (
        "hetcl predict RUN IMAGES [IMAGES ...] --out DIR [--resume] [--overwrite] [--SETTING VALUE]"
    )
    predict.epilog = (
        "examples:\n"
        "  hetcl predict detector photos/ --out predictions\n"
        "  hetcl predict detector 'trip/*.jpg' more/ a.png --out predictions --score_threshold 0.3\n"
        "  hetcl predict detector photos/ --out predictions --resume                new images alone, or after a stop"
    )
    predict.add_argument("run", metavar="RUN", help="a run of `hetcl finetune`")
    predict.add_argument(
        "images", metavar="IMAGES", nargs="+", help="files, folders of images at any depth, or patterns"
    )
    predict.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    predict.add_argument(
        "--resume",
        action="store_true",
        help="go on with what is in --out: images that are done are not done again",
    )
    predict.add_argument("--overwrite", action="store_true", help="replace predictions that are there")


def _add_report(report: _Parser) -> None:
    report.usage = "hetcl report RUN [RUN ...] --out FILE.html [--examples N]"
    report.epilog = (
        "examples:\n"
        "  hetcl report run --out report.html\n"
        "  hetcl report hcl moco contrast where detector --out report.html       runs and tests of them, together"
    )
    report.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a folder that pretrain, contrast, probe, finetune, evaluate or reproduce wrote",
    )
    report.add_argument(
        "--out", metavar="FILE.html", required=True, help="page to write; a page that is there is replaced"
    )
    report.add_argument(
        "--examples",
        metavar="N",
        type=_count,
        default=6,
        help="images of each run's data in each picture; 0: data and weights are not opened (default: 6)",
    )


def _add_reproduce(reproduce: _Parser) -> None:
    reproduce.usage = (
        "hetcl reproduce NAME [NAME ...] [--mini|--quick] --out DIR [--images DATA] [--coco DATASET] ..."
    )
    reproduce.epilog = (
        "examples:\n"
        "  hetcl reproduce all --quick --out quick                  does everything run? minutes on two cores\n"
        "  hetcl reproduce fig2 fig4 --mini --images photos/ --out mini\n"
        "  hetcl reproduce table1 --images IMAGENET/train --coco coco:COCO --out table1 --dry-run  what it costs here\n"
        "\n"
        "The same command goes on after a stop; several processes or machines may share DIR.\n"
        "Besides the tables and figures there are fused, flip and overhead (what the paper says in its text) and\n"
        "frozen (ours: backbones asked where things are)."
    )
    reproduce.add_argument("which", nargs="+", metavar="NAME", help="a table or figure, or all")
    reproduce.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    size = reproduce.add_mutually_exclusive_group()
    size.add_argument(
        "--mini", action="store_true", help="every claim at a size for one small machine, some hours"
    )
    size.add_argument("--quick", action="store_true", help="toy size, minutes: does everything run?")
    reproduce.add_argument("--images", metavar="DATA", help=f"what to pre-train on: {DATA_HELP}")
    for name in ("coco", "lvis", "voc", "cityscapes"):
        text = f"{name}:ROOT or another DATASET in its place"
        reproduce.add_argument(f"--{name}", metavar="DATASET", help=text)
    reproduce.add_argument(
        "--places",
        metavar="DATASET",
        help="what frozen backbones are asked about (default: that of --coco, or scenes)",
    )
    reproduce.add_argument(
        "--weights", metavar="ROW=MODEL", action="append", default=[],
        help=f"weights that take the place of a row's pre-training, e.g. moco-v2=moco:FILE; MODEL: {MODEL_HELP}",
    )  # fmt: skip
    reproduce.add_argument(
        "--seeds", metavar="N", type=_count, default=0, help="0: as many as the size has (default: 0)"
    )
    reproduce.add_argument(
        "--dry-run", action="store_true", help="say what it costs and every command, and end"
    )
    for name, takes in (
        ("device", "auto|cpu|cuda|mps"),
        ("devices", "N"),
        ("threads", "N"),
        ("workers", "N"),
    ):
        reproduce.add_argument(f"--{name}", metavar=takes, help="as of the verbs")


def _count(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    """Height and width, ``480x640``."""
    height, x, width = text.partition("x")
    if not (x and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no height and width, such as 480x640")
    return int(height), int(width)


def _add_partial(parser: argparse.ArgumentParser, text: str = PARTIAL_HELP) -> None:
    parser.add_argument("--allow-partial", metavar="PATTERN", action="append", default=[], help=text)


def _add_export(export: argparse.ArgumentParser) -> None:
    from hetcl.weights.cards import PURPOSES

    export.usage = "hetcl export MODEL --format FORMAT --out FILE [--overwrite] [--allow-partial PATTERN]"
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
        "--image-size",
        metavar="HxW",
        type=_size,
        help="height and width of the images that an onnx-predictor takes",
    )
    _add_partial(
        export,
        "keys of MODEL that are too many, as a pattern ('rpn.*'); may be given several times. Nothing may be missing",
    )


SETTINGS = {
    "pretrain": ("PretrainSettings", "override the recipe; defaults shown are those of hcl-r50"),
    "doctor": ("PretrainSettings", "override the recipe; defaults shown are those of hcl-r50"),
    "contrast": ("ContrastSettings", "what is tested"),
    "probe": ("ProbeSettings", "what is probed"),
    "embed": ("EmbedSettings", "what is written"),
    "finetune": (
        "FinetuneSettings",
        "override the recipe; defaults shown are those of coco-mask-rcnn-r50-fpn-1x",
    ),
    "evaluate": ("EvaluateSettings", "what is evaluated, and how"),
    "predict": ("PredictSettings", "what is looked for, and what is written"),
}
"""The verbs that take settings: the class that has them, and what they are."""
