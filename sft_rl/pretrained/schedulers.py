"""What a scheduler of diffusers says of the noise that a model was trained on.

A scheduler is a solver, and the noise it was made for. The noise is read; of the solver only
what belongs to the model: its bound of x_0, its variance and where a flow's times are dense.
Nothing is guessed: a class or a key that is not known is refused by name.
"""

from __future__ import annotations

import inspect
from typing import Any

import diffusers

from sft_rl.errors import UserError

Sections = dict[str, dict[str, Any]]
"""Settings by section."""
BETAS = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
OF_BETAS = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
)
OF_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
OF_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
OF_SCORE = ("ScoreSdeVeScheduler",)
SUPPORTED = (*OF_BETAS, *OF_FLOW, *OF_EDM, *OF_SCORE)
PREDICTIONS = ("epsilon", "v_prediction", "sample")
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rescale_betas_zero_snr": (False,),
    "thresholding": (False,),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "shift_terminal": (None,),
    "stochastic_sampling": (False,),
    "invert_sigmas": (False,),
    "tensor_format": ("pt", "np"),
    "timestep_values": (None,),
}
"""Keys that change the mathematics, or are of old versions, with the values that are allowed."""
VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned_range": "fixed_small",
    "learned": "fixed_small",
}


def read_scheduler(where: str, given: dict[str, Any]) -> Sections:
    """Turn a ``scheduler_config.json`` into settings of `noise` and `model`.

    Args:
        where: The model's path, for errors.
        given: The file's content; what it leaves out has the defaults of its class.

    Raises:
        UserError: Naming a class or a key that is not supported.
    """
    name = given.get("_class_name")
    if name not in SUPPORTED:
        raise UserError(
            f"pretrained.path: the scheduler of {where} is {name!r}; supported are "
            f"{', '.join(SUPPORTED)}"
        )
    given = dict(given)
    if not given.pop("predict_epsilon", True):  # of old versions
        given["prediction_type"] = "sample"
    values = _defaults(name) | {k: v for k, v in given.items() if not k.startswith("_")}
    known = set(NEUTRAL).union(*(_defaults(n) for n in SUPPORTED))
    for key, value in values.items():
        if key not in known:
            raise UserError(
                f"pretrained.path: the scheduler of {where} has {key}: {value!r}, an unknown key"
            )
        if key in NEUTRAL and value not in NEUTRAL[key]:
            allowed = " or ".join(repr(v) for v in NEUTRAL[key])
            raise UserError(
                f"pretrained.path: the scheduler of {where} has {key}: {value!r}; supported is "
                f"{allowed}"
            )
    num = {"num_train_timesteps": values["num_train_timesteps"]}
    if name in OF_FLOW:
        noise = {"path": "flow", **num, **_chosen(values, "shift"), "variance": "none"}
        return {"noise": noise, "model": {"prediction": "flow"}}
    if name in OF_EDM:
        _check(where, "prediction_type", values, ("epsilon",))
        noise = {"path": "ve", **num, **_chosen(values, "sigma_min", "sigma_max")}
        return {"noise": noise, "model": {"prediction": "edm", **_chosen(values, "sigma_data")}}
    if name in OF_SCORE:
        noise = {"path": "ve", **num, **_chosen(values, "sigma_min", "sigma_max")}
        return {"noise": noise, "model": {"prediction": "score"}}
    _check(where, "prediction_type", values, PREDICTIONS)
    noise = {
        "path": "vp",
        **num,
        **_betas(where, values),
        "variance": _variance(where, name, values),
    }
    clips = values["clip_sample"] if "clip_sample" in _defaults(name) else False
    model = {
        "prediction": values["prediction_type"],
        "clip_x0": values.get("clip_sample_range", 1.0) if clips else None,
    }
    return {"noise": noise, "model": model}


def _defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {n: p.default for n, p in parameters.items() if p.default is not p.empty}


def _betas(where: str, values: dict[str, Any]) -> dict[str, Any]:
    if values["trained_betas"] is not None:
        return {"betas": values["trained_betas"]}
    _check(where, "beta_schedule", values, tuple(BETAS))
    kind = BETAS[values["beta_schedule"]]
    return {"schedule": kind, **_chosen(values, "beta_start", "beta_end")}


def _variance(where: str, name: str, values: dict[str, Any]) -> str:
    if not name.startswith("DDPM"):  # others have their own, which is their solver's
        return "fixed_small"
    _check(where, "variance_type", values, tuple(VARIANCES))
    return VARIANCES[values["variance_type"]]


def _check(where: str, key: str, values: dict[str, Any], allowed: tuple[str, ...]) -> None:
    if values[key] not in allowed:
        raise UserError(
            f"pretrained.path: the scheduler of {where} has {key}: {values[key]!r}; supported are "
            f"{', '.join(allowed)}"
        )


def _chosen(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values[name] for name in names}
