"""A signal model of the smallest kind, trained in seconds, for tests of what is done with one."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache

from mrsi_gadgets.data import Geometry, Protocol
from mrsi_gadgets.io.model_store import Origin
from mrsi_gadgets.models.training import Trained, TrainingSettings, train
from mrsi_gadgets.physics.ensemble import default_ensemble

SETTINGS = TrainingSettings(
    rank=10, latent=7, hidden=12, samples=400, autoencoder_steps=20, projector_steps=20, batch=64, snr=(4.0, 90.0),
    latent_sizes=(3,), latent_steps=10, gate_samples=600,
)  # fmt: skip
PROTOCOL = Protocol(
    "1H", 123.25e6, 4.65, 1 / 1500, 97, 1.3e-3, Geometry((5, 4, 3), (50.0, 40.0, 30.0)), "csi",
    echo_times_s=(1.3e-3,), repetition_time_s=0.3, flip_angle_deg=35.0, field_strength_t=2.8948,
    measurement_id="12", protocol_name="somebody's brain", provenance={"dwell_s": "header"},
)  # fmt: skip


@lru_cache(maxsize=1)
def small_model() -> Trained:
    """The model of `PROTOCOL`, trained once for all tests of a run."""
    return train(PROTOCOL, settings=SETTINGS, seed=3)


def origin(**fields) -> Origin:
    """What `save_model` is told beside it."""
    defaults = {
        "title": "FID", "ensemble": default_ensemble(PROTOCOL).describe(), "basis": "simulated: pulse-acquire",
        "training": asdict(SETTINGS), "seed": 3, "seconds": {"whole": 1.5}, "sources": {"1": "somebody 1999"},
    }  # fmt: skip
    return Origin(**{**defaults, **fields})
