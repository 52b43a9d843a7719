"""The mask engine, for any torch model: saliency, masks and their files, selected weights, patch and receipt."""
