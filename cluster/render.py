"""From settings to the text of a cluster file; `templates/` has one file for each target.

A template sees the fields of :class:`ClusterSettings`. What it writes with ``{{ }}`` is quoted for
the language that its ending names, unless it says ``| safe``: so nothing in a setting can break
out of its place.
"""

import json
import shlex
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Undefined
from markupsafe import Markup

from cluster.config import ClusterSettings
from sft_rl.errors import UserError, did_you_mean

TEMPLATES = Path(__file__).parent / "templates"
TARGETS = {file.name.partition(".")[0]: file.name for file in sorted(TEMPLATES.glob("[!_]*.j2"))}
"""The template of each target; those that begin with ``_`` are parts of others."""


def render(settings: ClusterSettings, target: str) -> str:
    """Return the file for `target`, one of `TARGETS`.

    Raises:
        UserError: the target is unknown, or the settings do not fit it.
    """
    if target not in TARGETS:
        raise UserError(f"target: got {target!r}; {did_you_mean(target, TARGETS)}")
    _check(settings, target)
    name = TARGETS[target]
    quote = _QUOTES.get(name.split(".")[1], str)
    return _environment(quote).get_template(name).render(dict(settings))


def _environment(quote: Callable[[Any], str]) -> Environment:
    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup | Undefined) else quote(value)

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["shell"] = _shell
    return environment


def _yaml(value: Any) -> str:
    """Quote for YAML, of which JSON is a part."""
    return json.dumps(value, ensure_ascii=False)


def _shell(value: Any) -> str:
    """Quote for a shell: a word, or several of a tuple."""
    return shlex.join(value) if isinstance(value, tuple) else shlex.quote(str(value))


_QUOTES = {"yaml": _yaml, "sh": _shell}


def _check(settings: ClusterSettings, target: str) -> None:
    """Refuse settings that lack what the target needs."""
    family = target.partition("-")[0]
    if family in ("kuberay", "slurm") and getattr(settings, family) is None:
        raise UserError(f"{family}: missing; target {target} needs this section")
    if target in ("kuberay-cluster", "kuberay-job") and settings.image is None:
        raise UserError(f"image: missing; target {target} needs the image to run")
    if target == "kuberay-job" and ip_address(settings.dashboard_host).is_loopback:
        raise UserError(
            f"dashboard_host: got {settings.dashboard_host}; a kuberay-job is submitted by another "
            "pod; allowed: an address that pods reach, such as 0.0.0.0 (the token stays required)"
        )
    if target in ("kuberay-cluster", "kuberay-job"):
        _check_token(settings, target)
    if settings.rollout_workers and target in ("ray-up", "slurm"):
        raise UserError(f"rollout_workers: KubeRay has a second group of nodes, {target} has none")
    if target == "ray-up":
        _check_machines(settings)


def _check_token(settings: ClusterSettings, target: str) -> None:
    assert settings.kuberay is not None, "checked before"
    if settings.kuberay.token_secret is None:
        if target == "kuberay-job":
            raise UserError("kuberay.token_secret: missing; a RayJob takes no users' own tokens")
        if settings.kuberay.service_account is None:
            raise UserError(
                "kuberay.token_secret: missing; without it kuberay.service_account must be given, "
                "and let `ray:write` its RayCluster"
            )


def _check_machines(settings: ClusterSettings) -> None:
    given = [s for s in (settings.on_premise, settings.aws, settings.gcp) if s is not None]
    if len(given) != 1:
        raise UserError(
            f"ray-up needs exactly one of the sections on_premise, aws, gcp; got {len(given)}"
        )
    if settings.on_premise is None:
        return
    count = len(settings.on_premise.worker_ips)
    for key in ("min", "max"):
        if (value := getattr(settings.workers, key)) != count:
            raise UserError(
                f"workers.{key}: got {value}; allowed: {count}, "
                "the number of on_premise.worker_ips, which are all used"
            )
