"""Names of hook points, as TransformerLens's utils spell them."""

from __future__ import annotations

from . import _lenscpp


def get_act_name(name: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """The full hook name of a short one.

    get_act_name("resid_post", 3) is "blocks.3.hook_resid_post"; "k6", "scale4ln1", ("scale", 3, "ln1"),
    ("attn", 2) and "normalized" (of the final norm) are read as TransformerLens reads them. Not checked
    against any model.
    """
    return _lenscpp.act_name(name, layer, layer_type or "")
