"""Overrides of a config: reading from a command line, and checks for mistakes that MONAI accepts silently, which are unused names and
impossible values."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from pydoc import ErrorDuringImport, locate
from typing import Any

from monai.bundle import ComponentLocator
from monai.utils import optional_import

from monai_gmr.bundle.settings import check_together, check_value
from monai_gmr.utils import ConfigurationError

yaml, _ = optional_import("yaml")
# keys of a component of MONAI's configs besides the arguments of its target
COMPONENT_KEYS = ("_target_", "_disabled_", "_requires_", "_desc_", "_mode_")
# for each type, the types that can replace its values, and the text of the hint
KINDS: dict[type, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    list: ((list, tuple), "a list such as"),
}
CHECKED = re.compile(r"\bcheck_values\((.*)\)", re.DOTALL)
IDS = re.compile(r"@(\w+)")


def split_pair(text: str, option: str, example: str) -> tuple[str, str]:
    """Splits ``KEY=VALUE`` from the command line; raises ``ConfigurationError`` if a side is empty."""
    key, _, value = text.partition("=")
    if not (key and value):
        raise ConfigurationError(f"{option} {text} cannot be read: give it as in {option} {example}.")
    return key, value


def read_settings(pairs: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """Reads settings ``KEY=VALUE``, whose values are YAML; raises ``ConfigurationError`` if one does not have this form."""
    return {key: read_value(value) for key, value in (split_pair(pair, option, "device=cpu") for pair in pairs)}


def read_value(text: str) -> Any:
    """Reads a value of a config as YAML; returns references, expressions and macros of MONAI unchanged."""
    if text[:1] in ("@", "$", "%"):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigurationError(f"{text} cannot be read as YAML: quote it, or give one such as 3 or [1, 2].") from None


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and value[:1] in ("$", "@", "%")


def _is_kind(value: Any, default: Any) -> bool:
    """Checks whether an override can replace a plain value of the config; references and expressions always can."""
    if _is_reference(value) or type(default) not in KINDS:
        return True
    # a bool is also an int
    return isinstance(value, KINDS[type(default)][0]) and isinstance(value, bool) == isinstance(default, bool)


def _is_plain(value: Any) -> bool:
    """Checks whether a value is a text, a number, a switch or a list of these."""
    if isinstance(value, (list, tuple)):
        # an empty list can stand for no transforms
        return bool(value) and all(_is_plain(each) for each in value)
    return isinstance(value, (str, int, float)) and not _is_reference(value)


def _has_components(node: Any) -> bool:
    """Checks whether an entry of a config is a mapping with a component, or with a reference, in it at any depth."""
    if isinstance(node, Mapping):
        return "_target_" in node or any(_is_reference(each) or _has_components(each) for each in node.values())
    return isinstance(node, (list, tuple)) and any(_has_components(each) for each in node)


def _check_replaces(name: str, value: Any, default: Any, config: Mapping[str, Any], prefix: str) -> None:
    """Raises ``ConfigurationError`` if an override is a plain value in place of a component or a section, or of a reference to one."""
    if isinstance(default, str) and default[:1] == "@":
        default = config.get(default[1:])
    if not (_is_plain(value) and isinstance(default, Mapping) and _has_components(default)):
        return
    part, kind = ("_target_", "component") if "_target_" in default else (next(iter(default)), "section")
    where = " in a second config file" if prefix == "--" else ""
    raise ConfigurationError(
        f"{prefix}{name} {value} cannot be used in place of a {kind}: give its parts, such as {prefix}{name}::{part}, or a mapping{where}."
    )


def _arguments_of(component: Mapping[str, Any]) -> set[str] | None:
    """Returns the arguments that a component's ``_target_`` takes by name; ``None`` if it takes any or they are unknown."""
    target = component.get("_target_")
    if not isinstance(target, str) or _is_reference(target):
        return None
    try:
        found: Any = ComponentLocator().get_component_module_name(target)
        found = locate(f"{found[0] if isinstance(found, list) else found}.{target}" if found else target)
        parameters = inspect.signature(found).parameters.values()
    except (ErrorDuringImport, TypeError, ValueError, ImportError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL}


def _find_nested(name: str, config: Mapping[str, Any], prefix: str) -> Any:
    """Returns the entry of a config under an id, ``None`` if the id adds an entry; raises if nothing reads the added entry."""
    keys = name.replace("#", "::").split("::")
    node: Any = config
    for depth, key in enumerate(keys):
        before, last = "::".join(keys[:depth]), depth == len(keys) - 1
        if isinstance(node, Mapping):
            if key in node:
                node = node[key]
                continue
            known = _arguments_of(node) if "_target_" in node else None
            names = sorted({*node, *(known or ()), *(COMPONENT_KEYS if "_target_" in node else ())})
            # a dictionary that is not a component can hold anything, so only likely typing errors are refused
            strict = known is not None or not last
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.5 if strict else 0.75)
            if last and ((known is not None and key in names) or (not strict and not near)):
                return None
            hint = f"did you mean {prefix}{before}::{near[0]}?" if near else f"{before} has {', '.join(names)}."
        elif isinstance(node, list):
            if key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
                continue
            hint = f"{before} is a list of {len(node)}, whose entries are 0 to {len(node) - 1}."
        elif isinstance(node, str) and node[:1] == "@":
            hint = f"{before} is what {node[1:]} is: did you mean {prefix}{node[1:]}::{'::'.join(keys[depth:])}?"
        else:
            part = next((part for part in IDS.findall(str(node)) if isinstance(config.get(part), Mapping)), None)
            hint = f"{before} is {node}, which has no parts: " + (
                f"did you mean {prefix}{part}::{'::'.join(keys[depth:])}?"
                if part
                else f"give {prefix}{before} as a whole."
            )
        raise ConfigurationError(f"{prefix}{name} is not a setting of this config: {hint}")
    return node


def _hint(name: str, head: str, names: Iterable[str], config: Mapping[str, Any], prefix: str) -> str:
    """Returns what an id may have meant that is not in a config: a similar one, or a part of a component; else the settings there are."""
    near = difflib.get_close_matches(head, sorted(names), n=1, cutoff=0.5)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    for component, node in config.items():
        if isinstance(node, Mapping) and "_target_" in node and head in {*node, *(_arguments_of(node) or ())}:
            return f"did you mean {prefix}{component}::{name}?"
    ids = sorted(each for each in config if not each.startswith("_"))
    plain = [each for each in ids if not isinstance(config[each], (dict, list))]
    return f"the settings are {', '.join(plain)}." if plain else f"its ids are {', '.join(ids)}."


def _checked_settings(config: Mapping[str, Any]) -> set[str]:
    """Returns the settings that a config passes to ``check_values``, whose rules then also apply to overrides."""
    lines = config.get("initialize")
    calls = [CHECKED.search(str(line)) for line in lines] if isinstance(lines, list) else []
    return {name for call in calls if call for name in IDS.findall(call[1])}


def check_settings(
    settings: Mapping[str, Any], config: Mapping[str, Any], accepted: Iterable[str] = (), prefix: str = "--"
) -> None:
    """Raises ``ConfigurationError`` if a setting names nothing in a config, which MONAI would accept silently, or has an impossible value.

    ``settings`` maps ids of the config to values; names of nested ids are joined by ``"::"`` or ``"#"``. ``prefix`` is what the user
    writes before a name. A name must be in the config, in ``accepted``, or an argument of its component; a value must be able to replace
    the config's switch, number, list, component or reference to one.
    """
    names = {*config, *accepted}
    checked = _checked_settings(config)
    dims = settings.get("spatial_dims", config.get("spatial_dims"))
    for name, value in settings.items():
        head = name.replace("#", "::").split("::")[0]
        if head not in names and head != "_meta_":
            raise ConfigurationError(
                f"{prefix}{name} is not a setting of this config: {_hint(name, head, names, config, prefix)}"
            )
        default = None if head == "_meta_" or head not in config else _find_nested(name, config, prefix)
        # the rule of a setting applies to all references to it, and takes precedence over the kind of its default
        rule = default[1:] if isinstance(default, str) and default[:1] == "@" else name
        if rule in checked and isinstance(dims, int):
            if not _is_reference(value):
                check_value(rule, value, dims, name)
        elif not _is_kind(value, default):
            kind = KINDS[type(default)][1] + (f" {default}" if isinstance(default, list) else "")
            raise ConfigurationError(f"{prefix}{name} {value} cannot be used: give {kind}.")
        _check_replaces(name, value, default, config, prefix)
    all_values = {name: settings.get(name, config.get(name)) for name in checked}
    check_together({name: value for name, value in all_values.items() if not _is_reference(value)})
