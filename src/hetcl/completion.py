"""``hetcl completion SHELL``: a script by which a shell completes verbs, settings and their values. Free of torch.

It is written from the parser of the command line, so it knows what ``--help`` knows, and it is complete in itself:
pressing Tab starts no Python.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hetcl.settings.compute import TRACKERS

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Option:
    """An option of a verb, or its words without a dash (``flag`` is empty)."""

    flag: str
    text: str
    words: tuple[str, ...]
    """What it takes; empty: anything."""
    takes: str
    """``words``, ``file``, ``text`` (nothing that a shell could complete) or ``nothing``."""


def options_of(parser: argparse.ArgumentParser, recipes: Sequence[str]) -> list[Option]:
    """The options of a verb, those that ``--help`` leaves out included."""
    found = []
    for action in parser._actions:
        help_ = "" if action.help in (None, argparse.SUPPRESS) else str(action.help).replace("%%", "%")
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        choice = next((s for s in (metavar, help_) if re.fullmatch(r"[a-z0-9-]+(\|[a-z0-9-]+)+", s)), "")
        words = tuple(choice.split("|")) if choice else ()
        if action.dest == "track" or "--track" in action.option_strings:
            words = TRACKERS
        if "recipe" in (action.dest, help_.partition(" ")[0]):
            words = tuple(recipes)
        takes = "words" if words else "text" if re.fullmatch(r"[NX](,.*)?|NAME,.*", metavar) else "file"
        flag = action.option_strings[-1] if action.option_strings else ""
        text = re.split(r"[.;:(] ?", " ".join(help_.split()))[0][:70].strip()
        found.append(Option(flag, text, words, "nothing" if action.nargs == 0 else takes))
    return found


def script(shell: str, verbs: dict[str, tuple[str, list[Option]]]) -> str:
    """The script for one of SHELLS.

    Args:
        verbs: by name: what it does in a line, and its options.
    """
    lines: dict[str, Callable[[dict[str, tuple[str, list[Option]]]], Iterator[str]]] = {
        "bash": _bash,
        "zsh": _zsh,
        "fish": _fish,
    }
    return "\n".join([f"# Made by `hetcl completion {shell}`.", *lines[shell](verbs)]) + "\n"


def _flags(options: Sequence[Option]) -> str:
    return " ".join(option.flag for option in options if option.flag)


def _cases(verbs: dict[str, tuple[str, list[Option]]], do: str) -> Iterator[str]:
    """Branches of a ``case`` over ``VERB OPTION`` of bash and zsh, alike but for what is done with the words."""
    for verb, (_, options) in verbs.items():
        groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for option in options:
            if option.flag and option.takes != "nothing":
                groups.setdefault((option.takes, option.words), []).append(f"'{verb} {option.flag}'")
        for (takes, words), flags in groups.items():
            action = {"words": do.format(" ".join(words)), "file": "_hetcl_files; return", "text": "return"}
            also = "; _hetcl_files" if "'" + verb + " --recipe'" in flags else ""
            yield f"    {'|'.join(flags)}) {action[takes].replace('; return', also + '; return')} ;;"


def _positionals(verbs: dict[str, tuple[str, list[Option]]], do: str) -> Iterator[str]:
    for verb, (_, options) in verbs.items():
        words = next((option.words for option in options if not option.flag and option.words), ())
        if words:
            yield f"    {verb}) {do.format(' '.join(words))} ;;"
    yield "    *) _hetcl_files ;;"


def _bash(verbs: dict[str, tuple[str, list[Option]]]) -> Iterator[str]:
    words = 'COMPREPLY=($(compgen -W "{}" -- "$cur")); return'
    yield from (
        "_hetcl_files() {",
        "  local IFS=$'\\n'",
        "  compopt -o filenames 2>/dev/null",
        '  COMPREPLY+=($(compgen -f -- "$cur"))',
        "}",
        "_hetcl() {",  # where bash breaks words at =, that is a word of its own; else it is within one
        "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} before=",
        "  COMPREPLY=()",
        "  if [[ $cur == --*=* ]]; then prev=${cur%%=*} before=${cur%%=*}= cur=${cur#*=}",
        "  elif [[ $cur == = ]]; then cur=",
        "  elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi",
        "  _hetcl_words",
        '  if [[ $before ]]; then COMPREPLY=("${COMPREPLY[@]/#/$before}"); fi',
        "}",
        "_hetcl_words() {",
        "  local verb= word IFS=$' \\n'",
        '  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do [[ $word != -* ]] && { verb=$word; break; }; done',
        f"  if [[ -z $verb ]]; then {words.format(' '.join(verbs) + ' --help --version --debug')}; fi",
        '  case "$verb $prev" in',
    )
    yield from _cases(verbs, words)
    yield from ("  esac", '  if [[ $cur == -* ]]; then case "$verb" in')
    yield from (f"    {verb}) {words.format(_flags(options))} ;;" for verb, (_, options) in verbs.items())
    yield from ("  esac; fi", '  case "$verb" in')
    yield from _positionals(verbs, words)
    yield from ("  esac", "}", "complete -F _hetcl hetcl")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh(verbs: dict[str, tuple[str, list[Option]]]) -> Iterator[str]:
    words = "compadd -- {}; return"
    yield from (
        "#compdef hetcl",
        "_hetcl_files() { _files; }",
        "_hetcl() {",
        "  local verb= word prev=${words[CURRENT-1]}",
        "  if [[ ${words[CURRENT]} == --*=* ]]; then prev=${words[CURRENT]%%=*}; compset -P '*='; fi",
        "  local -a shown",
        "  for word in ${words[2,CURRENT-1]}; do [[ $word != -* ]] && { verb=$word; break; }; done",
        "  if [[ -z $verb ]]; then",
        "    shown=(" + " ".join(_quoted(f"{verb}:{text}") for verb, (text, _) in verbs.items()) + ")",
        "    _describe verb shown; return",
        "  fi",
        '  case "$verb $prev" in',
    )
    yield from _cases(verbs, words)
    yield from ("  esac", "  if [[ ${words[CURRENT]} == -* ]]; then", '  case "$verb" in')
    for verb, (_, options) in verbs.items():
        shown = " ".join(_quoted(f"{o.flag}:{o.text}") for o in options if o.flag)
        yield f"    {verb}) shown=({shown}) ;;"
    yield from ("  esac", "  _describe setting shown; return", "  fi", '  case "$verb" in')
    yield from _positionals(verbs, words)
    yield from ("  esac", "}", "compdef _hetcl hetcl")


def _fish(verbs: dict[str, tuple[str, list[Option]]]) -> Iterator[str]:
    for verb, (text, options) in verbs.items():
        yield f"complete -c hetcl -f -n __fish_use_subcommand -a {verb} -d {_quoted(text)}"
        here = f"complete -c hetcl -n '__fish_seen_subcommand_from {verb}'"
        for option in options:
            if not option.flag:
                yield from [f"{here} -a {_quoted(' '.join(option.words))}"] if option.words else []
                continue
            kind = {"words": "-x", "text": "-x", "file": "-r", "nothing": ""}[option.takes]
            if option.flag == "--recipe":
                kind = "-r"
            words = f"-a {_quoted(' '.join(option.words))}" if option.words else ""
            parts = (here, f"-l {option.flag[2:]}", kind, words, f"-d {_quoted(option.text)}")
            yield " ".join(part for part in parts if part)
