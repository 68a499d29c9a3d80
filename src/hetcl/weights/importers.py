"""What strangers' files look like: from a file's content to the names of an embedding, every key accounted for.

Nothing here is told the layout of a file. The names that an architecture's weights have (``names.py``) are looked for
under every prefix (``prefixes.py``); where they are found is an encoder, and the words of its prefix say whether it is
the query's (``encoder_q``, ``student``) or the momentum copy (``encoder_k``, ``momentum_backbone``, ``teacher``). So
these read alike: the official MoCo releases (v1 and v2; ``module.encoder_q.``, ``encoder_q.`` or no prefix), lightly
(``backbone``, ``backbone_momentum``, ``projection_head``; also as ``nn.Sequential(*children)``), solo-learn
(``momentum_backbone``, ``projector``), mmpretrain, mmselfsup and DenseCL (``backbone``, ``neck``, ``encoder_k.0``),
DINO (``student``, ``teacher``), and what wrappers leave (``module.``, ``model.``, ``net.``, ``_orig_mod.``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from hetcl.errors import InputError
from hetcl.weights.architectures import ModelSpec, arch_of
from hetcl.weights.heads import Head, find_head
from hetcl.weights.matched import Account, Matched, allowed, some
from hetcl.weights.names import Names, channels_in, names_of
from hetcl.weights.prefixes import TRANSPARENT, Tower, chosen, find_towers, without_prefixes

State = dict[str, Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module")
"""Entries of a saved dictionary that hold the state dict."""
REASONS = (
    (r"(^|\.)(queue\w*|memory_bank|bank|bank_ptr)(\.|$)", "queue of keys"),
    (r"(^|\.)(\w+_)?(classifier|linear_probe|linear_head)\.", "classifier"),
    (
        r"(^|\.)(\w+_)?(projector|projection_head|predictor|prediction_head|neck|head|last_layer|prototypes)(_\w+)?\.",
        "heads of its training",
    ),
    (r"(^|\.)(\w+_)?(loss|criterion)(\.|$)", "parts of its loss"),
    (r"(^|\.)(data_preprocessor|normalizer)\.", "normalization"),
    (
        r"(^|\.)(relative_position_index|relative_coords_table|attn_mask)$",
        "tables that the model makes itself",
    ),
    (r"(^|\.)(encoder_k|ema\w*|model_ema)\.(steps|n_averaged)$", "counters"),
)
"""Keys that an encoder's C2..C5 do not need, by pattern; asked only of keys that were not taken."""


@dataclass(frozen=True)
class Imported:
    """What was found in a file, in an embedding's names (``pyramid.*``, ``branches.semantic.*``)."""

    arch: str | None
    query: State
    key: State | None
    facts: Mapping[str, Any]
    """``method`` and ``semantic_dim`` where the file has MoCo's head; else empty."""
    matched: Matched


def state_of(content: Any, origin: str) -> tuple[dict[str, Tensor], str | None, list[str]]:
    """The state dict in what a file held, the architecture it says it is of, and entries with other state dicts.

    DINO's two state dicts become one with ``student.`` and ``teacher.`` in front.

    Raises:
        InputError: there is none, or it holds something else than tensors.
    """
    stated = content.get("arch") if isinstance(content, Mapping) else None
    others: list[str] = []
    for _ in range(3):
        if not isinstance(content, Mapping) or any(isinstance(v, Tensor) for v in content.values()):
            break
        both = [n for n in ("student", "teacher") if isinstance(content.get(n), Mapping)]
        if both:
            content = {f"{n}.{key}": value for n in both for key, value in content[n].items()}
        inner = [n for n in WRAPPERS if _is_state(content.get(n))]
        if len(inner) > 1:
            raise InputError(
                f"{origin} holds several state dicts ({', '.join(map(repr, inner))}); save the one you mean alone"
            )
        if not inner:
            inner = [n for n in WRAPPERS if isinstance(content.get(n), Mapping)][:1]
        others += [str(n) for n, v in content.items() if n not in inner and not both and _is_state(v)]
        content = content[inner[0]] if inner else content
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{origin} holds no state dict (names with tensors), or an empty one")
    strange = next(
        (n for n, v in content.items() if not isinstance(v, Tensor) or not isinstance(n, str)), None
    )
    if strange is not None:
        kind = type(content[strange]).__name__
        raise InputError(
            f"{origin} holds no state dict (names with tensors): {strange!r} is of type {kind}; save only that"
        )
    return dict(content), stated if isinstance(stated, str) else None, others


def _is_state(value: Any) -> bool:
    """Whether something is, or wraps, names with tensors."""
    if not isinstance(value, Mapping):
        return False
    tensors = [isinstance(v, Tensor) for v in value.values()]
    return bool(tensors) and all(tensors) and all(isinstance(n, str) for n in value)


def import_state(state: Mapping[str, Tensor], spec: ModelSpec, others: Sequence[str] = ()) -> Imported:
    """An embedding's weights from a stranger's state dict.

    Args:
        state: names and tensors as in the file.
        others: entries of the file that hold state dicts, too, for the report.

    Raises:
        InputError: keys that nothing explains, several encoders, or values that are not finite.
    """
    origin = spec.origin
    account = Account()
    if others:
        account.notes.append(f"other state dicts in the file, not taken: {', '.join(others)}")
    arch = spec.arch or arch_of(state) or _named(spec.stated, state) or spec.fallback
    if arch is None:
        bare = {f"pyramid.{name}": value for name, value in without_prefixes(state).items()}
        return Imported(None, bare, None, {}, Matched(origin, None, tuple(state)))
    if spec.arch is None:
        account.notes.append(f"taken for {arch}")
    names = names_of(arch)
    towers = find_towers(state, names)
    if not towers:
        raise InputError(
            f"{origin} does not fit {names.arch}: all of its {len(names.shapes)} weights missing, "
            f"{len(state)} unknown (e.g. {some(list(state))}){_hint(state, names)}"
        )
    query, key = chosen(towers, state, origin, account)
    if (in_chans := channels_in(state, query.keys, names)) != 3:
        names = names_of(names.arch, in_chans)
        account.notes.append(
            f"of images of {in_chans} channel{'s'[: in_chans != 1]}, by the shape of its first layer"
        )
    heads = {
        t.prefix: find_head(state, t.prefix, names.channels[-1], moco=_is_moco(t, state, spec.moco))
        for t in (query, key)
        if t
    }
    found = _assemble(state, spec, names, query, key, heads, account)
    return found if in_chans == 3 else replace(found, facts={**found.facts, "in_chans": in_chans})


# ---- the parts -------------------------------------------------------------------------------------------------------


def _named(stated: str | None, state: Mapping[str, Tensor]) -> str | None:
    """The architecture that a file names, of the library whose names fit better."""
    best: tuple[int, str] | None = None
    for arch in (stated,) if stated and ":" in stated else (f"torchvision:{stated}", f"timm:{stated}"):
        try:
            towers = find_towers(state, names_of(arch)) if stated and arch else []
        except InputError:
            continue
        if towers and (best is None or len(towers[0].keys) > best[0]):
            best = len(towers[0].keys), str(arch)
    return best[1] if best else None


def _is_moco(tower: Tower, state: Mapping[str, Tensor], moco: bool) -> bool:
    """Whether a linear ``fc`` of an encoder is MoCo-v1's head and no classifier."""
    return (
        moco or bool(tower.words & {"encoder_q", "encoder_k"}) or any(n.endswith("queue_ptr") for n in state)
    )


def _assemble(
    state: Mapping[str, Tensor],
    spec: ModelSpec,
    names: Names,
    query: Tower,
    key: Tower | None,
    heads: Mapping[str, Head],
    account: Account,
) -> Imported:
    """Takes what fits, explains the rest, refuses what is left."""
    faults, origin, allow = _Faults(), spec.origin, spec.allow
    parts = []
    for tower in (query, key) if key else (query,):
        part = {f"pyramid.{n}": state[k] for n, k in _fitting(state, tower, names, faults, allow).items()}
        account.taken |= {tower.keys[n] for n in tower.keys if f"pyramid.{n}" in part}
        head = heads[tower.prefix]
        part |= {f"branches.semantic.{n}": state[k] for n, k in head.keys.items()}
        account.taken |= set(head.keys.values())
        account.ignore(head.why, head.unfit)
        if not any(n.endswith("num_batches_tracked") for n in tower.keys):
            _add_counters(part, names, account, tower)
        parts.append(part)
    faults.unknown = _explain(state, names, query, key, account)
    unexpected = [
        k for k in faults.unknown if allowed(k, allow) or allowed(k.removeprefix(query.prefix), allow)
    ]
    faults.unknown = [k for k in faults.unknown if k not in unexpected]
    faults.refuse(origin, names, _hint(state, names))
    if key is not None:
        _compare_heads(parts, key, origin, account)
    broken = [
        k for k in account.taken if state[k].is_floating_point() and not bool(state[k].isfinite().all())
    ]
    if broken:
        raise InputError(f"{origin} holds values that are not finite, e.g. in {min(broken)}")
    facts = _facts(heads[query.prefix])
    matched = Matched(
        origin,
        names.arch,
        tuple(k for k in state if k in account.taken),
        tuple(dict.fromkeys(faults.left_out)),
        tuple(unexpected),
        {reason: tuple(keys) for reason, keys in account.ignored.items()},
        tuple(account.notes),
    )
    return Imported(names.arch, parts[0], parts[1] if key else None, facts, matched)


def _compare_heads(parts: Sequence[State], key: Tower, origin: str, account: Account) -> None:
    """Raises ``InputError`` when the momentum copy has another head than the encoder."""
    query, copy = ({n: v.shape for n, v in p.items() if n.startswith("branches.")} for p in parts)
    if query and not copy:
        account.notes.append(f"the momentum copy {key.prefix!r} has no head: it starts from the encoder's")
    elif query != copy:
        raise InputError(
            f"{origin}: the head of the momentum copy {key.prefix!r} has other weights or shapes than the encoder's; "
            "save the encoder's state dict alone, and both start from it"
        )


@dataclass
class _Faults:
    """What does not fit."""

    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Missing or of another shape, and allowed."""

    def refuse(self, origin: str, names: Names, hint: str) -> None:
        """Raises ``InputError`` when anything is left that was not allowed."""
        wrong = self.missing + self.shapes + self.unknown
        if wrong:
            raise InputError(
                f"{origin} does not fit {names.arch}: {len(self.missing)} weights missing, "
                f"{len(self.unknown)} unknown, {len(self.shapes)} of another shape (e.g. {some(wrong)}){hint}"
            )


def _fitting(
    state: Mapping[str, Tensor], tower: Tower, names: Names, faults: _Faults, allow: Sequence[str]
) -> dict[str, str]:
    """Pyramid's name -> key, of what has its shape; the rest is noted in ``faults``."""
    out = {}
    tracked = any(n.endswith("num_batches_tracked") for n in tower.keys)
    for name, shape in names.shapes.items():
        key = tower.keys.get(name)
        counter = name.endswith("num_batches_tracked")
        if key is None:
            if not counter or tracked:
                may = any(allowed(n, allow) for n in (name, names.to_library[name], tower.prefix + name))
                full = tower.prefix + names.to_library[name]
                (faults.left_out if may else faults.missing).append(name if may else full)
        elif tuple(state[key].shape) != shape or state[key].is_floating_point() == (name in names.integers):
            may = any(allowed(n, allow) for n in (name, names.to_library[name], key))
            (faults.left_out if may else faults.shapes).append(name if may else key)
        else:
            out[name] = key
    return out


def _add_counters(part: State, names: Names, account: Account, tower: Tower) -> None:
    """Batch norm's counters, which old files and frozen batch norms lack; zero, as nothing here reads them."""
    import torch

    lacking = [n for n in names.shapes if n.endswith("num_batches_tracked")]
    if lacking:
        part |= {f"pyramid.{n}": torch.tensor(0) for n in lacking}
        note = "no num_batches_tracked (old files and frozen batch norms have none): counted from 0"
        if note not in account.notes:
            account.notes.append(note)


def _explain(
    state: Mapping[str, Tensor], names: Names, query: Tower, key: Tower | None, account: Account
) -> list[str]:
    """Notes why keys are not needed; returns those that nothing explains."""
    explained = account.taken.union(*account.ignored.values()) if account.ignored else set(account.taken)
    own = {n.partition(".")[0] for n in names.to_pyramid}
    beyond = {n.partition(".")[0] for n in names.beyond} - own
    fitted = set(query.keys.values()) | (set(key.keys.values()) if key else set())
    out = []
    for name in state:
        if name in explained or name in fitted:
            continue
        tower = next((t for t in (query, key) if t and name.startswith(t.prefix)), None)
        rest = name.removeprefix(tower.prefix) if tower else name
        reason = next((why for pattern, why in REASONS if re.search(pattern, name)), None)
        if tower and (rest in names.beyond or rest.partition(".")[0] in beyond):
            reason = "classifier and what else lies beyond C5"
        elif tower is None and reason is None and query.words - TRANSPARENT - {""}:
            reason = "other parts of the file"
        if reason is None:
            out.append(name)
        else:
            account.ignore(reason, [name])
    return out


def _facts(head: Head) -> dict[str, Any]:
    if not head.keys:
        return {}
    return {"method": "moco-v2" if head.layers == 2 else "moco-v1", "semantic_dim": head.dim}


def _hint(state: Mapping[str, Tensor], names: Names) -> str:
    """What to do, for the end of a refusal."""
    found = arch_of(state)
    if found and found != names.arch and found.split(":")[1] != names.arch.split(":")[1]:
        return f"; its shapes are those of {found}"
    return (
        "; name the architecture it is of (torchvision:ARCH:FILE or timm:ARCH:FILE), or allow what may differ"
    )
