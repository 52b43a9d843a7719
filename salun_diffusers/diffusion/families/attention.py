"""Names of attention in a denoiser's tensors: what the words of --train_method mean, by the class of the network."""

from __future__ import annotations

from collections.abc import Mapping

ATTENTION: Mapping[str, Mapping[str, str]] = {
    # Cross-attention is attn2; noxattn leaves the time embedding and the last convolution alone as well
    # (rohitgandikota/erasing, train-esd.py, arXiv 2303.07345).
    "UNet2DConditionModel": {
        "xattn": r"attn2",
        "selfattn": r"attn1",
        "noxattn": r"^(?!.*(attn2|time_embed|conv_out))",
    },
    # There is no text to attend to.
    "UNet2DModel": {"selfattn": r"attentions?\.", "noxattn": r"^(?!.*(time_embed|conv_out))"},
}
"""Regular expressions that are searched in the names of a network's tensors."""
